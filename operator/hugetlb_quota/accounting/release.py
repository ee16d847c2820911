"""When a pod that has ended stops being charged: on its node's evidence, not before."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndedPod:
    """A pod that is finished or deleted.

    ``node`` is None when it was never bound. ``resource_version`` is that of its end: the
    update that finished it, or its deletion; a later one where that is not known.
    """

    uid: str
    node: str | None
    resource_version: int


@dataclass(frozen=True, slots=True)
class NodeEvidence:
    """What is known of a node.

    ``exists``: its Node object is there. ``out_of_service``: somebody vouches that it is off,
    by the taint ``node.kubernetes.io/out-of-service``. ``former_boots``: the boot IDs that the Node
    was seen with before the one that it has; ``booted_at``: the resourceVersion at which it first
    had that, or an earlier one; None when it was not seen. ``awaited``: it came so recently that
    its agent may not have begun.

    The rest is its agent's last report: ``reported_boot_id``, None when it is not known;
    ``pods_resource_version`` up to which the agent has seen the pods bound to it, None without
    a report; ``live`` UIDs, whose cgroup is there or may yet come.
    """

    exists: bool
    out_of_service: bool = False
    former_boots: frozenset[str] = frozenset()
    booted_at: int | None = None
    awaited: bool = False
    reported_boot_id: str | None = None
    pods_resource_version: int | None = None
    live: frozenset[str] = frozenset()


def is_lost(node: NodeEvidence | None) -> bool:
    """Whether nothing that ran on the node can be in memory: it is gone, or off."""
    return node is None or not node.exists or node.out_of_service


def has_booted(node: NodeEvidence) -> bool:
    """Whether the node is known to have booted since its last report.

    That its Node has another boot ID does not say which boot is the later: kubelet may not have
    told of the present one yet. Boot IDs have no order and never come again, so the report is of
    an earlier boot where the Node was seen with its boot ID, and then with another. Else it
    holds: what has ended by a report can't begin in a later boot.
    """
    return node.reported_boot_id in node.former_boots


def holds(node: NodeEvidence | None) -> bool:
    """Whether what the node's last report says of charges is true still."""
    return (
        node is not None
        and not is_lost(node)
        and node.pods_resource_version is not None
        and not has_booted(node)
    )


def proved_up_to(node: NodeEvidence | None) -> int | None:
    """The resourceVersion up to which the end of a pod is proved to be the end of its cgroup.

    That of a pod which the node does not list as live. None: of any, whenever it ends.

    Any, where the node is gone, off, or has no agent. A node that has booted since its last
    report proves it of the pods that ended before that boot. Another may have run in the new
    boot, of which no report tells yet. Else the agent must have seen the end: resource versions
    of one kind are ordered (KEP-5504), so a report that has reached it is evidence, and one
    from before, when the cgroup was perhaps not made yet, is not.
    """
    if node is None or is_lost(node) or node.pods_resource_version is None:
        return None
    if has_booted(node):
        return node.booted_at or 0
    return node.pods_resource_version


def is_released(pod: EndedPod, node: NodeEvidence | None) -> bool:
    """Whether the pod's cgroup is gone; what is charged still, its node's report tells.

    A pod that was never bound had none.
    """
    proved = None if pod.node is None else proved_up_to(node)
    if proved is None or node is None:
        return True
    is_live = pod.uid in node.live and holds(node)
    return pod.resource_version <= proved and not is_live
