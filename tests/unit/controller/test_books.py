"""A count of the changes leaves the same charges as a count from scratch, after any changes.

The machine sends every change that informers can send, in any order, also in an impossible order.
A second census counts all objects each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.recount import tally
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.controller.counting.ledger import Ledger
from hugetlb_quota.controller.counting.nodes import (
    NodeFacts,
    NodeReport,
    NodeSpec,
    ReportedFile,
    ReportedPod,
)
from hugetlb_quota.controller.counting.store import Namespace
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.page_size import PageSize
from tests.unit.controller.simulated_informers import SimulatedInformers

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


class Comparison:
    """Counts in the books and from scratch, and compares the charges."""

    def __init__(self, informers: SimulatedInformers) -> None:
        self.informers, self.books = informers, informers.books
        #: What the status of each quota depended on at the last count.
        self.last: dict[QuotaKey, object] = {}

    def count(self) -> None:
        scope = self.books.count(self.informers.version, self.informers.listed_at)
        snapshot = self.informers.snapshot()
        forest = snapshot.attribution.forest
        count = self.informers.census.count(snapshot)
        scratch = Ledger()
        scratch.use_forest(forest)
        scratch.update(None, count)
        assert self.books.ledger.differences(scratch) == []
        totals = tally(forest, count.pods, count.retained, count.files)
        now: dict[QuotaKey, object] = {}
        for key, total in totals.items():
            kept = self.books.ledger.tally(key)
            assert kept.pods == total.pods.without_zeros()
            assert kept.retained == total.retained.without_zeros()
            assert kept.files == total.files
            assert dict(kept.seen) == total.seen
            now[key] = self.inputs_of_status(key, total.seen)
        different = {key for key in now if key not in self.last or now[key] != self.last[key]}
        assert different <= scope.quotas
        self.last = now

    def inputs_of_status(self, key: QuotaKey, seen: Mapping[str, int]) -> object:
        """All values that a quota's status depends on."""
        ledger, quota = self.books.ledger, self.informers.quotas[key]
        forest = self.books.input.forest
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


class ChangedObjects(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.informers = SimulatedInformers()
        self.comparison = Comparison(self.informers)

    # Pods

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
        if (before := self.informers.pods.get(uid)) is not None:
            namespace, demand = before.namespace, before.demand
        where = before.node if before is not None and before.node else node if state else None
        pod = Pod(uid, namespace, f"name-of-{uid}", 0, labels, where, state == 3, demand=demand)
        self.informers.set_pod(uid, pod)

    @rule(uid=UIDS, missed=st.booleans())
    def a_pod_is_deleted(self, uid: str, missed: bool) -> None:
        if uid in self.informers.pods:
            self.informers.set_pod(uid, None, missed=missed)

    @rule()
    def pods_are_listed_again(self) -> None:
        self.informers.list_pods()

    # Quotas

    @rule(
        key=KEYS,
        parent=st.none() | KEYS,
        attached_to=st.none() | KEYS,
        selector=SELECTORS,
        children=st.none() | st.just({}) | st.just({"matchLabels": {"tenant": "acme"}}),
        terminating=st.booleans(),
    )
    def a_quota_is_written(self, key: QuotaKey, **spec: Any) -> None:
        before = self.informers.quotas.get(key)
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
        self.informers.set_quota(quota, counter)

    @rule(key=KEYS, again=st.booleans())
    def a_quota_is_deleted(self, key: QuotaKey, again: bool) -> None:
        if (before := self.informers.quotas.get(key)) is not None:
            self.informers.delete_quota(key)
            if again:
                uid = f"uid-{self.informers.version}-of-{key}"
                self.informers.set_quota(replace(before.quota, uid=uid), before.counter)

    @rule(
        key=KEYS,
        uid=UIDS | KEYS.map(lambda key: f"uid-of-{key}"),
        charge=CHARGES,
        request=st.sampled_from(["one", "two"]),
        counted=st.sampled_from(["", "-", "?", "n", "m"]),
        ends=st.booleans(),
    )
    def a_line_changes(self, key: QuotaKey, uid: str, ends: bool, **words: Any) -> None:
        if (before := self.informers.quotas.get(key)) is None:
            return
        if uid.startswith("uid-of-"):
            words["counted"] = ""  # a quota that moves is not a pod
        line = Reservation(
            uid,
            f"red/name-of-{uid}",
            words["charge"],
            START + timedelta(seconds=self.informers.version),
            words["request"],
            counted=words["counted"],
        )
        counter = before.counter.release(line.id) if ends else before.counter.charge(line)
        self.informers.set_quota(before.quota, counter)

    @rule(name=NAMESPACES, labels=st.sampled_from([{}, {"tenant": "acme"}]), leaving=st.booleans())
    def a_namespace_changes(self, name: str, labels: dict[str, str], leaving: bool) -> None:
        self.informers.set_namespace(Namespace(name, labels, leaving))

    # Nodes

    @rule(name=NODES, boot=st.integers(0, 2), off=st.booleans(), listed=st.booleans())
    def a_node_is_seen(self, name: str, boot: int, off: bool, listed: bool) -> None:
        self.informers.version += 1
        boot_id = f"boot-{boot}" if boot else ""
        node = NodeFacts(name, boot_id, off, self.informers.version)
        self.informers.set_node(name, node, listed=listed)

    @rule(seconds=st.sampled_from([100, 700]))
    def time_passes(self, seconds: int) -> None:
        self.informers.time += seconds

    @rule(name=NODES, listed=st.booleans())
    def a_node_is_deleted(self, name: str, listed: bool) -> None:
        if name in self.informers.nodes:
            self.informers.set_node(name, None, listed=listed)

    @rule(name=NODES, boot=st.integers(1, 2), back=st.integers(0, 30))
    def an_agent_reports(self, name: str, boot: int, back: int) -> None:
        before = self.informers.reports.get(name, NodeReport(name, None, None, 0))
        seen = max(1, self.informers.version - max(0, back - 10))
        self.informers.set_report(
            name, replace(before, boot_id=f"boot-{boot}", pods_resource_version=seen)
        )

    @rule(name=NODES)
    def an_agent_sees_more(self, name: str) -> None:
        if (before := self.informers.reports.get(name)) is not None:
            report = replace(before, pods_resource_version=self.informers.version)
            self.informers.set_report(name, report)

    @rule(uid=UIDS, namespace=NAMESPACES)
    def a_pod_ends_before_its_node_reports(self, uid: str, namespace: str) -> None:
        """A usual sequence, so that a report can release a pod."""
        version = self.informers.version
        self.informers.set_node("n", NodeFacts("n", "boot-1", False, version))
        self.informers.set_report("n", NodeReport("n", None, "boot-1", version))
        if uid not in self.informers.pods:
            demand = Charge({SMALL: SMALL.bytes})
            pod = Pod(uid, namespace, f"name-of-{uid}", 0, {}, "n", demand=demand)
            self.informers.set_pod(uid, pod)
            self.informers.set_pod(uid, None)
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
        first = NodeReport(name, None, "boot-1", self.informers.version)
        before = self.informers.reports.get(name, first)
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
        self.informers.set_report(name, replace(before, pods=rest if ends else (*rest, made)))

    @rule(name=NODES, uid=UIDS, pages=st.integers(0, 3))
    def a_report_has_a_file(self, name: str, uid: str, pages: int) -> None:
        if (before := self.informers.reports.get(name)) is not None:
            rest = tuple(each for each in before.files if each.uid != uid)
            file = ReportedFile(uid, f"/dev/hugepages/{uid}", SMALL, pages * SMALL.bytes)
            self.informers.set_report(name, replace(before, files=(*rest, file) if pages else rest))

    @rule(name=NODES, uid=UIDS, quotas=st.none() | st.frozensets(KEYS, max_size=2))
    def heirs_are_read_back(self, name: str, uid: str, quotas: frozenset[QuotaKey] | None) -> None:
        if (before := self.informers.reports.get(name)) is not None:
            named = {pod: payers for pod, payers in before.spec.heirs.items() if pod != uid}
            if quotas is not None:
                named[uid] = quotas
            self.informers.set_report(name, replace(before, spec=NodeSpec({}, named)))

    @rule(name=NODES)
    def a_report_is_deleted(self, name: str) -> None:
        if name in self.informers.reports:
            self.informers.set_report(name, None)

    @rule()
    def a_count_is_made(self) -> None:
        self.comparison.count()

    def teardown(self) -> None:
        self.comparison.count()
        self.comparison.count()
        assert self.informers.books.check(self.informers.version)


TestChangedObjects = ChangedObjects.TestCase
TestChangedObjects.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
