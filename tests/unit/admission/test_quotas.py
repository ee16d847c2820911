"""Decisions on quotas."""

from __future__ import annotations

from typing import Any

import pytest

from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.review import AdmissionRequest, Decision
from tests.unit.admission.fake_api import (
    FakeApi,
    admitting_quotas,
    create,
    delete,
    namespace,
    quota,
    reservation,
    update,
)

OF_ACME = {"matchLabels": {"tenant": "acme"}}
LIMIT = {"hugepages-2Mi": "256Mi"}


@pytest.fixture
def api() -> FakeApi:
    """Tenant acme/tenant of 256Mi, db/leaf of 128Mi below it, and a stranger's namespace."""
    api = FakeApi()
    api.put(namespace("acme"))
    api.put(namespace("db", tenant="acme"))
    api.put(namespace("strange"))
    api.put(quota("acme/tenant", LIMIT, children=OF_ACME))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant"))
    return api


async def decide(api: FakeApi, request: AdmissionRequest) -> Decision:
    async with admitting_quotas(api) as admission:
        decision = await admission.decide(request, Deadline.after(9))
    assert api.writes == []
    return decision


async def refused(api: FakeApi, request: AdmissionRequest) -> str:
    decision = await decide(api, request)
    assert not decision.allowed
    return decision.message


async def allowed(api: FakeApi, request: AdmissionRequest) -> str:
    decision = await decide(api, request)
    assert decision.allowed, decision.message
    return " ".join(decision.warnings)


async def test_a_quota_within_its_parent_is_allowed(api: FakeApi) -> None:
    assert await allowed(api, create(quota("db/new", LIMIT, parent="acme/tenant"))) == ""


@pytest.mark.parametrize(
    ("hard", "said"),
    [
        ({"hugepages-3Mi": "3Mi"}, "'hugepages-3Mi' names no huge page size"),
        ({"memory": "3Mi"}, "'memory' names no huge page size"),
        ({"hugepages-2Mi": "3Mi"}, "use 2Mi or 4Mi"),
        ({"hugepages-2Mi": "-2Mi"}, "can't be negative"),
        ({"hugepages-2Mi": "many"}, "'many' is not a quantity"),
        ({"hugepages-2Mi": "9223372036854775808"}, "beyond 2^63"),
        ({"hugepages-2Mi": True}, "not a quantity"),
    ],
)
async def test_a_malformed_limit_is_refused(api: FakeApi, hard: dict[str, Any], said: str) -> None:
    told = await refused(api, create(quota("db/new", hard)))
    assert said in told
    assert told.startswith("HugeTLBQuota db/new is refused: spec.hard: ")


async def test_its_own_parent_is_refused(api: FakeApi) -> None:
    told = await refused(api, create(quota("db/new", LIMIT, parent="db/new")))
    assert "names itself as its parent" in told


async def test_a_cycle_is_refused_naming_the_path(api: FakeApi) -> None:
    tenant = api.raw("acme/tenant")
    api.put(namespace("acme", tenant="acme"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", children=OF_ACME))
    told = await refused(
        api, update(tenant, quota("acme/tenant", LIMIT, parent="db/leaf", children=OF_ACME))
    )
    assert "acme/tenant -> db/leaf -> acme/tenant" in told


async def test_a_foreign_parent_is_refused(api: FakeApi) -> None:
    told = await refused(api, create(quota("strange/q", LIMIT, parent="acme/tenant")))
    assert "acme/tenant does not let quotas of namespace strange attach" in told


async def test_a_missing_parent_is_a_warning(api: FakeApi) -> None:
    told = await allowed(api, create(quota("db/new", LIMIT, parent="acme/later")))
    assert "db/new is not attached yet" in told
    assert "acme/later, which does not exist" in told


async def test_a_link_further_up_that_does_not_hold_is_a_warning(api: FakeApi) -> None:
    api.put(quota("acme/tenant", LIMIT, parent="acme/later", children=OF_ACME))
    assert "acme/later" in await allowed(api, create(quota("db/new", LIMIT, parent="acme/tenant")))


async def test_a_foreign_link_further_up_is_a_warning(api: FakeApi) -> None:
    api.put(quota("strange/top", LIMIT))
    api.put(quota("acme/tenant", LIMIT, parent="strange/top", children=OF_ACME))
    told = await allowed(api, create(quota("db/new", LIMIT, parent="acme/tenant")))
    assert "strange/top does not let quotas of namespace acme attach" in told


async def test_a_limit_above_the_parents_is_refused_with_both_numbers(api: FakeApi) -> None:
    told = await refused(
        api, create(quota("db/new", {"hugepages-2Mi": "512Mi"}, parent="acme/tenant"))
    )
    assert "512Mi of hugepages-2Mi" in told
    assert "the 256Mi of acme/tenant" in told


async def test_the_nearest_ancestor_that_names_the_size_counts(api: FakeApi) -> None:
    api.put(quota("db/leaf", {}, parent="acme/tenant"))
    below = quota("db/new", {"hugepages-2Mi": "512Mi"}, parent="db/leaf")
    assert "the 256Mi of acme/tenant" in await refused(api, create(below))
    unlimited = quota("db/new", {"hugepages-1Gi": "512Gi"}, parent="db/leaf")
    assert await allowed(api, create(unlimited)) == ""


async def test_lowering_below_a_child_is_refused_naming_it(api: FakeApi) -> None:
    old = api.raw("acme/tenant")
    told = await refused(
        api, update(old, quota("acme/tenant", {"hugepages-2Mi": "64Mi"}, children=OF_ACME))
    )
    assert "db/leaf with 128Mi of hugepages-2Mi, above the 64Mi of acme/tenant" in told


async def test_a_first_limit_below_a_grandchilds_is_refused(api: FakeApi) -> None:
    api.put(quota("acme/tenant", {}, children=OF_ACME))
    api.put(quota("db/leaf", {}, parent="acme/tenant"))
    api.put(quota("db/deep", LIMIT, parent="db/leaf"))
    changed = quota("acme/tenant", {"hugepages-2Mi": "64Mi"}, children=OF_ACME)
    assert "leave db/deep" in await refused(api, update(api.raw("acme/tenant"), changed))


async def test_a_parent_that_appears_above_waiting_children_warns(api: FakeApi) -> None:
    api.put(quota("db/waiting", {"hugepages-2Mi": "512Mi"}, parent="acme/new"))
    told = await allowed(api, create(quota("acme/new", LIMIT, children=OF_ACME)))
    assert "HugeTLBQuota db/waiting has 512Mi of hugepages-2Mi, above the 256Mi of acme/new" in told


async def test_a_child_that_has_too_much_already_may_be_changed_otherwise(api: FakeApi) -> None:
    old = api.put(quota("db/leaf", {"hugepages-2Mi": "512Mi"}, parent="acme/tenant"))
    lower = quota("db/leaf", {"hugepages-2Mi": "384Mi"}, parent="acme/tenant")
    assert "384Mi" in await allowed(api, update(old, lower))
    higher = quota("db/leaf", {"hugepages-2Mi": "514Mi"}, parent="acme/tenant")
    assert "514Mi" in await refused(api, update(old, higher))


async def test_a_limit_below_use_is_a_warning(api: FakeApi) -> None:
    used = {"hugepages-2Mi": "100Mi"}
    old = api.put(quota("db/leaf", LIMIT, parent="acme/tenant", pods=used))
    new = quota("db/leaf", {"hugepages-2Mi": "64Mi"}, parent="acme/tenant", pods=used)
    assert "limits hugepages-2Mi to 64Mi, below the 100Mi charged" in await allowed(
        api, update(old, new)
    )


CHARGED: list[dict[str, Any]] = [
    {"pods": {"hugepages-2Mi": "100Mi"}},
    {"reservations": [reservation("u", "db/pg-0", "100Mi")]},
]


LEFT = {"hugepages-2Mi": "10Mi"}


async def test_what_pods_left_in_files_keeps_a_quota_that_refuses(api: FakeApi) -> None:
    told = await refused(api, delete(api.put(quota("db/leaf", LIMIT, retained=LEFT))))
    assert "10Mi of hugepages-2Mi, of which 10Mi of hugepages-2Mi retained" in told
    assert "truncate or remove the files, or set spec.deletionPolicy to Reparent" in told


async def test_what_pods_left_in_files_goes_to_the_parent_of_a_quota_that_reparents(
    api: FakeApi,
) -> None:
    leaf = quota("db/leaf", LIMIT, parent="acme/tenant", retained=LEFT, policy="Reparent")
    told = await allowed(api, delete(api.put(leaf)))
    assert "10Mi of hugepages-2Mi that pods left in files is charged to HugeTLBQuota acme/" in told


async def test_without_a_parent_there_is_nowhere_to_reparent_to(api: FakeApi) -> None:
    for parent in (None, "acme/gone"):
        leaf = quota("db/leaf", LIMIT, parent=parent, retained=LEFT, policy="Reparent")
        assert "no quota above to charge it to" in await refused(api, delete(api.put(leaf)))


async def test_pods_keep_a_quota_whatever_its_policy(api: FakeApi) -> None:
    leaf = quota("db/leaf", LIMIT, parent="acme/tenant", pods=LEFT, policy="Reparent")
    assert "stop the pods that use them" in await refused(api, delete(api.put(leaf)))


async def test_charges_below_keep_a_quota_that_reparents(api: FakeApi) -> None:
    api.put(quota("db/leaf", LIMIT, parent="acme/tenant", retained=LEFT))
    tenant = quota("acme/tenant", LIMIT, children=OF_ACME, retained=LEFT, policy="Reparent")
    told = await refused(api, delete(api.put(tenant)))
    assert "charged to quotas below it: db/leaf (10Mi of hugepages-2Mi)" in told


async def test_a_namespace_that_goes_takes_its_quotas_along(api: FakeApi) -> None:
    leaving = namespace("db", tenant="acme")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"
    api.put(leaving)
    told = await allowed(api, delete(api.put(quota("db/leaf", LIMIT, retained=LEFT))))
    assert "stays on its nodes, charged to no quota" in told


def moving(api: FakeApi, amount: str, room: str, **fields: Any) -> AdmissionRequest:
    """db/leaf, charged with ``amount``, moves from acme/tenant to acme/other below acme/root."""
    charged: dict[str, Any] = {"pods": {"hugepages-2Mi": amount}}
    api.put(quota("acme/root", {"hugepages-2Mi": "1Gi"}))
    api.put(quota("acme/tenant", LIMIT, parent="acme/root", children=OF_ACME))
    api.put(quota("acme/other", {"hugepages-2Mi": room}, parent="acme/root", children=OF_ACME))
    hard = {"hugepages-2Mi": "128Mi"}
    old = api.put(quota("db/leaf", hard, parent="acme/tenant", **charged))
    old["metadata"]["uid"] = "uid-of-leaf"
    new = quota("db/leaf", hard, parent="acme/other", **charged)
    new["metadata"]["uid"] = "uid-of-leaf"
    return update(old, new, **fields)


async def test_a_quota_that_moves_reserves_what_it_brings_on_the_ancestors_it_gets(
    api: FakeApi,
) -> None:
    request = moving(api, "100Mi", "256Mi")
    async with admitting_quotas(api) as admission:
        decision = await admission.decide(request, Deadline.after(9))
    assert decision.allowed, decision.message
    assert api.reservations("acme/other") == {"uid-of-leaf": "100Mi"}
    # What it had above it already counts it already.
    assert api.reservations("acme/root") == api.reservations("acme/tenant") == {}


async def test_a_quota_stays_where_it_is_when_its_new_parent_has_no_room(api: FakeApi) -> None:
    told = await refused(api, moving(api, "130Mi", "128Mi"))
    assert "HugeTLBQuota db/leaf can't be moved with what is charged to it" in told
    assert "acme/other has room for 128Mi" in told
    assert "2Mi is missing" in told


async def test_a_dry_run_of_a_move_reserves_nothing(api: FakeApi) -> None:
    assert await allowed(api, moving(api, "100Mi", "256Mi", dry_run=True)) == ""


async def test_a_charged_quota_does_not_move_to_a_parent_that_is_not_there(api: FakeApi) -> None:
    charged: dict[str, Any] = {"pods": {"hugepages-2Mi": "100Mi"}}
    old = api.put(quota("db/leaf", LIMIT, parent="acme/tenant", **charged))
    told = await refused(api, update(old, quota("db/leaf", LIMIT, parent="acme/gone", **charged)))
    assert "acme/gone, which does not exist" in told


async def test_a_quota_does_not_move_while_pods_are_being_created_under_it(api: FakeApi) -> None:
    charged: dict[str, Any] = {"reservations": [reservation("u", "db/pg-0", "100Mi")]}
    old = api.put(quota("db/leaf", LIMIT, parent="acme/tenant", **charged))
    told = await refused(api, update(old, quota("db/leaf", LIMIT, **charged)))
    assert "while pods are being created under it" in told
    assert "db/pg-0" in told


async def test_an_uncharged_quota_may_move(api: FakeApi) -> None:
    assert await allowed(api, update(api.raw("db/leaf"), quota("db/leaf", LIMIT))) == ""


@pytest.mark.parametrize("charged", CHARGED, ids=["by pods", "by a reservation"])
async def test_a_charged_quota_is_not_deleted(api: FakeApi, charged: dict[str, Any]) -> None:
    told = await refused(api, delete(api.put(quota("db/leaf", LIMIT, **charged))))
    assert "db/leaf can't be deleted" in told
    assert "100Mi of hugepages-2Mi" in told


async def test_an_identity_keeps_no_quota_from_moving_or_being_deleted(api: FakeApi) -> None:
    identity: dict[str, Any] = {"reservations": [reservation("u", "db/pg-0", "100Mi") + " worker"]}
    old = api.put(quota("db/leaf", LIMIT, parent="acme/tenant", **identity))
    assert await allowed(api, update(old, quota("db/leaf", LIMIT, **identity))) == ""
    assert await allowed(api, delete(old)) == ""


async def test_an_uncharged_quota_is_deleted_and_its_children_named(api: FakeApi) -> None:
    assert await allowed(api, delete(api.raw("db/leaf"))) == ""
    assert "db/leaf will have no parent" in await allowed(api, delete(api.raw("acme/tenant")))


async def test_an_unreadable_quota_can_be_deleted(api: FakeApi) -> None:
    assert await allowed(api, delete(api.put(quota("db/old", {"hugepages-3Mi": "3Mi"})))) == ""


async def test_a_narrower_child_selector_names_who_is_lost(api: FakeApi) -> None:
    told = await allowed(api, update(api.raw("acme/tenant"), quota("acme/tenant", LIMIT)))
    assert "db/leaf will have no parent" in told


async def test_an_unchanged_spec_is_allowed_without_asking_anything(api: FakeApi) -> None:
    old = api.put(quota("db/bad", {"hugepages-3Mi": "3Mi"}, parent="db/bad"))
    new = {**old, "metadata": {**old["metadata"], "finalizers": ["x"]}}
    assert await allowed(api, update(old, new)) == ""
    assert api.requests == []
