"""A count of what changed leaves the same charges as a count from scratch, whatever changed.

The machine sends every change that informers can send, in any order, also in an impossible order.
A second census counts everything each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from hugetlb_quota.accounting.attribution import Attribution, read_lines
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import tally
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.controller.counting.books import Books
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.controller.counting.ledger import Ledger
from hugetlb_quota.controller.counting.node_history import NodeHistory, evidence, heirs
from hugetlb_quota.controller.counting.nodes import (
    NodeFacts,
    NodeReport,
    NodeSpec,
    ReportedFile,
    ReportedPod,
)
from hugetlb_quota.controller.counting.snapshot import Snapshot
from hugetlb_quota.controller.counting.store import Namespace
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.page_size import PageSize

SMALL, LARGE = PageSize(2 << 20), PageSize(1 << 30)
START = datetime(2030, 1, 1, tzinfo=UTC)
NODES = st.sampled_from(["n", "m"])
NAMESPACES = st.sampled_from(["red", "blue"])
UIDS = st.sampled_from([f"uid-{number}" for number in range(6)])
LABELS = st.sampled_from([{}, {"team": "a"}, {"team": "b"}])
SELECTORS = st.sampled_from([{}, {"matchLabels": {"team": "a"}}, {"matchLabels": {"team": "b"}}])
KEYS = st.builds(QuotaKey, NAMESPACES, st.sampled_from(["root", "left", "right", "leaf"]))
CHARGES = st.builds(
    lambda small, large: Charge({SMALL: small * SMALL.bytes, LARGE: large * LARGE.bytes}),
    st.integers(0, 2),
    st.integers(0, 1),
)


class Changing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.books, self.census = Books(lambda: self.time), Census()
        self.history = NodeHistory(lambda: self.time)
        self.version = self.listed_at = 10
        self.pods: dict[str, Pod] = {}
        self.quotas: dict[QuotaKey, QuotaObject] = {}
        self.nodes: dict[str, NodeFacts] = {}
        self.reports: dict[str, NodeReport] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.last: Mapping[QuotaKey, object] = {}

    # Pods

    def pod_becomes(self, uid: str, new: Pod | None, *, missed: bool = False) -> None:
        self.version += 1
        old = self.pods.pop(uid, None)
        if new is not None:
            new = replace(new, resource_version=self.version)
            self.pods[uid] = new
        for census in (self.books.census, self.census):
            census.pod_changed(old, new, self.version, missed=missed)
        self.books.store.pod_changed(old, new)

    @rule(
        uid=UIDS,
        namespace=NAMESPACES,
        labels=LABELS,
        demand=CHARGES,
        node=NODES,
        state=st.integers(0, 3),
    )
    def a_pod_is_seen(
        self,
        uid: str,
        namespace: str,
        labels: dict[str, str],
        demand: Charge,
        node: str,
        state: int,
    ) -> None:
        if (before := self.pods.get(uid)) is not None:
            namespace, demand = before.namespace, before.demand
        where = before.node if before is not None and before.node else node if state else None
        pod = Pod(uid, namespace, f"name-of-{uid}", 0, labels, where, state == 3, demand=demand)
        self.pod_becomes(uid, pod)

    @rule(uid=UIDS, missed=st.booleans())
    def a_pod_is_deleted(self, uid: str, missed: bool) -> None:
        if uid in self.pods:
            self.pod_becomes(uid, None, missed=missed)

    @rule()
    def pods_are_listed_again(self) -> None:
        self.version += 1
        self.listed_at = self.version

    # Quotas

    def quota_becomes(self, key: QuotaKey, quota: Quota | None, counter: Counter | None) -> None:
        old = self.quotas.pop(key, None)
        new = None
        if quota is not None and counter is not None:
            self.version += 1
            new = QuotaObject(key, quota.uid, str(self.version), quota.generation, quota, counter)
            self.quotas[key] = new
        self.books.store.quota_changed(old, new)

    @rule(
        key=KEYS,
        parent=st.none() | KEYS,
        attached_to=st.none() | KEYS,
        selector=SELECTORS,
        children=st.none() | st.just({}) | st.just({"matchLabels": {"tenant": "acme"}}),
        terminating=st.booleans(),
    )
    def a_quota_is_written(self, key: QuotaKey, **spec: Any) -> None:
        before = self.quotas.get(key)
        children = spec["children"]
        quota = Quota(
            key,
            parent=spec["parent"],
            pod_selector=Selector.from_json(spec["selector"]),
            child_namespaces=None if children is None else Selector.from_json(children),
            terminating=spec["terminating"],
            uid=f"uid-of-{key}" if before is None else before.uid,
            generation=1 if before is None else before.generation + 1,
            attached_to=spec["attached_to"],
        )
        counter = Counter(key, Charge()) if before is None else before.counter
        self.quota_becomes(key, quota, counter)

    @rule(key=KEYS, again=st.booleans())
    def a_quota_is_deleted(self, key: QuotaKey, again: bool) -> None:
        if (before := self.quotas.get(key)) is not None:
            self.quota_becomes(key, None, None)
            if again:
                self.quota_becomes(
                    key, replace(before.quota, uid=f"uid-{self.version}-of-{key}"), before.counter
                )

    @rule(
        key=KEYS,
        uid=UIDS | KEYS.map(lambda key: f"uid-of-{key}"),
        charge=CHARGES,
        request=st.sampled_from(["one", "two"]),
        counted=st.sampled_from(["", "-", "?", "n", "m"]),
        ends=st.booleans(),
    )
    def a_line_changes(self, key: QuotaKey, uid: str, ends: bool, **words: Any) -> None:
        if (before := self.quotas.get(key)) is None:
            return
        if uid.startswith("uid-of-"):
            words["counted"] = ""  # a quota that moves is not a pod
        line = Reservation(
            uid,
            f"red/name-of-{uid}",
            words["charge"],
            START + timedelta(seconds=self.version),
            words["request"],
            counted=words["counted"],
        )
        counter = before.counter.release(line.id) if ends else before.counter.charge(line)
        self.quota_becomes(key, before.quota, counter)

    @rule(name=NAMESPACES, labels=st.sampled_from([{}, {"tenant": "acme"}]), leaving=st.booleans())
    def a_namespace_changes(self, name: str, labels: dict[str, str], leaving: bool) -> None:
        old = self.namespaces.get(name)
        self.namespaces[name] = Namespace(name, labels, leaving)
        self.books.store.namespace_changed(old, self.namespaces[name])

    # Nodes

    @rule(name=NODES, boot=st.integers(0, 2), off=st.booleans(), listed=st.booleans())
    def a_node_is_seen(self, name: str, boot: int, off: bool, listed: bool) -> None:
        self.version += 1
        self.node_becomes(
            name, NodeFacts(name, f"boot-{boot}" if boot else "", off, self.version), listed
        )

    @rule(seconds=st.sampled_from([100, 700]))
    def time_passes(self, seconds: int) -> None:
        self.time += seconds

    @rule(name=NODES, listed=st.booleans())
    def a_node_is_deleted(self, name: str, listed: bool) -> None:
        if name in self.nodes:
            self.node_becomes(name, None, listed)

    def node_becomes(self, name: str, new: NodeFacts | None, listed: bool) -> None:
        old = self.nodes.pop(name, None)
        if new is not None:
            self.nodes[name] = new
        version = 0 if listed else self.version
        self.history.node_changed(old, new, version)
        self.books.store.nodes.node_changed(old, new, version)

    def report_becomes(self, name: str, new: NodeReport | None) -> None:
        old = self.reports.pop(name, None)
        if new is not None:
            self.reports[name] = new
        self.history.report_changed(old, new)
        self.books.store.nodes.report_changed(old, new)

    @rule(name=NODES, boot=st.integers(1, 2), back=st.integers(0, 30))
    def an_agent_reports(self, name: str, boot: int, back: int) -> None:
        before = self.reports.get(name, NodeReport(name, None, None, 0))
        seen = max(1, self.version - max(0, back - 10))
        self.report_becomes(
            name, replace(before, boot_id=f"boot-{boot}", pods_resource_version=seen)
        )

    @rule(name=NODES)
    def an_agent_sees_more(self, name: str) -> None:
        if (before := self.reports.get(name)) is not None:
            self.report_becomes(name, replace(before, pods_resource_version=self.version))

    @rule(uid=UIDS, namespace=NAMESPACES)
    def a_pod_ends_before_its_node_reports(self, uid: str, namespace: str) -> None:
        """A usual sequence, so that a report can release a pod."""
        self.node_becomes("n", NodeFacts("n", "boot-1", False, self.version), listed=False)
        self.report_becomes("n", NodeReport("n", None, "boot-1", self.version))
        if uid not in self.pods:
            demand = Charge({SMALL: SMALL.bytes})
            self.pod_becomes(uid, Pod(uid, namespace, f"name-of-{uid}", 0, {}, "n", demand=demand))
            self.pod_becomes(uid, None)
            self.a_count_is_made()

    @rule(
        name=NODES,
        uid=UIDS,
        namespace=NAMESPACES | st.just(""),
        labels=LABELS,
        live=st.booleans(),
        charged=CHARGES,
        demand=CHARGES,
        ends=st.booleans(),
    )
    def a_report_has_an_entry(self, name: str, uid: str, ends: bool, **entry: Any) -> None:
        before = self.reports.get(name, NodeReport(name, None, "boot-1", self.version))
        rest = tuple(each for each in before.pods if each.uid != uid)
        namespace = entry["namespace"]
        made = ReportedPod(
            uid,
            namespace,
            f"name-of-{uid}" if namespace else "",
            entry["labels"] if namespace else {},
            entry["live"],
            entry["charged"],
            entry["demand"],
        )
        self.report_becomes(name, replace(before, pods=rest if ends else (*rest, made)))

    @rule(name=NODES, uid=UIDS, pages=st.integers(0, 3))
    def a_report_has_a_file(self, name: str, uid: str, pages: int) -> None:
        if (before := self.reports.get(name)) is not None:
            rest = tuple(each for each in before.files if each.uid != uid)
            file = ReportedFile(uid, f"/dev/hugepages/{uid}", SMALL, pages * SMALL.bytes)
            self.report_becomes(name, replace(before, files=(*rest, file) if pages else rest))

    @rule(name=NODES, uid=UIDS, quotas=st.none() | st.frozensets(KEYS, max_size=2))
    def heirs_are_read_back(self, name: str, uid: str, quotas: frozenset[QuotaKey] | None) -> None:
        if (before := self.reports.get(name)) is not None:
            named = {who: it for who, it in before.spec.heirs.items() if who != uid}
            if quotas is not None:
                named[uid] = quotas
            self.report_becomes(name, replace(before, spec=NodeSpec({}, named)))

    @rule(name=NODES)
    def a_report_is_deleted(self, name: str) -> None:
        if name in self.reports:
            self.report_becomes(name, None)

    # The count

    @rule()
    def a_count_is_made(self) -> None:
        scope = self.books.count(self.version, self.listed_at)
        labels = {name: each.labels for name, each in self.namespaces.items()}
        forest = Forest((each.quota for each in self.quotas.values()), labels)
        counters = [each.counter for each in self.quotas.values()]
        reports = dict(sorted(self.history.reports(self.reports).items()))
        snapshot = Snapshot(
            Attribution(forest, heirs(reports.values()), read_lines(counters, forest)),
            self.pods.values(),
            self.version,
            self.listed_at,
            evidence(self.nodes, reports.values(), self.history),
            reports,
        )
        count = self.census.count(snapshot)
        scratch = Ledger()
        scratch.use_forest(forest)
        scratch.update(None, count)
        assert self.books.ledger.differences(scratch) == []
        totals = tally(forest, count.pods, count.retained, count.files)
        now: dict[QuotaKey, object] = {}
        for key, total in totals.items():
            mine = self.books.ledger.tally(key)
            assert mine.pods == total.pods.without_zeros()
            assert mine.retained == total.retained.without_zeros()
            assert mine.files == total.files
            assert dict(mine.seen) == total.seen
            now[key] = self.inputs_of_status(key, total.seen)
        different = {key for key in now if key not in self.last or now[key] != self.last[key]}
        assert different <= scope.quotas
        self.last = now

    def inputs_of_status(self, key: QuotaKey, seen: Mapping[str, int]) -> object:
        """All values that a quota's status depends on."""
        ledger, quota, forest = self.books.ledger, self.quotas[key], self.books.input.forest
        identities = ledger.identities
        above = [(link.key, link.hard, link.terminating) for link in forest.attached(key)]
        return (
            {size: ledger.tally(key).pods.of(size) for size in (SMALL, LARGE)},
            {size: ledger.tally(key).retained.of(size) for size in (SMALL, LARGE)},
            ledger.tally(key).files,
            {(held.pod.uid, held.nodes) for held in ledger.held(key)},
            above,
            quota.quota,
            quota.counter,
            [
                (seen.get(line.uid), identities.kept.get(line.uid), line.uid in identities.unneeded)
                for line in quota.counter.reservations
            ],
        )

    def teardown(self) -> None:
        self.a_count_is_made()
        self.a_count_is_made()
        assert self.books.check(self.version)


TestChanging = Changing.TestCase
TestChanging.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
