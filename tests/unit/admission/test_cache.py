"""The cache of quotas: the newest version wins, and reads find what the watch has not delivered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from tests.unit.admission.fake_api import FakeApi, namespace, quota

LEAF = QuotaKey("db", "leaf")
SMALL, LARGE = {"hugepages-2Mi": "2Mi"}, {"hugepages-2Mi": "4Mi"}


class Late(FakeApi):
    """An API server with a watch that delivers no event after ``silent`` is set."""

    silent = False

    async def deliver(self) -> None:
        if self.silent:
            await asyncio.Event().wait()


@pytest.fixture
def api() -> Late:
    """An API server with db/leaf of 2Mi."""
    api = Late()
    api.put(namespace("db", team="a"))
    api.put(quota("db/leaf", SMALL))
    return api


@pytest.fixture
async def cache(api: Late) -> AsyncIterator[QuotaCache]:
    """A cache that has listed the quotas of ``api``."""
    cache = QuotaCache(api)
    async with cache.running():
        await cache.ready()
        yield cache


def limit(cache: QuotaCache, key: QuotaKey = LEAF) -> str:
    found = cache.get(key)
    assert isinstance(found, QuotaObject)
    return found.counter.hard.to_resources()["hugepages-2Mi"]


def leaf(cache: QuotaCache) -> QuotaObject:
    found = cache.get(LEAF)
    assert isinstance(found, QuotaObject)
    return found


async def test_the_watch_delivers_changes(api: Late, cache: QuotaCache) -> None:
    api.put(quota("db/leaf", LARGE))
    await cache.wait_for(api.version)
    assert limit(cache) == "4Mi"
    assert [each.key for each in cache.in_namespace("db")] == [LEAF]
    api.remove("db/leaf")
    await cache.wait_for(api.version)
    assert cache.get(LEAF) is None
    assert list(cache.in_namespace("db")) == []


async def test_a_newer_version_is_put_into_the_cache_and_an_older_one_is_not(
    api: Late, cache: QuotaCache
) -> None:
    api.silent = True
    old, new = api.raw("db/leaf"), api.put(quota("db/leaf", LARGE))
    cache.put_json(new)
    cache.put_json(old)
    assert limit(cache) == "4Mi"


async def test_a_deleted_quota_is_not_put_into_the_cache_again(
    api: Late, cache: QuotaCache
) -> None:
    old = api.raw("db/leaf")
    api.remove("db/leaf")
    await cache.wait_for(api.version)
    cache.put_json(old)
    assert cache.get(LEAF) is None


async def test_an_invalid_quota_is_cached_as_its_error(api: Late, cache: QuotaCache) -> None:
    api.put(quota("db/leaf", {"hugepages-3Mi": "3Mi"}))
    await cache.wait_for(api.version)
    assert isinstance(cache.get(LEAF), InvalidQuota)


async def test_newer_than_waits_for_the_watch(api: Late, cache: QuotaCache) -> None:
    old = leaf(cache)
    waiting = asyncio.create_task(cache.newer_than(old, patience=60))
    await asyncio.sleep(0)
    api.put(quota("db/leaf", LARGE))
    newer = await waiting
    assert int(newer.resource_version) > int(old.resource_version)
    assert not any(request.startswith("GET hugetlbquotas") for request in api.requests)


async def test_newer_than_reads_if_the_watch_is_late(api: Late, cache: QuotaCache) -> None:
    api.silent = True
    old = leaf(cache)
    api.put(quota("db/leaf", LARGE))
    newer = await cache.newer_than(old, patience=0)
    assert newer.counter.hard.to_resources() == LARGE


async def test_newer_than_raises_for_a_deleted_or_invalid_quota(
    api: Late, cache: QuotaCache
) -> None:
    api.silent = True
    old = leaf(cache)
    api.put(quota("db/leaf", {"hugepages-3Mi": "3Mi"}))
    with pytest.raises(InvalidQuota):
        await cache.newer_than(old, patience=0)
    api.remove("db/leaf")
    with pytest.raises(errors.NotFound):
        await cache.newer_than(QuotaObject.from_json(api_json(old)), patience=0)


def api_json(old: QuotaObject) -> dict[str, object]:
    """The JSON of ``old`` with a resourceVersion after all others."""
    raw = quota("db/leaf", SMALL)
    raw["metadata"] |= {"uid": old.uid, "resourceVersion": "1000000"}
    return raw


async def test_reads_find_what_the_watch_has_not_delivered(api: Late, cache: QuotaCache) -> None:
    api.silent = True
    api.put(quota("db/new", SMALL))
    api.put(quota("db/leaf", LARGE))
    api.put(namespace("db", team="b"))
    await cache.read_namespace("db")
    assert limit(cache, QuotaKey("db", "new")) == "2Mi"
    assert limit(cache) == "4Mi"
    api.remove("db/leaf")
    await cache.read([LEAF], ["db"])
    assert cache.get(LEAF) is None
    assert cache.labels["db"] == {"team": "b"}


async def test_a_write_below_the_position_lists_the_quotas_again(
    api: Late, cache: QuotaCache
) -> None:
    api.put(quota("db/other", SMALL))
    await cache.wait_for(api.version)
    position = cache.position
    # etcd is restored: versions go back, and db/other never existed. The old watch is silent.
    api.silent = True
    api.version = 1
    del api.objects["hugetlbquotas", "db", "other"]
    cache.put_json(api.put(quota("db/leaf", LARGE)), written_after=position)
    async with asyncio.timeout(10):
        while cache.get(QuotaKey("db", "other")) is not None:
            await asyncio.sleep(0)
    assert cache.position < position
    assert limit(cache) == "4Mi"
