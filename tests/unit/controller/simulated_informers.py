"""Informers for ``test_books``: the test sets each object, and the informers send the change."""

from __future__ import annotations

from dataclasses import replace

from hugetlb_quota.accounting.attribution import Attribution, read_lines
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.controller.counting.books import Books
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.controller.counting.node_history import NodeHistory, evidence, heirs
from hugetlb_quota.controller.counting.nodes import NodeFacts, NodeReport
from hugetlb_quota.controller.counting.snapshot import Snapshot
from hugetlb_quota.controller.counting.store import Namespace
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import QuotaObject


class SimulatedInformers:
    """The newest objects. Each change goes to the books, and to a census that counts everything.

    ``version``: the newest resourceVersion. ``listed_at``: the version of the last list of pods.
    """

    def __init__(self) -> None:
        self.time = 0.0
        self.books, self.census = Books(lambda: self.time), Census()
        self.history = NodeHistory(lambda: self.time)
        self.version = self.listed_at = 10
        self.pods: dict[str, Pod] = {}
        self.quotas: dict[QuotaKey, QuotaObject] = {}
        self.nodes: dict[str, NodeFacts] = {}
        self.reports: dict[str, NodeReport] = {}
        self.namespaces: dict[str, Namespace] = {}

    def set_pod(self, uid: str, new: Pod | None, *, missed: bool = False) -> None:
        self.version += 1
        old = self.pods.pop(uid, None)
        if new is not None:
            new = replace(new, resource_version=self.version)
            self.pods[uid] = new
        for census in (self.books.census, self.census):
            census.pod_changed(old, new, self.version, missed=missed)
        self.books.store.pod_changed(old, new)

    def list_pods(self) -> None:
        self.version += 1
        self.listed_at = self.version

    def set_quota(self, quota: Quota, counter: Counter) -> None:
        old = self.quotas.pop(quota.key, None)
        self.version += 1
        version = str(self.version)
        new = QuotaObject(quota.key, quota.uid, version, quota.generation, quota, counter)
        self.quotas[quota.key] = new
        self.books.store.quota_changed(old, new)

    def delete_quota(self, key: QuotaKey) -> None:
        self.books.store.quota_changed(self.quotas.pop(key), None)

    def set_namespace(self, new: Namespace) -> None:
        old = self.namespaces.get(new.name)
        self.namespaces[new.name] = new
        self.books.store.namespace_changed(old, new)

    def set_node(self, name: str, new: NodeFacts | None, *, listed: bool = False) -> None:
        old = self.nodes.pop(name, None)
        if new is not None:
            self.nodes[name] = new
        version = 0 if listed else self.version
        self.history.node_changed(old, new, version)
        self.books.store.nodes.node_changed(old, new, version)

    def set_report(self, name: str, new: NodeReport | None) -> None:
        old = self.reports.pop(name, None)
        if new is not None:
            self.reports[name] = new
        self.history.report_changed(old, new)
        self.books.store.nodes.report_changed(old, new)

    def snapshot(self) -> Snapshot:
        """The objects for a count from scratch."""
        labels = {name: each.labels for name, each in self.namespaces.items()}
        forest = Forest((each.quota for each in self.quotas.values()), labels)
        counters = [each.counter for each in self.quotas.values()]
        reports = dict(sorted(self.history.reports(self.reports).items()))
        return Snapshot(
            Attribution(forest, heirs(reports.values()), read_lines(counters, forest)),
            self.pods.values(),
            self.version,
            self.listed_at,
            evidence(self.nodes, reports.values(), self.history),
            reports,
        )
