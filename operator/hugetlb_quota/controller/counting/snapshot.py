"""The input of one count: the cluster's objects, and what follows from them, at one moment."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from hugetlb_quota.accounting.attribution import Attribution, Line
from hugetlb_quota.accounting.release import NodeEvidence, has_booted, holds, is_lost
from hugetlb_quota.accounting.reservation import UNBOUND
from hugetlb_quota.controller.counting.nodes import NodeReport, ReportedPod
from hugetlb_quota.kube.pods import Pod


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The input of one count.

    ``attribution``: the rule that says who pays. ``pods``: the pods in the API. The pods'
    informer has seen every change from the resourceVersion ``listed_at`` up to ``seen_up_to``.
    ``evidence``: by node name, for every node that has a Node object or a report. ``reports``:
    the last report of each node, by node name.

    ``uids``: the UIDs that the count includes; None for all. If ``uids`` is given, ``pods`` and
    ``reports`` need to have only the pods and the reports of these UIDs.
    """

    attribution: Attribution
    pods: Collection[Pod]
    seen_up_to: int
    listed_at: int
    evidence: Mapping[str, NodeEvidence]
    reports: Mapping[str, NodeReport]
    uids: Collection[str] | None = None

    def select(self, uids: Collection[str]) -> list[str]:
        """Those of ``uids`` that the count includes, in a new list."""
        return list(uids) if self.uids is None else [uid for uid in self.uids if uid in uids]

    def valid_reports(self) -> Iterator[NodeReport]:
        """The reports with charges that are still valid."""
        return (report for name, report in self.reports.items() if holds(self.evidence.get(name)))

    def reported_pods(self) -> Iterator[tuple[str, ReportedPod]]:
        """The included pods of the valid reports, each with the name of the reporting node."""
        for report in self.valid_reports():
            for pod in report.pods:
                if self._includes(pod.uid):
                    yield report.node, pod

    def lines(self) -> Mapping[str, Line]:
        """The pods that may run although no valid report names them, by UID.

        These are the pods that have a line in a quota's ``status.reservations``, and the pods that
        were live in the last report before their node booted: kubelet may have started these pods
        again.
        """
        stored = self.attribution.lines
        restarted: dict[str, Line] = {}
        for name, report in self.reports.items():
            evidence = self.evidence[name]
            if not is_lost(evidence) and has_booted(evidence):
                for pod in report.pods:
                    if pod.live and pod.uid not in stored and self._includes(pod.uid):
                        line, other = self._line(name, pod), restarted.get(pod.uid)
                        restarted[pod.uid] = line if other is None else _merged(line, other)
        return {**restarted, **{uid: stored[uid] for uid in self.select(stored.keys())}}

    def _includes(self, uid: str) -> bool:
        return self.uids is None or uid in self.uids

    def _line(self, node: str, pod: ReportedPod) -> Line:
        payers = self.attribution.who_pays(
            pod.uid, pod.namespace, pod.labels, node, labels_left_out=pod.labels_left_out
        )
        charge = pod.demand.peak(pod.charged)
        return Line(pod.uid, pod.full_name, charge, payers, counted=node)


def _merged(one: Line, other: Line) -> Line:
    """One line for a UID that two nodes reported: the pod may be on either node."""
    return replace(
        one,
        charge=one.charge + other.charge,
        quotas=one.quotas | other.quotas,
        counted=UNBOUND,
    )
