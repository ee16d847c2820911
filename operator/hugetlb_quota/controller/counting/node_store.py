"""The controller's copy of Nodes and reports, with the evidence that they give."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from hugetlb_quota.accounting.release import NodeEvidence, holds
from hugetlb_quota.controller.counting.changes import Changes
from hugetlb_quota.controller.counting.node_history import NodeHistory, evidence
from hugetlb_quota.controller.counting.nodes import NodeFacts, NodeReport, ReportedPod


class NodeStore:
    """Nodes, the nodes' last reports, and the evidence of each node; notes what changes.

    ``reports``: by node name; also the last reports of deleted objects, as :class:`NodeHistory`
    keeps them. ``evidence``: by node name. ``reporters``: by UID, the nodes that report the pod.

    :param changes: where to note the changes.
    :param clock: returns seconds since any fixed moment.
    """

    def __init__(self, changes: Changes, clock: Callable[[], float] = time.monotonic) -> None:
        self._changes = changes
        self.nodes: dict[str, NodeFacts] = {}
        self.reports: dict[str, NodeReport] = {}
        self.evidence: dict[str, NodeEvidence] = {}
        #: A UID mostly has one reporter. A set of one takes four times the memory of a tuple.
        self.reporters: dict[str, tuple[str, ...]] = {}
        self._history = NodeHistory(clock)
        #: The reports that the API has now.
        self._stored: dict[str, NodeReport] = {}
        #: The nodes that came lately, oldest first: their agents may still start.
        self._awaited: dict[str, None] = {}

    def node_changed(self, old: NodeFacts | None, new: NodeFacts | None, version: int) -> None:
        """Take in one change of a Node.

        :param version: as :meth:`NodeHistory.node_changed` says.
        """
        self._history.node_changed(old, new, version)
        if old is not None:
            self.nodes.pop(old.name, None)
        if new is not None:
            self.nodes[new.name] = new
        name = (new or old).name  # type: ignore[union-attr]
        self._update_report(name)
        self._update_evidence(name)

    def report_changed(self, old: NodeReport | None, new: NodeReport | None) -> None:
        """Take in one change of a report."""
        name = (new or old).node  # type: ignore[union-attr]
        self._history.report_changed(old, new)
        if new is None:
            self._stored.pop(name, None)
        else:
            self._stored[name] = new
        self._update_report(name)
        self._update_evidence(name)

    def time_passed(self) -> None:
        """Note the nodes that are no longer new enough to wait for their agents."""
        while self._awaited and not self._history.is_awaited(name := next(iter(self._awaited))):
            self._update_evidence(name)

    def rebuild_evidence(self) -> None:
        """Compute the evidence of all nodes from scratch."""
        self.evidence = dict(evidence(self.nodes, self.reports.values(), self._history))

    def is_report_valid(self, node: str) -> bool:
        """Whether the charges in the last report of ``node`` are still valid."""
        return holds(self.evidence.get(node))

    def _update_report(self, name: str) -> None:
        """Store the report of a node as the history completes it, and note the differences."""
        stored = {name: self._stored[name]} if name in self._stored else {}
        old, new = self.reports.get(name), self._history.reports(stored).get(name)
        if old is new or old == new:
            return
        if new is None:
            del self.reports[name]
        else:
            self.reports[name] = new
        self._note_pods(name, old, new)
        self._note_files(old, new)
        self._note_spec(name, old, new)

    def _note_pods(self, name: str, old: NodeReport | None, new: NodeReport | None) -> None:
        before, now = entries_by_uid(old), entries_by_uid(new)
        for uid in before.keys() | now.keys():
            if before.get(uid) != now.get(uid):
                self._changes.uids.add(uid)
                self._changes.node_specs.add(name)
            if (uid in before) != (uid in now):
                others = tuple(each for each in self.reporters.pop(uid, ()) if each != name)
                reporters = (*others, name) if uid in now else others
                if reporters:
                    self.reporters[uid] = reporters

    def _note_files(self, old: NodeReport | None, new: NodeReport | None) -> None:
        before, now = (frozenset(() if it is None else it.files) for it in (old, new))
        self._changes.uids |= {file.uid for file in before ^ now}

    def _note_spec(self, name: str, old: NodeReport | None, new: NodeReport | None) -> None:
        before, now = (None if it is None else it.full_spec for it in (old, new))
        if before != now or (old and old.spec) != (new and new.spec):
            self._changes.node_specs.add(name)
            heirs_before, heirs_now = ({} if it is None else it.heirs for it in (before, now))
            if heirs_before != heirs_now:
                self._changes.heirs = True
                self._changes.uids |= heirs_before.keys() | heirs_now.keys()

    def _update_evidence(self, name: str) -> None:
        """Compute the new evidence of a node, and note the difference."""
        before, now = self.evidence.get(name), self._evidence_of(name)
        if now is None:
            self.evidence.pop(name, None)
        else:
            self.evidence[name] = now
        self._awaited.pop(name, None)
        if now is not None and now.awaited:
            self._awaited[name] = None
        if before is None or now is None:
            is_other = before is not now
        else:
            is_other = not _is_same_or_advanced(before, now)
            if (before.pods_resource_version or 0) < (now.pods_resource_version or 0):
                self._changes.advanced.add(name)
        if is_other:
            self._changes.nodes.add(name)
            self._changes.node_specs.add(name)

    def _evidence_of(self, name: str) -> NodeEvidence | None:
        node, report = self.nodes.get(name), self.reports.get(name)
        nodes = {} if node is None else {name: node}
        return evidence(nodes, () if report is None else (report,), self._history).get(name)


def entries_by_uid(report: NodeReport | None) -> dict[str, list[ReportedPod]]:
    """The entries of ``report`` by UID: a report may name a UID twice."""
    entries: dict[str, list[ReportedPod]] = {}
    for pod in () if report is None else report.pods:
        entries.setdefault(pod.uid, []).append(pod)
    return entries


def _is_same_or_advanced(before: NodeEvidence, now: NodeEvidence) -> bool:
    """Whether ``now`` differs from ``before`` at most by a higher ``pods_resource_version``.

    Other live pods make no difference here: the report's entries show these.
    """
    first, second = before.pods_resource_version, now.pods_resource_version
    return (
        replace(before, pods_resource_version=second, live=now.live) == now
        and (first is None) == (second is None)
        and (first or 0) <= (second or 0)
    )
