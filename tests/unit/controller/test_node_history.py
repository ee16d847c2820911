"""The controller remembers the boots of nodes, and the reports of deleted objects."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.controller.counting.node_history import AWAITED_FOR, NodeHistory, evidence, heirs
from hugetlb_quota.controller.counting.nodes import NodeFacts, NodeReport, NodeSpec
from hugetlb_quota.controller.writing.node_spec import Succession, wanted_spec
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
REPORT = replace(report(11, GONE), spec=NodeSpec({"uid": timedelta(minutes=1)}, {"uid": TENANT}))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def seen(*, clock: Clock | None = None, reported: NodeReport | None = None) -> NodeHistory:
    history = NodeHistory(clock or Clock())
    history.node_changed(None, NODE, 3)
    if reported is not None:
        history.report_changed(None, reported)
    return history


# Boots


def boots(history: NodeHistory) -> tuple[int | None, list[str]]:
    return history.booted_at("worker"), sorted(history.former_boots("worker"))


def test_a_new_boot_id_is_a_boot() -> None:
    history = seen()
    assert boots(history) == (None, [])
    history.node_changed(NODE, replace(NODE, boot_id="new"), 8)
    assert boots(history) == (8, ["boot"])
    history.node_changed(NODE, replace(NODE, boot_id=""), 9)
    assert history.former_boots("worker") == {"boot"}
    history.node_changed(NODE, replace(NODE, boot_id="third"), 10)
    assert boots(history) == (10, ["boot", "new"])


def test_a_missed_boot_is_dated_at_the_last_version_seen_before_it() -> None:
    history = seen()
    history.node_changed(NODE, replace(NODE, boot_id="new", version=8), 0)
    assert history.booted_at("worker") == 3


def test_a_node_created_again_has_booted_if_its_boot_id_is_new() -> None:
    history = seen(reported=REPORT)
    history.node_changed(NODE, None, 5)
    history.node_changed(None, replace(NODE, boot_id="new", version=8), 8)
    assert boots(history) == (8, ["boot"])


def test_a_node_that_is_gone_with_its_report_is_forgotten() -> None:
    history = seen(reported=REPORT)
    history.node_changed(NODE, None, 5)
    history.report_changed(REPORT, None)
    assert history == NodeHistory(history.clock)
    alone = seen()
    alone.node_changed(NODE, None, 5)
    assert alone == NodeHistory(alone.clock)


# Deleted reports


def test_a_deleted_report_stays_in_force_while_its_node_exists(
    caplog: pytest.LogCaptureFixture,
) -> None:
    history = seen(reported=REPORT)
    history.report_changed(REPORT, None)
    assert "HugeTLBNode worker was deleted, and its Node exists" in caplog.text
    reports = history.reports({})
    assert reports == {"worker": REPORT}
    held = deleted()
    assert uids(held.count(snapshot(*reports.values(), history=history))) == {"uid"}
    # The report is no longer in force when the Node is deleted too.
    history.node_changed(NODE, None, 5)
    assert history.reports({}) == {}


def test_the_heirs_of_a_deleted_object_are_written_into_the_object_created_again() -> None:
    history = seen(reported=REPORT)
    for _ in range(2):  # the second time the object is deleted before the heirs are written
        history.report_changed(REPORT, None)
        assert heirs(history.reports({}).values()) == {("worker", "uid"): TENANT}
        again = replace(REPORT, spec=NodeSpec())
        history.report_changed(None, again)
        now = history.reports({"worker": again})["worker"]
        assert heirs([now]) == {("worker", "uid"): TENANT}
        assert now.spec == NodeSpec()
        assert wanted_spec(now, (), Succession(FOREST, ())) == REPORT.spec
        history.report_changed(again, None)
        history.report_changed(None, REPORT)
    # A stored heir takes precedence, and a pod that is not in the report has no heir.
    other = replace(REPORT, spec=NodeSpec({}, {"uid": frozenset()}))
    history.report_changed(REPORT, None)
    history.report_changed(None, other)
    assert heirs(history.reports({"worker": other}).values()) == {("worker", "uid"): frozenset()}
    empty = replace(again, pods=())
    assert heirs(history.reports({"worker": empty}).values()) == {}


# Nodes with an agent that may not run yet


def test_an_identity_is_kept_while_the_first_report_of_the_node_may_still_come() -> None:
    clock, census = Clock(), Census()
    history = seen(clock=clock)
    running = census.count(snapshot(pods=(POD,), history=history))
    assert kept(running)["uid"].counted == "worker"
    census.pod_changed(None, POD, 10)
    census.pod_changed(POD, None, 12)
    # The pod is uncharged, because the node may never have an agent. The line of the pod stays,
    # whether the count has read the line already or not.
    for lines in ((LINE,), (LINE,), (LINE.as_identity("worker"),)):
        ended = census.count(snapshot(lines=lines, history=history))
        assert (ended.pods, ended.retained) == ((), ())
        assert kept(ended)["uid"].counted == "worker"
    line = LINE.as_identity("worker")
    # Another controller has only the line.
    assert kept(Census().count(snapshot(lines=(line,), history=history)))["uid"].counted == "worker"
    nameless = replace(GONE, namespace="", name="")
    (left,) = census.count(snapshot(report(12, nameless), lines=(line,), history=history)).retained
    assert left.quotas
    clock.now += AWAITED_FOR
    late = census.count(snapshot(lines=(line,), history=history))
    assert kept(late) == {}
    assert late.identities.unneeded == {"uid"}


@pytest.mark.parametrize("word", ["-", "?"])
def test_an_identity_without_a_node_is_kept_while_any_first_report_may_still_come(
    word: str,
) -> None:
    """The pod may have been bound to the new node, and no program saw the binding or the end."""
    clock = Clock()
    history = seen(clock=clock)
    line, pending = LINE.as_identity(word), replace(POD, node=None)
    missed, restarted = Census(), Census()
    missed.pod_changed(None, pending, 10)
    missed.pod_changed(pending, None, 12, missed=True)
    for census in (missed, restarted, missed, restarted):
        ended = census.count(snapshot(lines=(line,), history=history))
        assert (ended.pods, ended.identities.unneeded) == ((), frozenset())
    # The controller saw the deletion of this pod: the pod was never bound.
    never_bound = Census()
    never_bound.pod_changed(None, pending, 10)
    never_bound.pod_changed(pending, None, 12)
    assert never_bound.count(snapshot(lines=(line,), history=history)).identities.unneeded == {
        "uid"
    }
    clock.now += AWAITED_FOR
    for census in (missed, restarted):
        late = census.count(snapshot(lines=(line,), history=history))
        assert late.identities.unneeded == {"uid"}


def test_a_node_is_awaited_from_its_creation_until_its_first_report() -> None:
    clock = Clock()
    history = seen(clock=clock, reported=REPORT)
    assert not evidence({"worker": NODE}, [REPORT], history)["worker"].awaited
    clock.now += AWAITED_FOR
    assert not evidence({"worker": NODE}, [], history)["worker"].awaited
    history.node_changed(NODE, None, 5)
    history.node_changed(None, NODE, 6)
    assert evidence({"worker": NODE}, [], history)["worker"].awaited
