"""Which reservations a replica of admission marks as over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from types import SimpleNamespace

import pytest

from hugetlb_quota.accounting.reservation import parse
from hugetlb_quota.admission import witness
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.witness import Witness
from hugetlb_quota.kube import errors
from tests.unit.admission.fake_api import FakeApi, Fate, namespace, quota, reservation

LINES = [
    reservation("pod-1", "db/a", "2Mi", request="r-1"),
    reservation("pod-2", "db/b", "2Mi", "2999-01-01T00:00:00Z", request="r-2"),
    reservation("pod-3", "db/c", "2Mi", request="r-3") + " worker",
]


class Replicas:
    """Replicas of admission with one clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.api = FakeApi()
        self.api.put(namespace("db"))
        self.api.put(quota("db/leaf", {"hugepages-2Mi": "8Mi"}, reservations=LINES))
        self.api.put(quota("db/empty", {"hugepages-2Mi": "8Mi"}))
        self.now = 100.0
        monkeypatch.setattr(witness, "time", SimpleNamespace(monotonic=lambda: self.now))

    @asynccontextmanager
    async def witness(self) -> AsyncIterator[Witness]:
        """A replica that starts now, and has looked once."""
        cache = QuotaCache(self.api)
        async with cache.running():
            await cache.ready()
            started = Witness(self.api, cache, timedelta(seconds=34))
            await started.look()
            yield started

    def over(self) -> dict[str, bool]:
        """By request, whether the line says that the life is over."""
        lines = map(parse, self.api.raw("db/leaf")["status"]["reservations"])
        return {each.request: each.is_over for each in lines}

    def write(self, lines: list[str]) -> None:
        self.api.put(quota("db/leaf", {"hugepages-2Mi": "8Mi"}, reservations=lines))


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> Replicas:
    return Replicas(monkeypatch)


async def test_a_reservation_is_marked_at_the_end_of_its_life_whatever_expires_says(
    replicas: Replicas,
) -> None:
    async with replicas.witness() as replica:
        replicas.now += 33.9
        await replica.look()
        assert replicas.api.writes == []
        replicas.now += 0.1
        await replica.look()
    assert replicas.over() == {"r-1": True, "r-2": True, "r-3": False}
    # Marked once; all else of the line stays.
    assert len(replicas.api.writes) == 1
    assert replicas.api.raw("db/leaf")["status"]["reservations"][0] == (
        "pod-1 db/a 2Mi:2Mi 1970-01-01T00:00:00Z r-1 0"
    )


async def test_a_replica_marks_only_lives_that_it_has_watched_from_their_beginning(
    replicas: Replicas,
) -> None:
    async with replicas.witness() as first:
        replicas.now += 20
        async with replicas.witness() as second:
            replicas.now += 14
            await second.look()
            assert not any(replicas.over().values())
            await first.look()
            assert replicas.over()["r-1"]
            marked = replicas.api.version
            replicas.now += 60
            await second.look()
            assert replicas.api.version == marked


async def test_a_new_reservation_in_a_cache_that_is_behind_is_not_marked(
    replicas: Replicas,
) -> None:
    """The replica marks by reservation, and writes to the stored quota."""

    async def no_news() -> None:
        await asyncio.Event().wait()

    async with replicas.witness() as replica:
        replicas.api.deliver = no_news  # type: ignore[method-assign]
        replicas.write([LINES[1], reservation("pod-4", "db/d", "2Mi", request="r-4")])
        replicas.now += 34
        await replica.look()
    assert replicas.over() == {"r-2": True, "r-4": False}


async def test_a_status_that_can_not_be_read_is_not_written(replicas: Replicas) -> None:
    replicas.write([*LINES, "garbage"])
    async with replicas.witness() as replica:
        replicas.now += 34
        await replica.look()
    assert replicas.api.writes == []


async def test_a_quota_that_can_not_be_written_keeps_no_other_quota_from_its_mark(
    replicas: Replicas,
) -> None:
    """A policy of the cluster may refuse the write."""
    turn = replicas.api.turn
    replicas.api.put(quota("db/refused", {"hugepages-2Mi": "8Mi"}, reservations=LINES[:1]))
    # The cache has the quotas in the order of their list: the refused quota comes first.
    replicas.api.objects = dict(reversed(replicas.api.objects.items()))

    async def refusing(request: str) -> Fate:
        if request.startswith("PUT") and "db/refused" in request:
            raise errors.Forbidden(403, "Forbidden", "a policy refuses the quota")
        return await turn(request)

    async with replicas.witness() as replica:
        replicas.api.turn = refusing  # type: ignore[method-assign]
        replicas.now += 34
        with pytest.raises(errors.Forbidden):
            await replica.look()
    assert replicas.over() == {"r-1": True, "r-2": True, "r-3": False}


async def test_a_mark_that_could_not_be_written_is_written_at_the_next_look(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "PERIOD", 0.0)
    fates: list[Fate] = ["lost", "lost"]
    turn = replicas.api.turn

    async def losing(request: str) -> Fate:
        await turn(request)
        return fates.pop() if fates and request.startswith("PUT") else "answered"

    async with replicas.witness() as replica:
        replicas.now += 34
        replicas.api.turn = losing  # type: ignore[method-assign]
        with pytest.raises(errors.ApiUnreachable):
            await replica.look()
        running = asyncio.create_task(replica.run())
        async with asyncio.timeout(10):
            while not replicas.over()["r-1"]:
                await asyncio.sleep(0)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
