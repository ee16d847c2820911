"""What the controller writes into a HugeTLBNode's spec, and how."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import Retained
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.controller import node_wishes
from hugetlb_quota.controller.node_wishes import MOST, Succession, fit, wishes, write_wishes
from hugetlb_quota.controller.nodes import NodeReport, NodeWishes, ReportedPod
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection

ROOT, TENANT, TEAM = QuotaKey("a", "root"), QuotaKey("a", "tenant"), QuotaKey("b", "team")
OTHER = QuotaKey("b", "other")
LEFT = Charge.from_resources({"hugepages-2Mi": "6Mi"})
SHORT, LONG = timedelta(seconds=10), timedelta(minutes=10)
GONE = ReportedPod("uid", "b", "pod", {}, live=False, charged=LEFT)
REPORT = NodeReport("worker", None, "boot", 9, (GONE,))


def wanted(
    *quotas: Quota,
    paying: tuple[QuotaKey, ...] = (TEAM,),
    report: NodeReport = REPORT,
    leaving: tuple[str, ...] = (),
) -> NodeWishes:
    retained = [Retained("uid", LEFT, frozenset(paying), "worker")]
    return wishes(report, retained, Succession(Forest(quotas, {"b": {}}), leaving))


def tree(**team: Any) -> tuple[Quota, ...]:
    return (
        Quota(ROOT, child_namespaces=Selector()),
        Quota(TENANT, parent=ROOT, child_namespaces=Selector()),
        Quota(TEAM, parent=TENANT, **team),
    )


def stored(**what: Any) -> NodeReport:
    return replace(REPORT, wishes=NodeWishes(**what))


def test_files_go_where_all_that_pay_ask_for_it_after_the_longest_time() -> None:
    team, other = Quota(TEAM, reclaim_after=SHORT), Quota(OTHER, reclaim_after=LONG)
    assert wanted(team, other).reclaim == {"uid": SHORT}
    assert wanted(team, other, paying=(TEAM, OTHER)).reclaim == {"uid": LONG}
    assert wanted(team, Quota(OTHER), paying=(TEAM, OTHER)).reclaim == {}
    assert wanted(Quota(TEAM)).reclaim == {}
    assert wanted(team, paying=()).reclaim == {}
    # A quota that changes its mind while it pays is heard.
    assert wanted(Quota(TEAM), report=stored(reclaim={"uid": SHORT})).reclaim == {}


def test_nothing_is_wanted_of_pods_that_are_live_or_not_there_any_more() -> None:
    before = {"reclaim": {"uid": SHORT}, "heirs": {"uid": frozenset({TENANT})}}
    team = Quota(TEAM, reclaim_after=SHORT, reparents=True, terminating=True)
    for pods in ((), (replace(GONE, live=True),)):
        assert wanted(team, report=replace(stored(**before), pods=pods)) == NodeWishes()


def test_the_nearest_quota_above_that_stays_is_the_heir() -> None:
    assert wanted(*tree(reparents=True)).heirs == {}
    going = tree(reparents=True, terminating=True)
    assert wanted(*going).heirs == {"uid": frozenset({TENANT})}
    tenant = replace(going[1], reparents=True, terminating=True)
    assert wanted(going[0], tenant, going[2]).heirs == {"uid": frozenset({ROOT})}
    # One that inherited and is deleted in its turn hands on.
    inherited = stored(heirs={"uid": frozenset({TENANT})})
    passed_on = wanted(going[0], tenant, paying=(TENANT,), report=inherited)
    assert passed_on.heirs == {"uid": frozenset({ROOT})}


def test_a_quota_that_refuses_or_has_nothing_above_keeps_what_it_has() -> None:
    assert wanted(*tree(terminating=True)).heirs == {}
    assert wanted(Quota(TEAM, reparents=True, terminating=True)).heirs == {}


def test_a_namespace_that_goes_leaves_it_to_the_quota_above_or_to_nobody() -> None:
    going = tree(terminating=True)
    assert wanted(*going, leaving=("b",)).heirs == {"uid": frozenset({TENANT})}
    alone = wanted(Quota(TEAM, terminating=True), leaving=("b",))
    assert alone.heirs == {"uid": frozenset()}


def test_another_quota_that_pays_pays_on() -> None:
    waiting = Quota(OTHER, terminating=True)
    both = wanted(*tree(reparents=True, terminating=True), waiting, paying=(TEAM, OTHER))
    assert both.heirs == {"uid": frozenset({TENANT, OTHER})}
    staying = wanted(*tree(reparents=True, terminating=True), Quota(OTHER), paying=(TEAM, OTHER))
    assert staying.heirs == {"uid": frozenset({TENANT})}


def test_what_a_quota_asked_for_that_was_deleted_goes_on() -> None:
    before = stored(reclaim={"uid": SHORT}, heirs={"uid": frozenset({TENANT})})
    going = tree(reparents=True, terminating=True, reclaim_after=SHORT)
    # Both are written at once.
    assert wanted(*going) == before.wishes
    after = wanted(*going[:2], paying=(TENANT,), report=before)
    assert after == before.wishes


RAW = {
    "metadata": {"name": "worker", "resourceVersion": "7", "ownerReferences": [{"uid": "node"}]},
    "spec": {"reclaim": [], "heirs": [], "caps": ["of a newer release"]},
    "status": {"bootID": "boot"},
}


class Api:
    def __init__(self, error: Exception | None = None) -> None:
        self.stored: dict[str, Any] = deepcopy(RAW)
        self.error = error
        self.writes = 0

    async def get(self, *_: Any) -> dict[str, Any]:
        return deepcopy(self.stored)

    async def replace(self, _: Any, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self.writes += 1
        if self.error is not None:
            raise self.error
        self.stored = body
        return body


NEW = NodeWishes({"uid": LONG}, {"uid": frozenset({TEAM, TENANT})})


async def test_it_is_written_over_what_was_read_and_nothing_else_changes() -> None:
    api = Api()
    assert await write_wishes(cast(Connection, api), REPORT, NEW)
    assert api.stored == {
        **RAW,
        "spec": {
            "reclaim": [{"uid": "uid", "after": "10m"}],
            "heirs": [{"uid": "uid", "quotas": ["a/tenant", "b/team"]}],
            "caps": ["of a newer release"],
        },
    }


async def test_over_what_another_has_written_nothing_is() -> None:
    api = Api()
    assert await write_wishes(cast(Connection, api), stored(reclaim={"uid": SHORT}), NEW)
    assert api.writes == 0


@pytest.mark.parametrize(
    ("error", "is_over"),
    [
        (errors.Conflict(409, "Conflict", "changed"), False),
        (errors.Forbidden(403, "Forbidden", "no"), False),
        (errors.ApiUnreachable("no route"), False),
        (errors.NotFound(404, "NotFound", "gone"), True),
    ],
)
async def test_what_was_not_written_is_tried_again(error: Exception, is_over: bool) -> None:
    api = Api(error)
    assert await write_wishes(cast(Connection, api), REPORT, NEW) is is_over
    assert api.writes == 1


# An object's size has a limit


def stored_size(wanted: NodeWishes) -> int:
    rows = dict(node_wishes._to_json(wanted)).values()
    return sum(len(json.dumps(row)) - len("[]") for row in rows)


def test_what_has_no_room_waits_and_what_was_stored_stays() -> None:
    uids = [f"{number:036}" for number in range(40)]
    heirs, reclaim = dict.fromkeys(uids[:20], frozenset({TENANT})), dict.fromkeys(uids[10:], SHORT)
    everything = NodeWishes(reclaim, heirs)
    assert fit(everything, NodeWishes()) == everything
    before = NodeWishes()
    for most in (800, 1600, 2500):
        stored = fit(everything, before, most)
        assert most - 300 < stored_size(stored) <= most
        assert before.heirs.keys() <= stored.heirs.keys()
        # A quota that goes takes nothing with it that it asked for.
        assert stored.heirs.keys() & reclaim.keys() <= stored.reclaim.keys()
        assert fit(everything, stored, most) == stored
        before = stored
    # What was stored takes its room before what is new.
    late = NodeWishes({uids[-1]: SHORT}, dict.fromkeys(uids[15:20], frozenset({TENANT})))
    stored = fit(everything, late, 1000)
    assert late.heirs.keys() <= stored.heirs.keys()
    assert stored_size(stored) <= 1000
    assert uids[-1] in fit(NodeWishes(reclaim, {}), late, 200).reclaim
    # An heir that was stored is the only one who knows.
    assert fit(everything, everything, 0).heirs == heirs
    # As pods go there is room for others.
    first = fit(everything, NodeWishes(), 800)
    less = {uid: who for uid, who in heirs.items() if uid not in first.heirs}
    assert fit(NodeWishes({}, less), first, 800).heirs


def test_the_spec_of_a_node_with_very_many_pods_that_are_gone_fits() -> None:
    pods = tuple(replace(GONE, uid=f"{number:036}") for number in range(12_000))
    retained = [Retained(pod.uid, LEFT, frozenset({TEAM}), "worker") for pod in pods]
    forest = Forest(tree(reclaim_after=SHORT, reparents=True, terminating=True), {"b": {}})
    wanted = wishes(replace(REPORT, pods=pods), retained, Succession(forest, ()))
    assert 0 < len(wanted.heirs) < len(pods)
    assert stored_size(wanted) <= MOST
