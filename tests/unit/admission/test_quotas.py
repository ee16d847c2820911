"""Decisions about quotas, one request at a time."""

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
    """An API server with acme/tenant of 256Mi, db/leaf of 128Mi below, and a foreign namespace."""
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
    ("hard", "message"),
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
async def test_a_malformed_limit_is_refused(
    api: FakeApi, hard: dict[str, Any], message: str
) -> None:
    text = await refused(api, create(quota("db/new", hard)))
    assert message in text
    assert text.startswith("HugeTLBQuota db/new is refused: spec.hard: ")


async def test_a_quota_that_is_its_own_parent_is_refused(api: FakeApi) -> None:
    text = await refused(api, create(quota("db/new", LIMIT, parent="db/new")))
    assert "names itself as its parent" in text


async def test_a_cycle_is_refused_and_the_message_has_the_path(api: FakeApi) -> None:
    tenant = api.raw("acme/tenant")
    api.put(namespace("acme", tenant="acme"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", children=OF_ACME))
    text = await refused(
        api, update(tenant, quota("acme/tenant", LIMIT, parent="db/leaf", children=OF_ACME))
    )
    assert "acme/tenant -> db/leaf -> acme/tenant" in text


async def test_a_foreign_parent_is_refused(api: FakeApi) -> None:
    text = await refused(api, create(quota("strange/q", LIMIT, parent="acme/tenant")))
    assert "acme/tenant does not let quotas of namespace strange attach" in text


async def test_a_quota_that_limits_no_size_is_a_warning(api: FakeApi) -> None:
    text = await allowed(api, create(quota("db/new", {}, parent="acme/tenant")))
    assert "HugeTLBQuota db/new limits nothing, because spec.hard is empty" in text
    closed = quota("db/new", {"hugepages-2Mi": "0"}, parent="acme/tenant")
    assert await allowed(api, create(closed)) == ""
    text = await allowed(api, update(closed, quota("db/new", {}, parent="acme/tenant")))
    assert "limits nothing" in text


async def test_a_missing_parent_is_a_warning(api: FakeApi) -> None:
    text = await allowed(api, create(quota("db/new", LIMIT, parent="acme/later")))
    assert "db/new is not attached yet" in text
    assert "acme/later, which does not exist" in text


async def test_a_missing_ancestor_further_up_is_a_warning(api: FakeApi) -> None:
    api.put(quota("acme/tenant", LIMIT, parent="acme/later", children=OF_ACME))
    assert "acme/later" in await allowed(api, create(quota("db/new", LIMIT, parent="acme/tenant")))


async def test_a_foreign_ancestor_further_up_is_a_warning(api: FakeApi) -> None:
    api.put(quota("strange/top", LIMIT))
    api.put(quota("acme/tenant", LIMIT, parent="strange/top", children=OF_ACME))
    text = await allowed(api, create(quota("db/new", LIMIT, parent="acme/tenant")))
    assert "strange/top does not let quotas of namespace acme attach" in text


async def test_a_limit_above_the_parents_limit_is_refused_with_both_numbers(api: FakeApi) -> None:
    text = await refused(
        api, create(quota("db/new", {"hugepages-2Mi": "512Mi"}, parent="acme/tenant"))
    )
    assert "512Mi of hugepages-2Mi" in text
    assert "the 256Mi of acme/tenant" in text


async def test_a_limit_is_compared_with_the_nearest_ancestor_that_limits_the_size(
    api: FakeApi,
) -> None:
    api.put(quota("db/leaf", {}, parent="acme/tenant"))
    below = quota("db/new", {"hugepages-2Mi": "512Mi"}, parent="db/leaf")
    assert "the 256Mi of acme/tenant" in await refused(api, create(below))
    unlimited = quota("db/new", {"hugepages-1Gi": "512Gi"}, parent="db/leaf")
    assert await allowed(api, create(unlimited)) == ""


async def test_lowering_a_limit_below_a_childs_limit_is_refused(api: FakeApi) -> None:
    old = api.raw("acme/tenant")
    text = await refused(
        api, update(old, quota("acme/tenant", {"hugepages-2Mi": "64Mi"}, children=OF_ACME))
    )
    assert "db/leaf with 128Mi of hugepages-2Mi, above the 64Mi of acme/tenant" in text


async def test_a_first_limit_below_a_grandchilds_limit_is_refused(api: FakeApi) -> None:
    api.put(quota("acme/tenant", {}, children=OF_ACME))
    api.put(quota("db/leaf", {}, parent="acme/tenant"))
    api.put(quota("db/deep", LIMIT, parent="db/leaf"))
    changed = quota("acme/tenant", {"hugepages-2Mi": "64Mi"}, children=OF_ACME)
    assert "leave db/deep" in await refused(api, update(api.raw("acme/tenant"), changed))


async def test_a_new_parent_below_the_limit_of_a_waiting_child_is_a_warning(api: FakeApi) -> None:
    api.put(quota("db/waiting", {"hugepages-2Mi": "512Mi"}, parent="acme/new"))
    text = await allowed(api, create(quota("acme/new", LIMIT, children=OF_ACME)))
    assert "HugeTLBQuota db/waiting has 512Mi of hugepages-2Mi, above the 256Mi of acme/new" in text


async def test_a_limit_above_the_ancestors_may_be_lowered_and_not_raised(api: FakeApi) -> None:
    old = api.put(quota("db/leaf", {"hugepages-2Mi": "512Mi"}, parent="acme/tenant"))
    lower = quota("db/leaf", {"hugepages-2Mi": "384Mi"}, parent="acme/tenant")
    assert "384Mi" in await allowed(api, update(old, lower))
    higher = quota("db/leaf", {"hugepages-2Mi": "514Mi"}, parent="acme/tenant")
    assert "514Mi" in await refused(api, update(old, higher))


async def test_a_limit_below_the_use_is_a_warning(api: FakeApi) -> None:
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


async def test_retained_pages_refuse_the_deletion_by_default(api: FakeApi) -> None:
    text = await refused(api, delete(api.put(quota("db/leaf", LIMIT, retained=LEFT))))
    assert "10Mi of hugepages-2Mi, including 10Mi of hugepages-2Mi retained" in text
    assert "truncate or remove the files, or set spec.deletionPolicy to Reparent" in text


async def test_retained_pages_go_to_the_parent_with_policy_reparent(
    api: FakeApi,
) -> None:
    leaf = quota("db/leaf", LIMIT, parent="acme/tenant", retained=LEFT, policy="Reparent")
    text = await allowed(api, delete(api.put(leaf)))
    assert "10Mi of hugepages-2Mi that pods left in files is charged to HugeTLBQuota acme/" in text


async def test_policy_reparent_without_a_parent_refuses_the_deletion(api: FakeApi) -> None:
    for parent in (None, "acme/gone"):
        leaf = quota("db/leaf", LIMIT, parent=parent, retained=LEFT, policy="Reparent")
        assert "no quota above to charge it to" in await refused(api, delete(api.put(leaf)))


async def test_pods_refuse_the_deletion_with_policy_reparent_too(api: FakeApi) -> None:
    leaf = quota("db/leaf", LIMIT, parent="acme/tenant", pods=LEFT, policy="Reparent")
    assert "stop the pods that use them" in await refused(api, delete(api.put(leaf)))


async def test_charged_children_refuse_the_deletion_with_policy_reparent(api: FakeApi) -> None:
    api.put(quota("db/leaf", LIMIT, parent="acme/tenant", retained=LEFT))
    tenant = quota("acme/tenant", LIMIT, children=OF_ACME, retained=LEFT, policy="Reparent")
    text = await refused(api, delete(api.put(tenant)))
    assert "charged to a quota below it: db/leaf (10Mi of hugepages-2Mi)" in text


async def test_a_namespace_is_deleted_with_quotas_that_have_retained_pages(api: FakeApi) -> None:
    leaving = namespace("db", tenant="acme")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"
    api.put(leaving)
    text = await allowed(api, delete(api.put(quota("db/leaf", LIMIT, retained=LEFT))))
    assert "stays on its nodes, charged to no quota" in text


def leaving(api: FakeApi, name: str) -> None:
    gone = namespace(name, tenant="acme")
    gone["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"
    api.put(gone)


async def test_a_quota_of_a_deleted_namespace_stays_until_it_is_uncharged(
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
        text = await allowed(api, delete(tenant))
        assert (
            "and the quotas below it take no more pods. The quota is deleted when nothing" in text
        )
        # Without the finalizer the quota and its charge would be gone at once.
        tenant["metadata"]["finalizers"] = ["other"]
        assert "has not put its finalizer on it" in await refused(api, delete(tenant))


async def test_policy_wait_allows_the_deletion_if_the_finalizer_is_there(api: FakeApi) -> None:
    used = {"hugepages-2Mi": "64Mi"}
    held = [reservation("u", "db/pg-0", "2Mi")]
    for charged in ({"pods": used}, {"reservations": held}, {"retained": used}):
        fields: dict[str, Any] = charged
        waiting = api.put(quota("db/leaf", LIMIT, policy="Wait", **fields))
        del waiting["metadata"]["finalizers"]
        assert "has not put its finalizer on it" in await refused(api, delete(waiting))
        waiting["metadata"]["finalizers"] = ["hugetlb.dev/charged"]
        text = await allowed(api, delete(waiting))
        assert (
            "and the quotas below it take no more pods. The quota is deleted when nothing" in text
        )
    assert await allowed(api, delete(api.put(quota("db/leaf", LIMIT, policy="Wait")))) == ""


def moving(
    api: FakeApi, amount: str, room: str, attached_to: str | None = None, **fields: Any
) -> AdmissionRequest:
    """db/leaf with a charge moves from acme/tenant to acme/other; both are below acme/root."""
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


async def test_a_quota_that_moves_reserves_its_charge_on_its_new_ancestors(
    api: FakeApi,
) -> None:
    request = moving(api, "100Mi", "256Mi")
    async with admitting_quotas(api) as admission:
        decision = await admission.decide(request, Deadline.after(9))
    assert decision.allowed, decision.message
    assert api.reservations("acme/other") == {"uid-of-leaf": "100Mi"}
    # The common ancestor counts the charge already.
    assert api.reservations("acme/root") == api.reservations("acme/tenant") == {}


async def test_a_quota_does_not_move_to_a_parent_without_room(api: FakeApi) -> None:
    text = await refused(api, moving(api, "130Mi", "128Mi"))
    assert "HugeTLBQuota db/leaf can't be moved with its charge" in text
    assert "acme/other has room for 128Mi" in text
    assert "2Mi is missing" in text


async def test_a_dry_run_of_a_move_reserves_nothing(api: FakeApi) -> None:
    assert await allowed(api, moving(api, "100Mi", "256Mi", dry_run=True)) == ""


async def test_a_charged_quota_does_not_move_to_a_missing_parent(api: FakeApi) -> None:
    charged: dict[str, Any] = {"pods": {"hugepages-2Mi": "100Mi"}}
    old = api.put(quota("db/leaf", LIMIT, parent="acme/tenant", **charged))
    text = await refused(api, update(old, quota("db/leaf", LIMIT, parent="acme/gone", **charged)))
    assert "acme/gone, which does not exist" in text


async def test_a_quota_does_not_move_while_pods_are_being_created_under_it(api: FakeApi) -> None:
    charged: dict[str, Any] = {"reservations": [reservation("u", "db/pg-0", "100Mi")]}
    old = api.put(quota("db/leaf", LIMIT, parent="acme/tenant", **charged))
    text = await refused(api, update(old, quota("db/leaf", LIMIT, **charged)))
    assert "while pods are being created under it" in text
    assert "db/pg-0" in text


async def test_a_quota_moves_away_from_a_parent_that_no_longer_lets_it_attach(
    api: FakeApi,
) -> None:
    request = moving(api, "100Mi", "256Mi", attached_to="acme/tenant")
    api.put(quota("acme/tenant", LIMIT, parent="acme/root"))  # without childNamespaces now
    async with admitting_quotas(api) as admission:
        decision = await admission.decide(request, Deadline.after(9))
    assert decision.allowed, decision.message
    assert api.reservations("acme/other") == {"uid-of-leaf": "100Mi"}
    # acme/root still counts the charge, as before the move.
    assert api.reservations("acme/root") == {}


async def test_an_attached_quota_still_counts_as_a_child(api: FakeApi) -> None:
    api.put(namespace("db"))
    used: dict[str, Any] = {"pods": {"hugepages-2Mi": "100Mi"}, "attached_to": "acme/tenant"}
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", **used))
    tenant = quota("acme/tenant", LIMIT, children=OF_ACME, retained=LEFT, policy="Reparent")
    assert "charged to a quota below it: db/leaf" in await refused(api, delete(api.put(tenant)))
    lower = quota("acme/tenant", {"hugepages-2Mi": "64Mi"}, children=OF_ACME)
    assert "leave db/leaf with 128Mi" in await refused(api, update(api.raw("acme/tenant"), lower))


async def test_a_quota_can_not_move_below_a_quota_that_is_charged_to_it(api: FakeApi) -> None:
    api.put(namespace("acme", tenant="acme"))
    api.put(namespace("db"))
    used: dict[str, Any] = {"pods": {"hugepages-2Mi": "100Mi"}, "attached_to": "acme/tenant"}
    leaf = quota(
        "db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", children=OF_ACME, **used
    )
    api.put(leaf)
    below = quota("acme/tenant", {}, parent="db/leaf", children=OF_ACME)
    text = await refused(api, update(api.raw("acme/tenant"), below))
    assert "acme/tenant -> db/leaf -> acme/tenant" in text


async def test_an_uncharged_quota_may_move(api: FakeApi) -> None:
    assert await allowed(api, update(api.raw("db/leaf"), quota("db/leaf", LIMIT))) == ""


@pytest.mark.parametrize("charged", CHARGED, ids=["by pods", "by a reservation"])
async def test_a_charged_quota_is_not_deleted(api: FakeApi, charged: dict[str, Any]) -> None:
    text = await refused(api, delete(api.put(quota("db/leaf", LIMIT, **charged))))
    assert "db/leaf can't be deleted" in text
    assert "100Mi of hugepages-2Mi" in text


async def test_a_quota_with_only_an_identity_may_move_and_be_deleted(api: FakeApi) -> None:
    identity: dict[str, Any] = {"reservations": [reservation("u", "db/pg-0", "100Mi") + " worker"]}
    old = api.put(quota("db/leaf", LIMIT, parent="acme/tenant", **identity))
    assert await allowed(api, update(old, quota("db/leaf", LIMIT, **identity))) == ""
    assert await allowed(api, delete(old)) == ""


async def test_an_uncharged_quota_may_be_deleted_with_a_warning_about_its_children(
    api: FakeApi,
) -> None:
    assert await allowed(api, delete(api.raw("db/leaf"))) == ""
    assert "acme/tenant will no longer be the parent of db/leaf" in await allowed(
        api, delete(api.raw("acme/tenant"))
    )


async def test_an_invalid_quota_may_be_deleted(api: FakeApi) -> None:
    assert await allowed(api, delete(api.put(quota("db/old", {"hugepages-3Mi": "3Mi"})))) == ""


async def test_a_narrower_child_selector_is_a_warning_about_lost_children(api: FakeApi) -> None:
    text = await allowed(api, update(api.raw("acme/tenant"), quota("acme/tenant", LIMIT)))
    assert "acme/tenant will no longer be the parent of db/leaf" in text


async def test_a_wider_pod_selector_is_a_warning_with_the_present_room(
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
    text = await allowed(api, update(old, leaf({})))
    assert "db/leaf has room for 64Mi of hugepages-2Mi, acme/tenant has room for 32Mi" in text
    assert await allowed(api, update(old, leaf({"a": "z"}))) == text
    assert "charged to it." in await allowed(
        api, update(api.put(quota("db/all", {}, selector=OF_ACME)), quota("db/all", {}))
    )


BOUND = {"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "Exists"}]}
NOBODY = {"matchLabels": {"a": "x"}, "matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}


async def test_a_selector_with_a_label_from_the_binding_is_refused(api: FakeApi) -> None:
    text = await refused(api, create(quota("db/new", LIMIT, selector=BOUND)))
    assert "the label topology.kubernetes.io/zone, which a pod gets from its node" in text
    # A selector of namespaces may use the label.
    assert await allowed(api, create(quota("db/new", LIMIT, children=BOUND))) == ""


@pytest.mark.parametrize("field", ["selector", "children"])
async def test_a_selector_that_nothing_can_match_is_refused(api: FakeApi, field: str) -> None:
    fields: dict[str, Any] = {field: NOBODY}
    text = await refused(api, create(quota("db/new", LIMIT, **fields)))
    assert "because it requires the label a and its absence." in text


@pytest.mark.parametrize("selector", [BOUND, NOBODY])
async def test_a_stored_invalid_selector_does_not_block_other_changes(
    api: FakeApi, selector: dict[str, Any]
) -> None:
    old = api.put(quota("db/old", LIMIT, selector=selector))
    new = quota("db/old", {"hugepages-2Mi": "64Mi"}, selector=selector)
    assert await allowed(api, update(old, new)) == ""


async def test_an_unchanged_spec_is_allowed_without_a_request_to_the_api_server(
    api: FakeApi,
) -> None:
    old = api.put(quota("db/bad", {"hugepages-3Mi": "3Mi"}, parent="db/bad"))
    new = {**old, "metadata": {**old["metadata"], "finalizers": ["x"]}}
    assert await allowed(api, update(old, new)) == ""
    assert api.requests == []
