"""The quotas that govern a pod, that a request charges, and that a refusal depends on."""

from __future__ import annotations

from typing import Any

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import shortfalls
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.admission.batch import NoRoom
from hugetlb_quota.admission.governing import PodRefused, governing_quotas, quotas_to_charge
from hugetlb_quota.admission.requested_pod import RequestedPod
from hugetlb_quota.admission.review import AdmissionRequest
from hugetlb_quota.kube.quotas import InvalidQuota
from hugetlb_quota.page_size import PageSize
from tests.unit.admission.fake_api import (
    FakeApi,
    create,
    filled_cache,
    namespace,
    pod,
    quota,
    update,
    with_tenant,
)

LIMIT = {"hugepages-2Mi": "128Mi"}
LEAF, TENANT = QuotaKey("db", "leaf"), QuotaKey("acme", "tenant")


def selects(app: str) -> dict[str, Any]:
    return {"matchLabels": {"app": app}}


@pytest.fixture
def api() -> FakeApi:
    """An API server with acme/tenant, db/leaf below for all pods, and db/gold for some."""
    api = with_tenant(FakeApi())
    api.put(quota("db/gold", LIMIT, parent="acme/tenant", selector=selects("gold")))
    return api


async def governed(api: FakeApi, **labels: str) -> set[str]:
    return {key.name for key in governing_quotas(await filled_cache(api), "db", labels)}


async def charged(api: FakeApi, request: AdmissionRequest) -> list[str]:
    found = quotas_to_charge(await filled_cache(api), RequestedPod.of(request))
    return [str(each.key) for each in found]


async def refused(api: FakeApi, request: AdmissionRequest) -> PodRefused:
    with pytest.raises(PodRefused) as raised:
        await charged(api, request)
    return raised.value


def relabelled(old: str, new: str) -> AdmissionRequest:
    return update(pod(labels={"app": old}), pod(labels={"app": new}))


async def test_the_quotas_of_the_namespace_that_select_the_pod_govern_it(api: FakeApi) -> None:
    assert await governed(api, app="gold") == {"leaf", "gold"}
    assert await governed(api, app="other") == {"leaf"}


async def test_an_invalid_quota_of_the_namespace_may_govern_the_pod(api: FakeApi) -> None:
    api.put(quota("db/bad", {"hugepages-3Mi": "3Mi"}, selector=selects("none")))
    with pytest.raises(InvalidQuota, match="db/bad is invalid"):
        await governed(api)


async def test_each_quota_is_charged_once_and_before_its_ancestors(api: FakeApi) -> None:
    found = await charged(api, create(pod(labels={"app": "gold"})))
    assert found[-1] == "acme/tenant"
    assert sorted(found) == ["acme/tenant", "db/gold", "db/leaf"]


async def test_an_ungoverned_pod_charges_no_quota(api: FakeApi) -> None:
    assert await charged(api, create(pod(namespace="free"))) == []


async def test_a_relabelled_pod_charges_only_its_new_quotas(api: FakeApi) -> None:
    assert await charged(api, relabelled("old", "gold")) == ["db/gold"]
    assert await charged(api, relabelled("gold", "old")) == []
    assert await charged(api, relabelled("gold", "gold")) == []


async def test_a_relabelled_pod_charges_the_new_ancestors_too(api: FakeApi) -> None:
    api.put(quota("db/top", LIMIT, selector=selects("none")))
    api.put(quota("db/gold", LIMIT, parent="db/top", selector=selects("gold")))
    assert await charged(api, relabelled("old", "gold")) == ["db/gold", "db/top"]


async def test_a_relabelled_pod_stays_charged_to_the_ancestors_of_its_old_quota(
    api: FakeApi,
) -> None:
    api.put(quota("db/leaf", LIMIT, parent="acme/tenant", selector=selects("old")))
    assert await charged(api, relabelled("old", "gold")) == ["db/gold"]


async def test_a_broken_chain_of_an_old_quota_does_not_refuse_a_relabelled_pod(
    api: FakeApi,
) -> None:
    api.put(quota("db/leaf", LIMIT, parent="acme/gone"))
    assert await charged(api, relabelled("old", "gold")) == ["db/gold", "acme/tenant"]


async def test_a_refusal_by_an_invalid_ancestor_depends_on_the_ancestor(api: FakeApi) -> None:
    api.put(quota("acme/tenant", {"hugepages-3Mi": "3Mi"}))
    refusal = await refused(api, create(pod()))
    assert refusal.quotas == {TENANT}
    assert "HugeTLBQuota acme/tenant is invalid" in refusal.message


async def test_a_refusal_by_a_missing_parent_depends_on_the_chain_and_the_parent(
    api: FakeApi,
) -> None:
    api.remove("db/gold")
    api.put(quota("db/leaf", LIMIT, parent="acme/gone"))
    refusal = await refused(api, create(pod()))
    assert refusal.quotas == {LEAF, QuotaKey("acme", "gone")}
    assert refusal.by == (LEAF,)
    assert refusal.namespaces == {"db"}


async def test_a_refusal_by_a_foreign_parent_depends_on_the_labels_of_the_namespace(
    api: FakeApi,
) -> None:
    api.remove("db/gold")
    api.put(namespace("db", tenant="other"))
    refusal = await refused(api, create(pod()))
    assert refusal.quotas == {LEAF, TENANT}
    assert refusal.by == (LEAF,)
    assert refusal.namespaces == {"db"}
    assert "does not let quotas of namespace db attach" in refusal.message


async def test_a_refusal_for_lack_of_room_depends_on_the_quotas_without_room(api: FakeApi) -> None:
    leaf, tenant = api.quota("db/leaf").counter, api.quota("acme/tenant").counter
    short = shortfalls((leaf, tenant), Charge({PageSize(2 << 20): 192 << 20}), "pod-1")
    refusal = PodRefused.over_quota(RequestedPod.of(create(pod())), NoRoom.of(short, []))
    assert refusal.quotas == {LEAF}
    assert (refusal.by, refusal.cause) == ((), "rule")
    assert "HugeTLBQuota db/leaf has room for 128Mi" in refusal.message
