"""How the uninstall removes the operator's finalizer from a quota."""

from __future__ import annotations

from hugetlb_quota.api.quota import FINALIZER
from hugetlb_quota.kube.finalizers import has_finalizer, remove_finalizer
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS
from tests.unit.controller.fake_objects import FakeObjects, Json


def quota(*finalizers: str) -> Json:
    metadata = {"namespace": "db", "name": "leaf", "finalizers": list(finalizers)}
    return {"metadata": metadata, "spec": {"hard": {}}}


async def test_only_our_finalizer_is_removed() -> None:
    api = FakeObjects()
    api.put(HUGETLB_QUOTAS, quota("other/s", FINALIZER))
    raw = await api.get(HUGETLB_QUOTAS, "leaf")
    assert has_finalizer(raw)
    assert await remove_finalizer(api, raw)
    stored = await api.get(HUGETLB_QUOTAS, "leaf")
    assert stored["metadata"]["finalizers"] == ["other/s"]
    assert stored["spec"] == {"hard": {}}
    assert not has_finalizer(stored)


async def test_a_changed_quota_must_be_read_again() -> None:
    api = FakeObjects()
    api.put(HUGETLB_QUOTAS, quota(FINALIZER))
    raw = await api.get(HUGETLB_QUOTAS, "leaf")
    api.put(HUGETLB_QUOTAS, quota(FINALIZER, "other/s"))
    assert not await remove_finalizer(api, raw)
    stored = await api.get(HUGETLB_QUOTAS, "leaf")
    assert stored["metadata"]["finalizers"] == [FINALIZER, "other/s"]


async def test_a_deleted_quota_needs_nothing() -> None:
    api = FakeObjects()
    api.put(HUGETLB_QUOTAS, quota(FINALIZER))
    raw = await api.get(HUGETLB_QUOTAS, "leaf")
    api.objects.clear()
    assert not await remove_finalizer(api, raw)


def test_a_quota_without_finalizers_has_not_ours() -> None:
    assert not has_finalizer({"metadata": {}})
    assert not has_finalizer(quota("other/s"))
