"""The builder of a count: how lines, the API and reports together make a pod's charge.

The rules that a whole census shows are in test_census.py and test_other_nodes.py.
"""

from __future__ import annotations

from dataclasses import replace

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.recount import ChargedPod, Identity, Retained
from hugetlb_quota.controller.counting.count_builder import CountBuilder
from hugetlb_quota.controller.counting.nodes import NodeFacts
from tests.unit.controller.test_census import (
    BOTH,
    DEMAND,
    GONE,
    LEFT,
    LINE,
    LIVE,
    NAMELESS,
    POD,
    TEAM,
    report,
    snapshot,
)

ONLY_TEAM = frozenset({TEAM})
MORE = Charge.from_resources({"hugepages-2Mi": "70Mi"})


def test_a_uid_that_a_report_names_twice_is_charged_the_sum_by_the_named_entry() -> None:
    for twice in ((LIVE, NAMELESS), (NAMELESS, LIVE)):
        builder = CountBuilder(snapshot(report(10, *twice)))
        assert list(builder.charge_reported()) == ["uid"]
        assert builder.result().pods == (ChargedPod("uid", LEFT + LEFT, BOTH),)


def test_a_live_pod_that_only_a_report_shows_is_charged_at_least_its_reservation() -> None:
    line = LINE.as_identity("worker")
    builder = CountBuilder(snapshot(report(10, LIVE), lines=(line,)))
    assert list(builder.charge_reported()) == ["uid"]
    (charged,) = builder.result().pods
    assert charged.charge == DEMAND


def test_a_gone_pod_is_charged_only_what_it_left() -> None:
    line = LINE.as_identity("worker")
    builder = CountBuilder(snapshot(report(10, GONE), lines=(line,)))
    assert list(builder.charge_reported()) == []
    assert builder.result().retained == (Retained("uid", LEFT, BOTH),)


def test_a_line_leaves_a_pod_that_its_node_reports_to_the_report() -> None:
    seen = snapshot(report(10, LIVE), lines=(LINE.as_identity("worker"),))
    builder = CountBuilder(seen)
    builder.hold_line(seen.lines()["uid"], frozenset({"worker"}))
    assert builder.result().pods == ()


def test_a_line_without_a_node_is_charged_the_kernels_charge_if_that_is_more() -> None:
    reported = report(10, replace(NAMELESS, charged=MORE))
    nodes = tuple(NodeFacts(name, "boot", out_of_service=False) for name in ("worker", "other"))
    seen = snapshot(reported, report(9, node="other"), lines=(LINE.as_identity("-"),), nodes=nodes)
    builder = CountBuilder(seen)
    builder.hold_line(seen.lines()["uid"], frozenset({"worker", "other"}))
    assert list(builder.charge_reported()) == []
    counted = builder.result()
    assert counted.pods == (ChargedPod("uid", MORE, ONLY_TEAM),)
    assert counted.retained == ()
    assert counted.identities.kept == {"uid": Identity("-", ONLY_TEAM, in_api=False)}


def test_no_identity_is_kept_for_a_pod_on_a_node_that_is_lost() -> None:
    off = NodeFacts("worker", "boot", out_of_service=True)
    for nodes in ((), (off,)):
        builder = CountBuilder(snapshot(report(9), nodes=nodes))
        builder.charge_pod(POD)
        counted = builder.result()
        assert [each.uid for each in counted.pods] == ["uid"]
        assert counted.identities.kept == {}


def test_a_page_size_that_a_pod_does_not_use_is_not_in_its_charge() -> None:
    zero = Charge.from_resources({"hugepages-2Mi": "2Mi", "hugepages-1Gi": "0"})
    builder = CountBuilder(snapshot(report(10, replace(LIVE, charged=zero))))
    builder.charge_pod(POD)
    (charged,) = builder.result().pods
    assert list(charged.charge) == list(DEMAND)
