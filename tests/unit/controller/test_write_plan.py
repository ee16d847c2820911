"""Which objects the planner plans to write: after changes, after failures, and after a time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.controller.counting.books import Books
from hugetlb_quota.controller.counting.nodes import NodeFacts, NodeReport, NodeSpec, ReportedPod
from hugetlb_quota.controller.counting.unread import UnreadCharges
from hugetlb_quota.controller.informers import Informers
from hugetlb_quota.controller.writing.write_plan import (
    CHECK_PERIOD,
    PENDING_PERIOD,
    SILENT_AFTER,
    WritePlan,
    WritePlanner,
)
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import QuotaObject

KEY, OTHER = QuotaKey("ns", "q"), QuotaKey("ns", "other")
CHARGE = Charge.from_resources({"hugepages-2Mi": "2Mi"})
MINUTE = timedelta(minutes=1)
LINE = Reservation("uid", "other/pod", CHARGE, datetime(2030, 1, 1, tzinfo=UTC), "request")
NODE = NodeFacts("worker", "boot", out_of_service=False)
REPORT = NodeReport("worker", None, "boot", 9)
ENDED = Pod("uid", "ns", "pod", 10, {}, "worker", finished=True, demand=CHARGE)
GONE = ReportedPod("gone", "ns", "gone", {}, live=False, charged=CHARGE)


@dataclass
class FakeInformers:
    ages: dict[str, float] = field(default_factory=dict)
    resource_version: int = 12
    listed_at: int = 1

    @property
    def pods(self) -> FakeInformers:
        return self

    @property
    def report_ages(self) -> dict[str, float]:
        return self.ages

    def forget_reports(self, kept: Iterable[str]) -> None:
        self.ages = {name: self.ages.get(name, 0.0) for name in kept}


class Bench:
    """A planner that has made its first plan. One of its two quotas has a reservation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.books, self.informers = Books(), FakeInformers()
        informers = cast(Informers, self.informers)
        self.planner = WritePlanner(self.books, informers, UnreadCharges(), lambda _: math.inf)
        for key, lines in ((KEY, ()), (OTHER, (LINE,))):
            quota = Quota(key, uid=key.name, reclaim_after=MINUTE)
            counter = Counter(key, NOTHING, reservations=lines)
            self.books.store.quota_changed(None, QuotaObject(key, key.name, "5", 1, quota, counter))
        self.planner.plan()

    def planned(self) -> set[QuotaKey]:
        return {quota.key for quota in self.planner.plan().quotas}

    def report(self, old: NodeReport | None, new: NodeReport) -> None:
        self.books.store.nodes.report_changed(old, new)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_without_changes_nothing_is_planned(bench: Bench) -> None:
    assert bench.planned() == set()


def test_a_failed_write_is_planned_again_once(bench: Bench) -> None:
    bench.planner.retry_quotas.add(KEY)
    assert bench.planned() == {KEY}
    assert bench.planned() == set()


def test_quotas_with_reservations_are_planned_from_time_to_time(bench: Bench) -> None:
    bench.now += PENDING_PERIOD
    assert bench.planned() == {OTHER}
    assert bench.planned() == set()


def held(bench: Bench) -> WritePlan:
    """The plan after the end of a pod that its node has not seen."""
    bench.books.store.nodes.node_changed(None, NODE, 3)
    bench.report(None, REPORT)
    bench.books.store.pod_changed(None, ENDED)
    return bench.planner.plan()


def test_a_node_becomes_silent_for_the_quotas_with_held_pods(bench: Bench) -> None:
    assert held(bench).silent == frozenset()
    bench.informers.ages["worker"] = SILENT_AFTER
    plan = bench.planner.plan()
    assert plan.silent == {"worker"}
    assert {quota.key for quota in plan.quotas} == {KEY, OTHER}
    assert bench.planned() == set()


def test_a_report_that_leaves_out_pods_is_planned_for_quotas_with_held_pods(bench: Bench) -> None:
    held(bench)
    bench.report(REPORT, replace(REPORT, pods_left_out=True))
    plan = bench.planner.plan()
    assert plan.leaving_out == {"worker"}
    assert {quota.key for quota in plan.quotas} == {KEY, OTHER}


def test_a_new_spec_is_planned_until_the_report_shows_it(bench: Bench) -> None:
    held(bench)
    reported = replace(REPORT, pods=(GONE,))
    bench.report(REPORT, reported)
    wanted = NodeSpec(reclaim={"gone": MINUTE})
    assert bench.planner.plan().node_specs == ((reported, wanted),)
    bench.planner.retry_nodes.add("worker")
    assert bench.planner.plan().node_specs == ((reported, wanted),)
    bench.report(reported, replace(reported, spec=wanted))
    assert bench.planner.plan().node_specs == ()


def test_the_spec_of_a_node_that_is_off_stays(bench: Bench) -> None:
    held(bench)
    bench.books.store.nodes.node_changed(NODE, replace(NODE, out_of_service=True), 13)
    stored = NodeSpec(reclaim={"gone": MINUTE})
    bench.report(REPORT, replace(REPORT, pods=(GONE,), spec=stored))
    assert bench.planner.plan().node_specs == ()


def test_a_check_waits_for_a_count_with_nothing_to_write_but_not_for_ever(bench: Bench) -> None:
    for seconds, retried, checks in (
        (CHECK_PERIOD, {KEY}, 0),
        (CHECK_PERIOD - 1, {KEY}, 0),
        (1, {KEY}, 1),
        (CHECK_PERIOD - 1, set(), 1),
        (1, set(), 2),
    ):
        bench.now += seconds
        bench.planner.retry_quotas |= retried
        bench.planned()
        assert bench.books.checks == checks
