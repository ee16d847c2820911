"""Pods that other quotas govern than before, until their node tells what stays with those.

What such a pod filled in files stays with the quotas that were charged, and how much that
is only its node can tell. Until its report does, the pod counts under both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.release import NodeEvidence, has_forgotten, has_seen
from hugetlb_quota.controller.nodes import NodeReport
from hugetlb_quota.kube.pods import Pod

_Labels = frozenset[tuple[str, str]]


class Relabelled:
    """Remembers the labels that pods had, as long as their nodes may not have seen the new."""

    def __init__(self) -> None:
        #: By UID: the pod as it was, and the resourceVersion at which it was so no more.
        self._before: dict[str, dict[_Labels, tuple[Pod, int]]] = {}

    def pod_changed(self, old: Pod, new: Pod) -> None:
        """Take in one change of a pod."""
        # One that was not bound had no cgroup.
        if old.labels != new.labels and old.node is not None:
            labels = frozenset(old.labels.items())
            self._before.setdefault(old.uid, {})[labels] = (old, new.resource_version)

    def forget(self, uid: str) -> None:
        """Nothing of this pod is charged to anybody any more."""
        self._before.pop(uid, None)

    def still_charged(
        self, pod: Pod, governing: frozenset[QuotaKey], forest: Forest, node: NodeEvidence | None
    ) -> frozenset[QuotaKey]:
        """The quotas beside those ``governing`` it now that ``pod`` counts under still."""
        still, waiting = frozenset[QuotaKey](), dict[_Labels, tuple[Pod, int]]()
        for labels, (before, at) in self._before.get(pod.uid, {}).items():
            selecting = forest.selecting(before.namespace, before.labels)
            beside = frozenset(quota.key for quota in selecting) - governing
            # What adds none now is added by the next change of labels, if need be.
            if beside and not has_seen(node, at):
                waiting[labels] = (before, at)
                still |= beside
        if waiting:
            self._before[pod.uid] = waiting
        else:
            self.forget(pod.uid)
        return still


def listed(
    reports: Iterable[NodeReport], evidence: Mapping[str, NodeEvidence]
) -> dict[str, frozenset[QuotaKey]]:
    """Under which quotas its node lists each pod, by UID.

    The node may be behind, or ahead: then what it tells as retained is beside these.
    """
    return {
        pod.uid: pod.quotas
        for report in reports
        if not has_forgotten(evidence[report.node])
        for pod in report.pods
    }
