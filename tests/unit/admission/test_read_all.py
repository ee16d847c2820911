"""The consistent reads of admission: all quotas, all namespaces' labels, a deleted namespace."""

from __future__ import annotations

from typing import Any

import pytest

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.admission.api import is_leaving, read_all
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.resources import Resource
from tests.unit.admission.fake_api import FakeApi, Fate, namespace, quota

LIMIT = {"hugepages-2Mi": "2Mi"}


class Paged(FakeApi):
    """An API server with two objects on each page."""

    async def list_page(
        self, resource: Resource, *args: Any, continuation: str | None = None, **more: Any
    ) -> dict[str, Any]:
        page = await super().list_page(resource, *args, continuation=continuation, **more)
        at = int(continuation or 0)
        rest = str(at + 2) if at + 2 < len(page["items"]) else ""
        return {
            "metadata": {**page["metadata"], "continue": rest},
            "items": page["items"][at : at + 2],
        }


@pytest.fixture
def api() -> Paged:
    """An API server with the namespace db."""
    api = Paged()
    api.put(namespace("db", team="a"))
    return api


async def test_reads_all_quotas_and_all_labels_page_by_page(api: Paged) -> None:
    bare = namespace("bare")
    del bare["metadata"]["labels"]
    api.put(bare)
    for key in ("db/a", "db/b", "bare/c"):
        api.put(quota(key, LIMIT))
    quotas, labels = await read_all(api, Deadline.after(9))
    assert [str(each.key) for each in quotas] == ["db/a", "db/b", "bare/c"]
    assert labels == {"db": {"team": "a"}, "bare": {}}


async def test_leaves_out_invalid_quotas(api: Paged) -> None:
    api.put(quota("db/bad", {"hugepages-3Mi": "3Mi"}))
    api.put(quota("db/good", LIMIT))
    quotas, _ = await read_all(api, Deadline.after(9))
    assert [each.key for each in quotas] == [QuotaKey("db", "good")]


async def test_an_empty_cluster_has_no_quotas() -> None:
    assert await read_all(Paged(), Deadline.after(9)) == ((), {})


async def test_a_deleted_namespace_is_leaving_and_a_missing_one_too(api: Paged) -> None:
    assert not await is_leaving(api, "db", Deadline.after(9))
    leaving = namespace("db")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:00Z"
    api.put(leaving)
    assert await is_leaving(api, "db", Deadline.after(9))
    assert await is_leaving(api, "gone", Deadline.after(9))


async def test_a_read_without_an_answer_decides_nothing() -> None:
    class Silent(FakeApi):
        async def turn(self, request: str) -> Fate:
            return "lost"

    with pytest.raises(errors.ApiUnreachable):
        await read_all(Silent(), Deadline.after(9))
    with pytest.raises(errors.ApiUnreachable):
        await is_leaving(Silent(), "db", Deadline.after(9))
