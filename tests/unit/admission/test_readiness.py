"""The probes of admission: a replica is ready if the replica can decide and does not end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from hugetlb_quota.admission import readiness
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.readiness import Readiness
from tests.unit.admission.fake_api import FakeApi, Fate


class Api(FakeApi):
    """Answers no request while ``down``."""

    down = False

    async def turn(self, request: str) -> Fate:
        fate = await super().turn(request)
        return "lost" if self.down else fate


class Cache(QuotaCache):
    """A cache without informers. The test sets why the cache is not ready."""

    why = ""

    @property
    def why_not_ready(self) -> str:
        return self.why


class Replica:
    """The probes of a replica, with the API server and the cache that they check."""

    def __init__(self) -> None:
        self.api = Api()
        self.cache = Cache(self.api)
        self.readiness = Readiness(self.api, self.cache)
        application = web.Application()
        application.add_routes(self.readiness.routes())
        self.client = TestClient(TestServer(application))

    async def probe(self, path: str = "/readyz") -> tuple[int, str]:
        async with self.client.get(path) as answer:
            return answer.status, await answer.text()


@pytest.fixture
async def replica(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replica]:
    """A replica that checks for each probe."""
    monkeypatch.setattr(readiness, "CHECK_PERIOD", 0.0)
    replica = Replica()
    async with replica.client:
        yield replica


async def test_a_replica_that_can_read_the_quotas_is_ready(replica: Replica) -> None:
    assert await replica.probe() == (200, "ok\n")
    assert replica.api.requests == ["LIST hugetlbquotas "]


async def test_says_why_quotas_cannot_be_read(replica: Replica) -> None:
    replica.api.down = True
    assert await replica.probe() == (
        503,
        "HugeTLBQuotas can't be read: The API server did not answer LIST.\n",
    )
    replica.api.down = False
    assert (await replica.probe())[0] == 200


async def test_says_why_quotas_cannot_be_watched_without_a_read(replica: Replica) -> None:
    replica.cache.why = "No answer."
    assert await replica.probe() == (503, "HugeTLBQuotas can't be watched: No answer.\n")
    assert replica.api.requests == []


async def test_a_replica_that_ends_is_not_ready_and_makes_no_read(replica: Replica) -> None:
    replica.readiness.end()
    assert await replica.probe() == (503, "This replica is ending; use another replica.\n")
    assert replica.api.requests == []


async def test_a_replica_that_is_not_ready_is_alive(replica: Replica) -> None:
    replica.api.down, replica.cache.why = True, "No answer."
    replica.readiness.end()
    assert await replica.probe("/healthz") == (200, "ok\n")


@pytest.mark.parametrize(("down", "status"), [(False, 200), (True, 503)])
async def test_probes_share_the_result_of_one_check(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, down: bool, status: int
) -> None:
    monkeypatch.setattr(readiness, "CHECK_PERIOD", 3600.0)
    replica.api.down = down
    first = await asyncio.gather(*(replica.probe() for _ in range(5)))
    replica.api.down = not down
    assert {each for each, _ in [*first, await replica.probe()]} == {status}
    assert len(replica.api.requests) == 1
