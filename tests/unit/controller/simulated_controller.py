"""A controller for ``test_charges_machine``: the real count, from late copies of the objects."""

from __future__ import annotations

from dataclasses import replace

from hugetlb_quota.accounting.attribution import Attribution, read_lines
from hugetlb_quota.accounting.forest import Forest
from hugetlb_quota.accounting.recount import recount, tally
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.controller.counting.count import Count
from hugetlb_quota.controller.counting.node_history import NodeHistory, evidence, heirs
from hugetlb_quota.controller.counting.nodes import NodeReport, NodeSpec
from hugetlb_quota.controller.counting.snapshot import Snapshot
from hugetlb_quota.controller.writing.node_spec import Succession, wanted_spec
from tests.unit.controller.simulated_cluster import NODES, ApiServer, Status, is_charged


class Controller:
    """The memory of one leader. Each method see_* or list_* copies one kind of object."""

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        self.census, self.history = Census(), NodeHistory()
        self.pods = dict(api.pods)
        self.pods_at = self.listed_at = api.version
        self.nodes, self.nodes_at = dict(api.nodes), api.version
        for node in self.nodes.values():
            self.history.node_changed(None, node, 0)
        self.report_objects: dict[str, NodeReport] = {}
        #: By UID of a pod: the version at which the controller first read its reservation.
        self.first_seen: dict[str, int] = {}
        self.see_reports()
        self.see_quotas()

    def see_pods(self) -> None:
        for version, uid, pod in self.api.pod_events:
            if version > self.pods_at:
                before = self.pods.pop(uid, None)
                if pod is not None:
                    self.pods[uid] = pod
                self.census.pod_changed(before, pod, version)
        self.pods_at = self.api.version

    def list_pods(self) -> None:
        """List pods again. The controller misses pods that were created and deleted meanwhile."""
        before, self.pods = self.pods, dict(self.api.pods)
        self.pods_at = self.listed_at = self.api.version
        for uid in before.keys() - self.pods.keys():
            self.census.pod_changed(before[uid], None, self.api.version, missed=True)
        for uid, pod in self.pods.items():
            if before.get(uid) != pod:
                self.census.pod_changed(before.get(uid), pod, pod.resource_version, missed=True)

    def see_nodes(self) -> None:
        for version, old, new in self.api.node_events:
            if version > self.nodes_at:
                self.history.node_changed(old, new, version)
        self.nodes, self.nodes_at = dict(self.api.nodes), self.api.version

    def list_nodes(self) -> None:
        for name, node in self.api.nodes.items():
            if node != self.nodes[name]:
                self.history.node_changed(self.nodes[name], node, 0)
        self.nodes, self.nodes_at = dict(self.api.nodes), self.api.version

    def see_reports(self) -> None:
        before, self.report_objects = self.report_objects, dict(self.api.reports)
        for name in NODES:
            old, new = before.get(name), self.api.reports.get(name)
            if old != new:
                self.history.report_changed(old, new)
        self.reports = self.history.reports(self.api.reports)

    def see_quotas(self) -> None:
        self.quotas = dict(self.api.quotas)
        self.counters = [status.counter for status in self.api.statuses.values()]
        for counter in self.counters:
            for line in counter.pending:
                self.first_seen.setdefault(line.uid, self.api.version)

    def recount(self, first: int, *, writes_specs: bool) -> Count:
        """Count, and write only the first quotas, as if a kill then ended the controller."""
        forest = Forest(self.quotas.values(), {})
        snapshot = Snapshot(
            Attribution(forest, heirs(self.reports.values()), read_lines(self.counters, forest)),
            self.pods.values(),
            self.pods_at,
            self.listed_at,
            evidence(self.nodes, self.reports.values(), self.history),
            self.reports,
        )
        count = self.census.count(snapshot)
        self._write_statuses(count, forest, first)
        if writes_specs:
            for report in snapshot.valid_reports():
                wanted = wanted_spec(report, count.retained, Succession(forest, ()))
                self._write_spec(report, wanted)
        return count

    def _write_statuses(self, count: Count, forest: Forest, first: int) -> None:
        totals = tally(forest, count.pods, count.retained)
        # From the leaves up, as the recounter writes.
        for name in [name for name in reversed(self.api.statuses) if name in totals][:first]:
            status = self.api.statuses[name]
            gone = {line.id for line in status.counter.pending if self._is_over(line)}
            self.api.statuses[name] = Status(
                recount(status.counter, totals[name], gone, count.identities),
                frozenset(pod.uid for pod in count.pods if is_charged(name, pod.quotas, forest)),
                {
                    each.uid: each.charge
                    for each in count.retained
                    if is_charged(name, each.quotas, forest)
                },
            )

    def _write_spec(self, report: NodeReport, wanted: NodeSpec) -> None:
        """Write the spec, unless the stored spec is newer than the copy."""
        stored = self.api.reports.get(report.node)
        if stored is not None and stored.spec == report.spec:
            self.api.reports[report.node] = replace(stored, spec=wanted)

    def _is_over(self, line: Reservation) -> bool:
        """Whether the pod was released, or the controller has seen the end of its request."""
        watched = self.first_seen.get(line.uid, self.api.version + 1) <= self.pods_at
        return self.census.was_released(line.uid) or (watched and line.uid not in self.api.pods)
