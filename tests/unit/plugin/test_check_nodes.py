"""``check`` looks for nodes without a report, and for old, false and unreadable reports."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from hugetlb_quota.plugin.check_nodes import STALE, check
from hugetlb_quota.plugin.findings import Level
from hugetlb_quota.plugin.reports import NodeReport, read_report
from tests.unit.plugin.check_facts import NODE, WELL, Json
from tests.unit.plugin.worlds import NOW, report


def node(name: str, **status: Json) -> Json:
    return {"metadata": {"name": name}, "status": status}


def reported(name: str = "n1", **status: Any) -> NodeReport:
    return read_report(report(name, **status))


def test_fresh_reports_are_one_finding() -> None:
    (found,) = check(WELL)
    assert (found.level, found.message) == (Level.OK, "1 node with a fresh report.")


def test_a_node_without_huge_pages_needs_no_report() -> None:
    bare = [node("bare", capacity={"hugepages-2Mi": "0", "cpu": "4"}), node("new")]
    assert [each.level for each in check(replace(WELL, nodes=[NODE, *bare]))] == [Level.OK]


def test_a_capacity_that_can_not_be_read_counts_as_huge_pages() -> None:
    odd = node("odd", capacity={"hugepages-2Mi": "many"})
    (found,) = check(replace(WELL, nodes=[NODE, odd]))
    assert found.message.startswith("Node odd has huge pages and no HugeTLBNode")


def test_only_some_of_many_silent_nodes_are_named() -> None:
    silent = [node(f"s{number}", capacity={"hugepages-1Gi": "1Gi"}) for number in range(7)]
    (found,) = check(replace(WELL, nodes=[NODE, *silent]))
    assert found.level == Level.ERROR
    assert found.message.startswith("Nodes s0, s1, s2, s3, s4 and 2 more have huge pages")


def test_without_the_right_to_list_nodes_the_reports_are_still_checked() -> None:
    old = reported(reportedAt="2026-11-26T11:50:00Z")
    unseen, stale = check(replace(WELL, nodes=None, reports=[old]))
    assert (unseen.level, stale.level) == (Level.UNSEEN, Level.ERROR)
    assert "because you may not list nodes" in unseen.message


@pytest.mark.parametrize(("over", "level"), [(0, Level.OK), (1, Level.ERROR)])
def test_a_report_is_stale_only_after_the_limit(over: int, level: Level) -> None:
    at = NOW - STALE - timedelta(seconds=over)
    (found,) = check(replace(WELL, reports=[replace(reported(), reported_at=at)]))
    assert found.level == level


def test_a_report_without_a_time_is_stale() -> None:
    (found,) = check(replace(WELL, reports=[replace(reported(), reported_at=None)]))
    assert found.message.startswith("No fresh report of n1")


@pytest.mark.parametrize("boots", [("boot", ""), ("", "boot"), ("boot", "boot")])
def test_a_boot_id_that_is_missing_or_the_same_is_no_earlier_boot(boots: tuple[str, str]) -> None:
    own, of_report = boots
    changed = node("n1", nodeInfo={"bootID": own})
    found = check(replace(WELL, nodes=[changed], reports=[reported(bootID=of_report)]))
    assert [each.level for each in found] == [Level.OK]


@pytest.mark.parametrize(
    ("kind", "status", "level"),
    [
        ("Ready", "False", Level.ERROR),
        ("Ready", "Unknown", Level.ERROR),
        ("ReportComplete", "False", Level.WARNING),
        ("ReportComplete", "True", Level.OK),
    ],
)
def test_each_condition_that_is_not_true_is_a_finding(kind: str, status: str, level: Level) -> None:
    row = {
        "type": kind,
        "status": status,
        "reason": "Why",
        "message": "Because.",
        "lastTransitionTime": "2026-11-26T11:00:00Z",
    }
    (found,) = check(replace(WELL, reports=[reported(conditions=[row])]))
    assert found.level == level
    if level != Level.OK:
        assert found.message == f"n1: {kind} is {status} (Why): Because."
        assert found.remedy == "See kubectl describe htn n1."


def test_unreadable_entries_are_counted() -> None:
    (found,) = check(replace(WELL, reports=[replace(reported(), unreadable=2)]))
    assert found.level == Level.WARNING
    assert found.message == "The plugin can't read 2 entries of the report of n1."
