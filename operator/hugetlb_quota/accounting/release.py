"""When a pod that has ended stops being charged: on its node's evidence, not before."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndedPod:
    """A pod that is finished or deleted.

    ``node`` is None when it was never bound. ``resource_version`` is that of its end:
    the update that finished it, or its deletion. ``seen_at``: the last one at which it is
    known to have been in the API. ``listed``: whether its node's agent has named it in any
    report, so that it is in its books; or whether that does not matter.
    """

    uid: str
    node: str | None
    resource_version: int
    seen_at: int = 0
    listed: bool = False


@dataclass(frozen=True, slots=True)
class NodeEvidence:
    """What is known of a node.

    ``exists``: its Node object is there. ``boot_id``: of the running kernel, as Node
    tells. The rest is its agent's last report: ``reported_boot_id``, None when it is not
    known; ``pods_resource_version`` up to which the agent has seen the pods bound to it,
    None without a report; ``pods_since`` from where on it has seen them without a gap, None
    when it does not tell; ``live`` UIDs, whose cgroup is there or may yet come; and
    ``settled``, of pods that it did not see and was told of since, and that are gone.
    """

    exists: bool
    boot_id: str | None = None
    reported_boot_id: str | None = None
    pods_resource_version: int | None = None
    pods_since: int | None = None
    live: frozenset[str] = frozenset()
    settled: frozenset[str] = frozenset()


def has_forgotten(node: NodeEvidence) -> bool:
    """Whether nothing that the node's last report tells can be in memory any more.

    The node is gone, or it has booted since.
    """
    if not node.exists:
        return True
    known = node.boot_id is not None and node.reported_boot_id is not None
    return known and node.boot_id != node.reported_boot_id


def is_missed(pod: EndedPod, node: NodeEvidence) -> bool:
    """Whether the agent of ``node`` may know nothing of ``pod``, going by its last report.

    It knows the pods that it has listed, those that were in the API when its informer
    listed them or came later, and those of which it says so.
    """
    if pod.listed or pod.uid in node.settled or node.pods_since is None:
        return False
    reached = node.pods_resource_version is not None and (
        node.pods_resource_version >= pod.resource_version
    )
    return not reached or pod.seen_at < node.pods_since


def has_seen(node: NodeEvidence | None, resource_version: int) -> bool:
    """Whether the node's last report is of what its pods were at ``resource_version``.

    True also where there is nobody to tell, or nothing to be told of.
    """
    if node is None or node.pods_resource_version is None or has_forgotten(node):
        return True
    return node.pods_resource_version >= resource_version


def is_released(pod: EndedPod, node: NodeEvidence | None) -> bool:
    """Whether nothing of ``pod`` can be in memory any more.

    At once for a pod never bound, a node that is gone or has no agent, and a node that
    has booted since. Otherwise its agent must have seen the pod's end and list it no
    more: resource versions of one kind are ordered (KEP-5504), so a report that has
    reached the pod's end and lists no cgroup of it is evidence, and one from before,
    when the cgroup was not made yet, is not. Nor is one of an agent that knows nothing of
    the pod: what it left would be charged to nobody.
    """
    if pod.node is None or node is None or node.pods_resource_version is None:
        return True
    if has_forgotten(node):
        return True
    has_ended = has_seen(node, pod.resource_version)
    return has_ended and pod.uid not in node.live and not is_missed(pod, node)
