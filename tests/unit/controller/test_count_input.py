"""The count's input: whether a count is due, what the changes may affect, and the snapshot."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.recount import Identities
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.controller.counting.changes import Scope
from hugetlb_quota.controller.counting.count import Count
from hugetlb_quota.controller.counting.count_input import CountInput
from hugetlb_quota.controller.counting.ledger import Ledger
from hugetlb_quota.controller.counting.nodes import NodeFacts, NodeReport, NodeSpec, ReportedPod
from hugetlb_quota.controller.counting.store import Namespace, Store
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import QuotaObject

ROOT, LEAF, ASIDE = (QuotaKey("ns", name) for name in ("root", "leaf", "aside"))
CHARGE = Charge.from_resources({"hugepages-2Mi": "2Mi"})
NOW = datetime(2030, 1, 1, tzinfo=UTC)
LINE = Reservation("uid", "ns/pod", CHARGE, NOW, "request")
NODE = NodeFacts("worker", "boot", out_of_service=False, version=3)
ENTRY = ReportedPod("uid", "ns", "pod", {}, live=True, charged=CHARGE)
REPORT = NodeReport("worker", NOW, "boot", 10, (ENTRY,))
NOTHING_TO_COUNT = Scope(set(), set(), set(), new_forest=False)


def quota(key: QuotaKey, parent: QuotaKey | None = None) -> QuotaObject:
    spec = Quota(key, uid=key.name, parent=parent)
    return QuotaObject(key, key.name, "5", 1, spec, Counter(key, NOTHING))


QUOTAS = {each.key: each for each in (quota(ROOT), quota(LEAF, ROOT), quota(ASIDE))}


class Bench:
    """The input of a count, with its store, census and ledger. The bench itself never counts."""

    def __init__(self) -> None:
        self.store, self.census, self.ledger = Store(lambda: 0.0), Census(), Ledger()
        for each in QUOTAS.values():
            self.store.quota_changed(None, each)
        self.store.nodes.node_changed(None, NODE, 3)
        self.store.nodes.report_changed(None, REPORT)
        self.input = CountInput(self.store)

    def scope(self, listed_at: int = 1) -> Scope:
        return self.input.scope(self.census, self.ledger, listed_at)

    def change(self, key: QuotaKey, new: QuotaObject) -> None:
        self.store.quota_changed(self.store.quotas[key], new)


@pytest.fixture
def bench() -> Bench:
    """A bench after the first scope."""
    bench = Bench()
    bench.scope()
    return bench


def wait_for_worker(ledger: Ledger) -> None:
    """Let the pod ``uid`` wait for the next report of the node."""
    waiting = {"uid": frozenset({"worker"})}
    ledger.update(None, Count((), (), (), (), Identities(), frozenset(), waiting))


def test_the_first_scope_is_everything() -> None:
    assert Bench().scope() == Scope(None, set(QUOTAS), {"worker"}, new_forest=True)


def test_without_changes_there_is_nothing_to_count(bench: Bench) -> None:
    assert not bench.input.is_count_due(bench.ledger)
    assert bench.scope() == NOTHING_TO_COUNT


def test_a_new_list_of_pods_makes_the_scope_everything(bench: Bench) -> None:
    assert bench.scope(listed_at=2).is_everything
    assert not bench.scope(listed_at=2).is_everything


def test_an_agent_that_has_seen_more_matters_only_to_pods_that_wait(bench: Bench) -> None:
    later = replace(REPORT, pods_resource_version=11)
    bench.store.nodes.report_changed(REPORT, later)
    assert not bench.input.is_count_due(bench.ledger)
    wait_for_worker(bench.ledger)
    assert bench.input.is_count_due(bench.ledger)
    assert bench.scope().uids == {"uid"}


def test_a_changed_pod_is_counted_and_its_reporter_may_need_another_spec(bench: Bench) -> None:
    bench.store.pod_changed(None, Pod("uid", "ns", "pod", 7, {}))
    assert bench.input.is_count_due(bench.ledger)
    assert bench.scope() == Scope({"uid"}, set(), {"worker"}, new_forest=False)


def test_a_new_line_is_in_the_snapshot_until_the_quota_drops_the_line(bench: Bench) -> None:
    charged = replace(QUOTAS[LEAF], counter=QUOTAS[LEAF].counter.charge(LINE))
    bench.change(LEAF, charged)
    scope = bench.scope()
    assert (scope.uids, scope.quotas) == ({"leaf", "uid"}, {LEAF})
    assert bench.input.snapshot(9, None).attribution.by_line("uid") == {LEAF}
    bench.change(LEAF, QUOTAS[LEAF])
    bench.scope()
    assert bench.input.snapshot(9, None).attribution.lines == {}


def test_a_changed_pod_affects_the_quotas_that_have_its_line(bench: Bench) -> None:
    bench.change(LEAF, replace(QUOTAS[LEAF], counter=QUOTAS[LEAF].counter.charge(LINE)))
    bench.scope()
    bench.store.pod_changed(None, Pod("uid", "ns", "pod", 7, {}))
    assert bench.scope().quotas == {LEAF}


def test_a_changed_spec_counts_the_lines_and_may_move_retained_charges(bench: Bench) -> None:
    line = replace(LINE, uid="with-line")
    bench.change(LEAF, replace(QUOTAS[LEAF], counter=QUOTAS[LEAF].counter.charge(line)))
    gone = replace(REPORT, pods=(replace(ENTRY, live=False),))
    bench.store.nodes.report_changed(REPORT, gone)
    bench.store.nodes.report_changed(None, replace(REPORT, node="only-live", pods=(ENTRY,)))
    bench.scope()
    changed = replace(QUOTAS[ASIDE], quota=replace(QUOTAS[ASIDE].quota, hard=CHARGE))
    bench.change(ASIDE, changed)
    scope = bench.scope()
    assert (scope.uids, scope.node_specs) == ({"aside", "with-line"}, {"worker"})


def test_a_changed_spec_affects_the_quotas_below(bench: Bench) -> None:
    changed = replace(QUOTAS[ROOT], quota=replace(QUOTAS[ROOT].quota, hard=CHARGE))
    bench.change(ROOT, changed)
    scope = bench.scope()
    assert (scope.quotas, scope.new_forest) == ({ROOT, LEAF}, True)
    assert bench.input.forest[ROOT].hard == CHARGE


def test_an_attachment_without_an_effect_is_no_changed_spec(bench: Bench) -> None:
    attached = replace(QUOTAS[LEAF].quota, attached_to=ROOT)
    bench.change(LEAF, replace(QUOTAS[LEAF], quota=attached))
    scope = bench.scope()
    assert (scope.quotas, scope.new_forest) == ({LEAF}, False)
    assert bench.input.forest[LEAF].attached_to == ROOT


def test_another_selector_counts_the_pods_of_the_namespace(bench: Bench) -> None:
    for uid, namespace in (("seen", "ns"), ("elsewhere", "other")):
        bench.store.pod_changed(None, Pod(uid, namespace, uid, 7, {}))
    bench.scope()
    selecting = Selector.from_json({"matchLabels": {"a": "b"}})
    changed = replace(QUOTAS[LEAF].quota, pod_selector=selecting)
    bench.change(LEAF, replace(QUOTAS[LEAF], quota=changed))
    assert bench.scope().uids == {"leaf", "seen", "uid"}


def test_a_changed_namespace_affects_its_quotas(bench: Bench) -> None:
    bench.store.namespace_changed(None, Namespace("ns", {"a": "b"}, leaving=False))
    scope = bench.scope()
    assert (scope.quotas, scope.new_forest) == (set(QUOTAS), True)


def test_other_evidence_of_a_node_counts_its_pods_and_the_lines_that_name_no_node(
    bench: Bench,
) -> None:
    bench.store.pod_changed(None, Pod("bound", "ns", "bound", 7, {}, "worker"))
    bench.store.pod_changed(None, Pod("elsewhere", "ns", "elsewhere", 7, {}, "other"))
    counter = QUOTAS[LEAF].counter
    for uid, node in (("unbound", "-"), ("on-other", "other")):
        counter = counter.charge(replace(LINE, uid=uid).as_identity(node))
    bench.change(LEAF, replace(QUOTAS[LEAF], counter=counter))
    bench.scope()
    bench.store.nodes.node_changed(NODE, replace(NODE, out_of_service=True), 4)
    assert bench.scope().uids == {"bound", "uid", "unbound"}


def test_changed_heirs_pay_in_the_next_snapshot(bench: Bench) -> None:
    inherited = replace(REPORT, spec=NodeSpec(heirs={"uid": frozenset({ASIDE})}))
    bench.store.nodes.report_changed(REPORT, inherited)
    assert bench.scope().uids == {"uid"}
    heirs = bench.input.snapshot(9, None).attribution.heirs
    assert heirs == {("worker", "uid"): {ASIDE}}


def test_a_snapshot_of_some_uids_has_only_their_pods_and_reports(bench: Bench) -> None:
    pods = [Pod(uid, "ns", uid, 7, {}) for uid in ("uid", "other")]
    for pod in pods:
        bench.store.pod_changed(None, pod)
    empty = replace(REPORT, node="a-node", pods=())
    bench.store.nodes.report_changed(None, empty)
    bench.scope()
    some = bench.input.snapshot(9, {"uid", "unknown"})
    assert (some.pods, list(some.reports)) == ([pods[0]], ["worker"])
    assert (some.seen_up_to, some.listed_at, some.uids) == (9, 1, {"uid", "unknown"})
    everything = bench.input.snapshot(9, None)
    assert (list(everything.pods), everything.uids) == (pods, None)
    assert list(everything.reports) == ["a-node", "worker"]


def test_everything_from_scratch_is_the_same(bench: Bench) -> None:
    charged = replace(QUOTAS[LEAF], counter=QUOTAS[LEAF].counter.charge(LINE))
    bench.change(LEAF, charged)
    bench.scope()
    before = bench.input.snapshot(9, None)
    bench.input.rebuild()
    after = bench.input.snapshot(9, None)
    assert after.attribution.lines == before.attribution.lines != {}
    assert set(after.attribution.forest) == set(before.attribution.forest)
    assert after.evidence == before.evidence
