"""When a pod that has ended stops being charged: on its node's evidence, not before."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndedPod:
    """A pod that is finished or deleted.

    ``node`` is None when it was never bound. ``resource_version`` is that of its end:
    the update that finished it, or its deletion.
    """

    uid: str
    node: str | None
    resource_version: int


@dataclass(frozen=True, slots=True)
class NodeEvidence:
    """What is known of a node.

    ``exists``: its Node object is there. ``boot_id``: of the running kernel, as Node
    tells. The rest is its agent's last report: ``reported_boot_id``, None when it is not
    known; ``pods_resource_version`` up to which the agent has seen the pods bound to it,
    None without a report; and ``live`` UIDs, whose cgroup is there or may yet come.
    """

    exists: bool
    boot_id: str | None = None
    reported_boot_id: str | None = None
    pods_resource_version: int | None = None
    live: frozenset[str] = frozenset()


def has_forgotten(node: NodeEvidence) -> bool:
    """Whether nothing that the node's last report tells can be in memory any more.

    The node is gone, or it has booted since.
    """
    if not node.exists:
        return True
    known = node.boot_id is not None and node.reported_boot_id is not None
    return known and node.boot_id != node.reported_boot_id


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
    when the cgroup was not made yet, is not.
    """
    if pod.node is None or node is None or node.pods_resource_version is None:
        return True
    if has_forgotten(node):
        return True
    return pod.uid not in node.live and has_seen(node, pod.resource_version)
