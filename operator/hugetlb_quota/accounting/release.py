"""When the charge of an ended pod ends: on evidence from the pod's node, not before."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndedPod:
    """A finished or deleted pod.

    ``node``: None for a pod that was never bound. ``resource_version``: that of the update that
    finished the pod or of its deletion; a later one if nobody saw that update.
    """

    uid: str
    node: str | None
    resource_version: int


@dataclass(frozen=True, slots=True)
class NodeEvidence:
    """What the controller knows about a node.

    ``exists``: whether the Node object exists. ``out_of_service``: whether the Node has the taint
    ``node.kubernetes.io/out-of-service``, by which an administrator says that the node is off.
    ``former_boots``: the earlier boot IDs of the Node. ``booted_at``: the resourceVersion at
    which the Node first had its present boot ID, or an earlier one; None if the controller did
    not see the change. ``awaited``: whether the Node is so new that its agent may not run yet.

    The other fields are from the agent's last report. ``reported_boot_id``: None if unknown.
    ``pods_resource_version``: up to this resourceVersion the agent has seen the pods bound to
    the node; None without a report. ``live``: the UIDs of pods with a cgroup that exists or may
    still be created.
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
    """Whether the node is gone or off, so that no page of its pods is in memory."""
    return node is None or not node.exists or node.out_of_service


def has_booted(node: NodeEvidence) -> bool:
    """Whether the node has certainly booted since its last report.

    If the boot IDs of the report and of the Node differ, either one can be the later: kubelet
    may not have updated the Node yet. Boot IDs have no order and never repeat. So the report is
    of an earlier boot if the Node had the report's boot ID and then got another. Otherwise the
    report holds: a pod that ended before a report can't start in a later boot.
    """
    return node.reported_boot_id in node.former_boots


def holds(node: NodeEvidence | None) -> bool:
    """Whether the charges in the node's last report are still valid."""
    return (
        node is not None
        and not is_lost(node)
        and node.pods_resource_version is not None
        and not has_booted(node)
    )


def proved_up_to(node: NodeEvidence | None) -> int | None:
    """The resourceVersion up to which an ended pod that is not live has no cgroup.

    None: no ended pod of the node has a cgroup, because the node is gone, is off, or has no
    agent.

    If the node has booted since its last report, the pods that ended before the boot have no
    cgroup. A pod that ended later may have run in the new boot, which no report describes yet.
    Otherwise the agent must have seen the end. Resource versions of one kind are ordered
    (KEP-5504), so a report that has reached the end is evidence. An earlier report is not: the
    cgroup may have been created after it.
    """
    if node is None or is_lost(node) or node.pods_resource_version is None:
        return None
    if has_booted(node):
        return node.booted_at or 0
    return node.pods_resource_version


def is_released(pod: EndedPod, node: NodeEvidence | None) -> bool:
    """Whether the pod's cgroup is gone; then the node's report lists what is still charged.

    A pod that was never bound had no cgroup.
    """
    proved = None if pod.node is None else proved_up_to(node)
    if proved is None or node is None:
        return True
    is_live = pod.uid in node.live and holds(node)
    return pod.resource_version <= proved and not is_live
