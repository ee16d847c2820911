"""What is remembered of nodes: which boots they had, and reports whose objects were deleted."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.controller.census import Census
from hugetlb_quota.controller.node_history import AWAITED_FOR, NodeHistory, evidence, heirs
from hugetlb_quota.controller.node_wishes import Succession, wishes
from hugetlb_quota.controller.nodes import NodeFacts, NodeReport, NodeWishes
from tests.unit.controller.test_census import (
    FOREST,
    GONE,
    LINE,
    POD,
    deleted,
    kept,
    report,
    snapshot,
    uids,
)

NODE = NodeFacts("worker", "boot", out_of_service=False, version=3)
TENANT = frozenset({QuotaKey("ns", "tenant")})
TOLD = replace(report(11, GONE), wishes=NodeWishes({"uid": timedelta(minutes=1)}, {"uid": TENANT}))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def seen(*, clock: Clock | None = None, told: NodeReport | None = None) -> NodeHistory:
    history = NodeHistory(clock or Clock())
    history.node_changed(None, NODE, 3)
    if told is not None:
        history.report_changed(None, told)
    return history


# Boots


def boots(history: NodeHistory) -> tuple[int | None, list[str]]:
    return history.booted_at("worker"), sorted(history.former_boots("worker"))


def test_a_boot_is_known_when_the_node_was_seen_with_another() -> None:
    history = seen()
    assert boots(history) == (None, [])
    history.node_changed(NODE, replace(NODE, boot_id="new"), 8)
    assert boots(history) == (8, ["boot"])
    history.node_changed(NODE, replace(NODE, boot_id=""), 9)
    assert history.former_boots("worker") == {"boot"}
    history.node_changed(NODE, replace(NODE, boot_id="third"), 10)
    assert boots(history) == (10, ["boot", "new"])


def test_when_a_boot_was_missed_the_last_look_before_it_counts() -> None:
    history = seen()
    history.node_changed(NODE, replace(NODE, boot_id="new", version=8), 0)
    assert history.booted_at("worker") == 3


def test_a_node_made_anew_under_its_name_has_booted_if_it_runs_another_kernel() -> None:
    history = seen(told=TOLD)
    history.node_changed(NODE, None, 5)
    history.node_changed(None, replace(NODE, boot_id="new", version=8), 8)
    assert boots(history) == (8, ["boot"])


def test_of_a_node_that_went_with_its_report_nothing_is_remembered() -> None:
    history = seen(told=TOLD)
    history.node_changed(NODE, None, 5)
    history.report_changed(TOLD, None)
    assert history == NodeHistory(history.clock)
    alone = seen()
    alone.node_changed(NODE, None, 5)
    assert alone == NodeHistory(alone.clock)


# A report that was deleted


def test_what_a_deleted_report_told_holds_while_its_node_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    history = seen(told=TOLD)
    history.report_changed(TOLD, None)
    assert "HugeTLBNode worker was deleted, and its Node is there" in caplog.text
    reports = history.reports({})
    assert reports == {"worker": TOLD}
    held = deleted()
    assert uids(held.count(snapshot(*reports.values(), history=history))) == {"uid"}
    # Until its Node goes too.
    history.node_changed(NODE, None, 5)
    assert history.reports({}) == {}


def test_heirs_of_a_deleted_object_are_written_into_the_one_that_follows() -> None:
    history = seen(told=TOLD)
    for _ in range(2):  # it is deleted once more before they are
        history.report_changed(TOLD, None)
        assert heirs(history.reports({}).values()) == {("worker", "uid"): TENANT}
        anew = replace(TOLD, wishes=NodeWishes())
        history.report_changed(None, anew)
        now = history.reports({"worker": anew})["worker"]
        assert heirs([now]) == {("worker", "uid"): TENANT}
        assert now.wishes == NodeWishes()
        assert wishes(now, (), Succession(FOREST, ())) == TOLD.wishes
        history.report_changed(anew, None)
        history.report_changed(None, TOLD)
    # What is stored since holds before it; and of pods that the report does not name, nothing is.
    other = replace(TOLD, wishes=NodeWishes({}, {"uid": frozenset()}))
    history.report_changed(TOLD, None)
    history.report_changed(None, other)
    assert heirs(history.reports({"worker": other}).values()) == {("worker", "uid"): frozenset()}
    empty = replace(anew, pods=())
    assert heirs(history.reports({"worker": empty}).values()) == {}


# A node whose agent may not have begun


def test_who_a_pod_was_is_kept_until_the_first_report_of_its_node_may_have_come() -> None:
    clock, census = Clock(), Census()
    history = seen(clock=clock)
    running = census.count(snapshot(pods=(POD,), history=history))
    assert kept(running)["uid"].counted == "worker"
    census.pod_changed(None, POD, 10)
    census.pod_changed(POD, None, 12)
    # It is charged no more, as nobody may ever tell of it; its line stays, read late or not.
    for lines in ((LINE,), (LINE,), (LINE.as_identity("worker"),)):
        ended = census.count(snapshot(lines=lines, history=history))
        assert (ended.pods, ended.retained) == ((), ())
        assert kept(ended)["uid"].counted == "worker"
    line = LINE.as_identity("worker")
    # Another controller knows nothing but the line.
    assert kept(Census().count(snapshot(lines=(line,), history=history)))["uid"].counted == "worker"
    told = replace(GONE, namespace="", name="")
    (left,) = census.count(snapshot(report(12, told), lines=(line,), history=history)).retained
    assert left.quotas
    clock.now += AWAITED_FOR
    late = census.count(snapshot(lines=(line,), history=history))
    assert kept(late) == {}
    assert late.identities.settled == {"uid"}


def test_a_node_is_awaited_anew_when_it_comes_anew_and_not_once_it_has_reported() -> None:
    clock = Clock()
    history = seen(clock=clock, told=TOLD)
    assert not evidence({"worker": NODE}, [TOLD], history)["worker"].awaited
    clock.now += AWAITED_FOR
    assert not evidence({"worker": NODE}, [], history)["worker"].awaited
    history.node_changed(NODE, None, 5)
    history.node_changed(None, NODE, 6)
    assert evidence({"worker": NODE}, [], history)["worker"].awaited
