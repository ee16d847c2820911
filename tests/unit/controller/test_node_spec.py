"""The spec of a HugeTLBNode: its content, its size, and the write."""

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
from hugetlb_quota.controller.counting.nodes import NodeReport, NodeSpec, ReportedPod
from hugetlb_quota.controller.writing import node_spec
from hugetlb_quota.controller.writing.node_spec import (
    LARGEST_SPEC,
    Succession,
    fit,
    wanted_spec,
    write_spec,
)
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
) -> NodeSpec:
    retained = [Retained("uid", LEFT, frozenset(paying), "worker")]
    return wanted_spec(report, retained, Succession(Forest(quotas, {"b": {}}), leaving))


def tree(**team: Any) -> tuple[Quota, ...]:
    return (
        Quota(ROOT, child_namespaces=Selector()),
        Quota(TENANT, parent=ROOT, child_namespaces=Selector()),
        Quota(TEAM, parent=TENANT, **team),
    )


def stored(**spec: Any) -> NodeReport:
    return replace(REPORT, spec=NodeSpec(**spec))


def test_files_are_reclaimed_after_the_longest_time_if_all_payers_request_reclaim() -> None:
    team, other = Quota(TEAM, reclaim_after=SHORT), Quota(OTHER, reclaim_after=LONG)
    assert wanted(team, other).reclaim == {"uid": SHORT}
    assert wanted(team, other, paying=(TEAM, OTHER)).reclaim == {"uid": LONG}
    assert wanted(team, Quota(OTHER), paying=(TEAM, OTHER)).reclaim == {}
    assert wanted(Quota(TEAM)).reclaim == {}
    assert wanted(team, paying=()).reclaim == {}
    # A quota can remove its request for reclaim while the quota pays.
    assert wanted(Quota(TEAM), report=stored(reclaim={"uid": SHORT})).reclaim == {}


def test_live_pods_and_pods_without_an_entry_have_no_rows() -> None:
    before = {"reclaim": {"uid": SHORT}, "heirs": {"uid": frozenset({TENANT})}}
    team = Quota(TEAM, reclaim_after=SHORT, reparents=True, terminating=True)
    for pods in ((), (replace(GONE, live=True),)):
        assert wanted(team, report=replace(stored(**before), pods=pods)) == NodeSpec()


def test_the_nearest_quota_above_that_stays_is_the_heir() -> None:
    assert wanted(*tree(reparents=True)).heirs == {}
    going = tree(reparents=True, terminating=True)
    assert wanted(*going).heirs == {"uid": frozenset({TENANT})}
    tenant = replace(going[1], reparents=True, terminating=True)
    assert wanted(going[0], tenant, going[2]).heirs == {"uid": frozenset({ROOT})}
    # If the heir is deleted too, the next quota above is the heir.
    inherited = stored(heirs={"uid": frozenset({TENANT})})
    passed_on = wanted(going[0], tenant, paying=(TENANT,), report=inherited)
    assert passed_on.heirs == {"uid": frozenset({ROOT})}


def test_a_quota_without_reparenting_or_without_a_parent_has_no_heir() -> None:
    assert wanted(*tree(terminating=True)).heirs == {}
    assert wanted(Quota(TEAM, reparents=True, terminating=True)).heirs == {}


def test_the_heir_of_a_deleted_namespace_is_the_quota_above_or_nobody() -> None:
    going = tree(terminating=True)
    assert wanted(*going, leaving=("b",)).heirs == {"uid": frozenset({TENANT})}
    alone = wanted(Quota(TEAM, terminating=True), leaving=("b",))
    assert alone.heirs == {"uid": frozenset()}


def test_the_other_payers_continue_to_pay() -> None:
    waiting = Quota(OTHER, terminating=True)
    both = wanted(*tree(reparents=True, terminating=True), waiting, paying=(TEAM, OTHER))
    assert both.heirs == {"uid": frozenset({TENANT, OTHER})}
    staying = wanted(*tree(reparents=True, terminating=True), Quota(OTHER), paying=(TEAM, OTHER))
    assert staying.heirs == {"uid": frozenset({TENANT})}


def test_a_payer_by_the_pods_line_becomes_an_heir() -> None:
    """If the spec names heirs, no program reads the pod's line."""
    nameless = replace(REPORT, pods=(ReportedPod("uid", "", "", {}, live=False, charged=LEFT),))
    quotas = (*tree(reparents=True, terminating=True), Quota(OTHER))
    by_line = wanted(*quotas, paying=(TEAM, OTHER), report=nameless)
    assert by_line.heirs == {"uid": frozenset({TENANT, OTHER})}


def test_the_reclaim_that_a_deleted_quota_requested_stays_in_force() -> None:
    before = stored(reclaim={"uid": SHORT}, heirs={"uid": frozenset({TENANT})})
    going = tree(reparents=True, terminating=True, reclaim_after=SHORT)
    # Heir and reclaim are written together.
    assert wanted(*going) == before.spec
    after = wanted(*going[:2], paying=(TENANT,), report=before)
    assert after == before.spec


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


NEW = NodeSpec({"uid": LONG}, {"uid": frozenset({TEAM, TENANT})})


async def test_the_write_replaces_the_read_spec_and_keeps_unknown_fields() -> None:
    api = Api()
    assert await write_spec(cast(Connection, api), REPORT, NEW)
    assert api.stored == {
        **RAW,
        "spec": {
            "reclaim": [{"uid": "uid", "after": "10m"}],
            "heirs": [{"uid": "uid", "quotas": ["a/tenant", "b/team"]}],
            "caps": ["of a newer release"],
        },
    }


async def test_a_spec_that_changed_since_is_not_replaced() -> None:
    api = Api()
    assert await write_spec(cast(Connection, api), stored(reclaim={"uid": SHORT}), NEW)
    assert api.writes == 0


@pytest.mark.parametrize(
    ("error", "is_done"),
    [
        (errors.Conflict(409, "Conflict", "changed"), False),
        (errors.Forbidden(403, "Forbidden", "no"), False),
        (errors.ApiUnreachable("no route"), False),
        (errors.NotFound(404, "NotFound", "gone"), True),
    ],
)
async def test_a_failed_write_must_be_tried_again_unless_the_object_is_gone(
    error: Exception, is_done: bool
) -> None:
    api = Api(error)
    assert await write_spec(cast(Connection, api), REPORT, NEW) is is_done
    assert api.writes == 1


# The size of the spec


def stored_size(wanted: NodeSpec) -> int:
    rows = dict(node_spec._to_json(wanted)).values()
    return sum(len(json.dumps(row)) - len("[]") for row in rows)


def test_new_rows_wait_for_room_and_stored_rows_stay() -> None:
    uids = [f"{number:036}" for number in range(40)]
    heirs, reclaim = dict.fromkeys(uids[:20], frozenset({TENANT})), dict.fromkeys(uids[10:], SHORT)
    everything = NodeSpec(reclaim, heirs)
    assert fit(everything, NodeSpec()) == everything
    before = NodeSpec()
    for most in (800, 1600, 2500):
        stored = fit(everything, before, most)
        assert most - 300 < stored_size(stored) <= most
        assert before.heirs.keys() <= stored.heirs.keys()
        # An heir is never stored without the reclaim of the same pod.
        assert stored.heirs.keys() & reclaim.keys() <= stored.reclaim.keys()
        assert fit(everything, stored, most) == stored
        before = stored
    # Stored rows get room before new rows.
    late = NodeSpec({uids[-1]: SHORT}, dict.fromkeys(uids[15:20], frozenset({TENANT})))
    stored = fit(everything, late, 1000)
    assert late.heirs.keys() <= stored.heirs.keys()
    assert stored_size(stored) <= 1000
    assert uids[-1] in fit(NodeSpec(reclaim, {}), late, 200).reclaim
    # A stored heir stays even without room.
    assert fit(everything, everything, 0).heirs == heirs
    # When pods go, the rows of other pods get room.
    first = fit(everything, NodeSpec(), 800)
    less = {uid: each for uid, each in heirs.items() if uid not in first.heirs}
    assert fit(NodeSpec({}, less), first, 800).heirs


def test_the_spec_of_a_node_with_12_000_gone_pods_fits() -> None:
    pods = tuple(replace(GONE, uid=f"{number:036}") for number in range(12_000))
    retained = [Retained(pod.uid, LEFT, frozenset({TEAM}), "worker") for pod in pods]
    forest = Forest(tree(reclaim_after=SHORT, reparents=True, terminating=True), {"b": {}})
    wanted = wanted_spec(replace(REPORT, pods=pods), retained, Succession(forest, ()))
    assert 0 < len(wanted.heirs) < len(pods)
    assert stored_size(wanted) <= LARGEST_SPEC
