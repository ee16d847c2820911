"""A snapshot includes the valid reports, and lines for the pods that may run unreported."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from hugetlb_quota.accounting.attribution import Attribution, Line
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.release import NodeEvidence
from hugetlb_quota.accounting.reservation import UNBOUND
from hugetlb_quota.controller.counting.nodes import NodeReport, ReportedPod
from hugetlb_quota.controller.counting.snapshot import Snapshot

KEY, OTHER = QuotaKey("ns", "q"), QuotaKey("other", "q")
FOREST = Forest([Quota(KEY), Quota(OTHER)], {})
DEMAND, MORE, BOTH = (
    Charge.from_resources({"hugepages-2Mi": amount}) for amount in ("4Mi", "6Mi", "10Mi")
)
LIVE = ReportedPod("uid", "ns", "pod", {}, live=True, charged=NOTHING, demand=DEMAND)
GONE = replace(LIVE, uid="gone", live=False)
UP = NodeEvidence(exists=True, reported_boot_id="boot", pods_resource_version=5)
BOOTED = replace(UP, former_boots=frozenset({"boot"}))
LINE = Line("uid", "ns/pod", DEMAND, frozenset({KEY}), counted="a")


def report(node: str, *pods: ReportedPod) -> NodeReport:
    return NodeReport(node, datetime(2030, 1, 1, tzinfo=UTC), "boot", 5, pods)


def snapshot(
    *reports: NodeReport,
    evidence: Mapping[str, NodeEvidence],
    lines: Collection[Line] = (),
    uids: Collection[str] | None = None,
) -> Snapshot:
    attribution = Attribution(FOREST, {}, {line.uid: line for line in lines})
    return Snapshot(attribution, (), 9, 1, evidence, {each.node: each for each in reports}, uids)


def test_selects_the_included_uids() -> None:
    everything = snapshot(evidence={})
    assert everything.select(["a", "b"]) == ["a", "b"]
    assert replace(everything, uids={"b", "c"}).select(["a", "b"]) == ["b"]


def test_only_the_pods_of_valid_reports_are_reported_pods() -> None:
    reports = [report(node, LIVE) for node in ("a", "booted", "off", "unknown")]
    off = replace(UP, out_of_service=True)
    found = snapshot(*reports, evidence={"a": UP, "booted": BOOTED, "off": off})
    assert list(found.reported_pods()) == [("a", LIVE)]


def test_reported_pods_that_are_not_included_are_left_out() -> None:
    found = snapshot(report("a", LIVE, GONE), evidence={"a": UP}, uids={"gone"})
    assert list(found.reported_pods()) == [("a", GONE)]


def test_the_stored_lines_of_included_uids_are_lines() -> None:
    stored = snapshot(evidence={}, lines=[LINE, replace(LINE, uid="other")])
    assert set(stored.lines()) == {"uid", "other"}
    assert replace(stored, uids={"uid"}).lines() == {"uid": LINE}


def test_a_pod_that_was_live_before_its_node_booted_has_a_line_with_the_node() -> None:
    charged = replace(LIVE, charged=MORE)
    found = snapshot(report("a", charged, GONE), evidence={"a": BOOTED})
    assert found.lines() == {"uid": replace(LINE, charge=MORE)}
    assert replace(found, uids={"gone"}).lines() == {}


def test_a_node_that_is_up_or_lost_gives_no_lines() -> None:
    for evidence in (UP, replace(BOOTED, exists=False), replace(BOOTED, out_of_service=True)):
        assert snapshot(report("a", LIVE), evidence={"a": evidence}).lines() == {}


def test_the_stored_line_of_a_pod_precedes_the_line_from_a_report() -> None:
    stored = replace(LINE, counted=UNBOUND)
    found = snapshot(report("a", LIVE), evidence={"a": BOOTED}, lines=[stored])
    assert found.lines() == {"uid": stored}


def test_a_pod_that_two_booted_nodes_reported_may_be_on_either_node() -> None:
    reports = [
        report("a", LIVE),
        report("b", replace(LIVE, namespace="other", charged=MORE)),
    ]
    found = snapshot(*reports, evidence={"a": BOOTED, "b": BOOTED})
    line = found.lines()["uid"]
    assert (line.charge, line.quotas, line.counted) == (BOTH, frozenset({KEY, OTHER}), UNBOUND)
