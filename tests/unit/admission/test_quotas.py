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
        ({"hugepages-3Mi": "3Mi"}, "'hugepages-3Mi' is not a huge page size"),
        ({"memory": "3Mi"}, "'memory' is not a huge page size"),
        ({"hugepages-2Mi": "3Mi"}, "use 2Mi or 4Mi"),
        ({"hugepages-2Mi": "-2Mi"}, "must not be negative"),
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
    assert "10Mi of hugepages-2Mi, including 10Mi of hugepages-2Mi retained" in told
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


def leaving(api: FakeApi, name: str) -> None:
    gone = namespace(name, tenant="acme")
    gone["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"
    api.put(gone)


async def test_a_namespace_that_goes_takes_along_a_quota_that_pods_below_keep_until_they_go(
    api: FakeApi,
) -> None:
    used = {"hugepages-2Mi": "64Mi"}
    held = [reservation("u", "db/pg-0", "2Mi")]
    api.put(quota("db/leaf", LIMIT, parent="acme/tenant", pods=used))
    for charged in ({"pods": used}, {"reservations": held}, {"retained": used}):
        fields: dict[str, Any] = charged
        tenant = api.put(quota("acme/tenant", LIMIT, children=OF_ACME, **fields))
        api.put(namespace("acme"))
        assert "can't be deleted" in await refused(api, delete(tenant))
        leaving(api, "acme")
        told = await allowed(api, delete(tenant))
        assert (
            "and the quotas below it take no more pods. The quota is deleted when nothing" in told
        )
        # Without the finalizer it would go at once, and its charge with it.
        tenant["metadata"]["finalizers"] = ["other"]
        assert "has not put its finalizer on it" in await refused(api, delete(tenant))


async def test_a_quota_that_waits_goes_after_its_pods(api: FakeApi) -> None:
    used = {"hugepages-2Mi": "64Mi"}
    held = [reservation("u", "db/pg-0", "2Mi")]
    for charged in ({"pods": used}, {"reservations": held}, {"retained": used}):
        fields: dict[str, Any] = charged
        waiting = api.put(quota("db/leaf", LIMIT, policy="Wait", **fields))
        del waiting["metadata"]["finalizers"]
        assert "has not put its finalizer on it" in await refused(api, delete(waiting))
        waiting["metadata"]["finalizers"] = ["hugetlb.dev/charged"]
        told = await allowed(api, delete(waiting))
        assert (
            "and the quotas below it take no more pods. The quota is deleted when nothing" in told
        )
    assert await allowed(api, delete(api.put(quota("db/leaf", LIMIT, policy="Wait")))) == ""


def moving(
    api: FakeApi, amount: str, room: str, attached_to: str | None = None, **fields: Any
) -> AdmissionRequest:
    """db/leaf, charged with ``amount``, moves from acme/tenant to acme/other below acme/root."""
    charged: dict[str, Any] = {"pods": {"hugepages-2Mi": amount}, "attached_to": attached_to}
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
    assert "HugeTLBQuota db/leaf can't be moved with its charge" in told
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


async def test_a_quota_moves_with_its_charge_from_a_parent_that_admits_it_no_more(
    api: FakeApi,
) -> None:
    request = moving(api, "100Mi", "256Mi", attached_to="acme/tenant")
    api.put(quota("acme/tenant", LIMIT, parent="acme/root"))  # it selects no namespace now
    async with admitting_quotas(api) as admission:
        decision = await admission.decide(request, Deadline.after(9))
    assert decision.allowed, decision.message
    assert api.reservations("acme/other") == {"uid-of-leaf": "100Mi"}
    # It counts what it held still.
    assert api.reservations("acme/root") == {}


async def test_a_parent_keeps_those_that_are_charged_through_it(api: FakeApi) -> None:
    api.put(namespace("db"))
    used: dict[str, Any] = {"pods": {"hugepages-2Mi": "100Mi"}, "attached_to": "acme/tenant"}
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", **used))
    tenant = quota("acme/tenant", LIMIT, children=OF_ACME, retained=LEFT, policy="Reparent")
    assert "charged to quotas below it: db/leaf" in await refused(api, delete(api.put(tenant)))
    lower = quota("acme/tenant", {"hugepages-2Mi": "64Mi"}, children=OF_ACME)
    assert "leave db/leaf with 128Mi" in await refused(api, update(api.raw("acme/tenant"), lower))


async def test_a_quota_is_not_put_below_one_that_is_charged_to_it(api: FakeApi) -> None:
    api.put(namespace("acme", tenant="acme"))
    api.put(namespace("db"))
    used: dict[str, Any] = {"pods": {"hugepages-2Mi": "100Mi"}, "attached_to": "acme/tenant"}
    leaf = quota(
        "db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", children=OF_ACME, **used
    )
    api.put(leaf)
    below = quota("acme/tenant", {}, parent="db/leaf", children=OF_ACME)
    told = await refused(api, update(api.raw("acme/tenant"), below))
    assert "acme/tenant -> db/leaf -> acme/tenant" in told


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
    assert "acme/tenant will no longer be the parent of db/leaf" in await allowed(
        api, delete(api.raw("acme/tenant"))
    )


async def test_an_unreadable_quota_can_be_deleted(api: FakeApi) -> None:
    assert await allowed(api, delete(api.put(quota("db/old", {"hugepages-3Mi": "3Mi"})))) == ""


async def test_a_narrower_child_selector_names_who_is_lost(api: FakeApi) -> None:
    told = await allowed(api, update(api.raw("acme/tenant"), quota("acme/tenant", LIMIT)))
    assert "acme/tenant will no longer be the parent of db/leaf" in told


async def test_a_selector_that_may_select_more_is_a_warning_with_the_room_there_is(
    api: FakeApi,
) -> None:
    narrow, narrower = {"a": "x"}, {"a": "x", "b": "y"}
    api.put(quota("acme/tenant", LIMIT, children=OF_ACME, pods={"hugepages-2Mi": "224Mi"}))
    hard, used = {"hugepages-2Mi": "128Mi"}, {"hugepages-2Mi": "64Mi"}

    def leaf(labels: dict[str, str]) -> dict[str, Any]:
        selector = {"matchLabels": labels}
        return quota("db/leaf", hard, parent="acme/tenant", selector=selector, pods=used)

    old = api.put(leaf(narrow))
    assert await allowed(api, update(old, leaf(narrower))) == ""
    told = await allowed(api, update(old, leaf({})))
    assert "db/leaf has room for 64Mi of hugepages-2Mi, acme/tenant has room for 32Mi" in told
    assert await allowed(api, update(old, leaf({"a": "z"}))) == told
    assert "charged to it." in await allowed(
        api, update(api.put(quota("db/all", {}, selector=OF_ACME)), quota("db/all", {}))
    )


BOUND = {"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "Exists"}]}
NOBODY = {"matchLabels": {"a": "x"}, "matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}


async def test_a_selector_by_what_comes_with_the_binding_is_refused(api: FakeApi) -> None:
    told = await refused(api, create(quota("db/new", LIMIT, selector=BOUND)))
    assert "the label topology.kubernetes.io/zone, which a pod gets from its node" in told
    # A namespace is never bound.
    assert await allowed(api, create(quota("db/new", LIMIT, children=BOUND))) == ""


@pytest.mark.parametrize("field", ["selector", "children"])
async def test_a_selector_that_nothing_can_match_is_refused(api: FakeApi, field: str) -> None:
    fields: dict[str, Any] = {field: NOBODY}
    told = await refused(api, create(quota("db/new", LIMIT, **fields)))
    assert "because it requires the label a and its absence." in told


@pytest.mark.parametrize("selector", [BOUND, NOBODY])
async def test_a_selector_that_is_stored_keeps_nothing_from_being_changed(
    api: FakeApi, selector: dict[str, Any]
) -> None:
    old = api.put(quota("db/old", LIMIT, selector=selector))
    new = quota("db/old", {"hugepages-2Mi": "64Mi"}, selector=selector)
    assert await allowed(api, update(old, new)) == ""


async def test_an_unchanged_spec_is_allowed_without_asking_anything(api: FakeApi) -> None:
    old = api.put(quota("db/bad", {"hugepages-3Mi": "3Mi"}, parent="db/bad"))
    new = {**old, "metadata": {**old["metadata"], "finalizers": ["x"]}}
    assert await allowed(api, update(old, new)) == ""
    assert api.requests == []
