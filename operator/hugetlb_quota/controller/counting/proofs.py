"""Which nodes have proved that an ended pod has no cgroup any more."""

from __future__ import annotations

from collections.abc import Mapping

from hugetlb_quota.accounting.release import EndedPod, NodeEvidence, is_released, proved_up_to
from hugetlb_quota.accounting.reservation import SOMEWHERE, UNBOUND


class Proofs:
    """The proofs that the evidence of all nodes contains at one moment.

    :param evidence: by node name.
    """

    def __init__(self, evidence: Mapping[str, NodeEvidence]) -> None:
        self._evidence = evidence
        self._proved: dict[str, int] | None = None
        self._least_proved: int | None = None

    def lacking(self, ended: EndedPod) -> frozenset[str]:
        """The nodes that may still have the pod's cgroup; empty if the pod is released.

        If the pod's node is unknown, these are all nodes that have not proved the end of every
        pod that had ended by then.
        """
        if ended.node in (UNBOUND, SOMEWHERE):
            proved = self._proved_by_node()
            if self._least_proved is None or ended.resource_version <= self._least_proved:
                return frozenset()
            return frozenset(
                name for name, up_to in proved.items() if up_to < ended.resource_version
            )
        evidence = self._evidence.get(ended.node or "")
        if ended.node is None or is_released(ended, evidence):
            return frozenset()
        return frozenset({ended.node})

    def _proved_by_node(self) -> Mapping[str, int]:
        """The resourceVersion that each node has proved; computed on first use: nodes are many."""
        if self._proved is None:
            self._proved = {
                name: proved
                for name, evidence in self._evidence.items()
                if (proved := proved_up_to(evidence)) is not None
            }
            self._least_proved = min(self._proved.values(), default=None)
        return self._proved
