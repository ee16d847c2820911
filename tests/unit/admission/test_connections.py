"""The bounds on connections, over real TLS."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from hugetlb_quota.admission.connections import Connections
from tests.unit.admission.fake_api import FakeApi, pod
from tests.unit.admission.https import (
    HALF,
    PODS,
    WHOLE,
    api_with_leaf,
    connect,
    is_closed,
    review,
    serving,
    small,
    until,
)


@pytest.mark.parametrize("sent", [b"", HALF, WHOLE], ids=["nothing", "half of a head", "no second"])
async def test_an_idle_connection_is_closed(tmp_path: Path, sent: bytes) -> None:
    bounds = Connections(first_request=0.2, idle=0.2)
    async with serving(tmp_path, FakeApi(), bounds) as server:
        reader = await connect(server, send=sent)
        async with asyncio.timeout(10):
            with suppress(ConnectionResetError):
                answer = await reader.read()
                assert (b"200 OK" in answer) == (sent == WHOLE)
        assert len(bounds) == 0


async def test_a_connection_above_the_limit_waits_and_closes_no_other(tmp_path: Path) -> None:
    bounds = Connections(most=4, drain=0, spared=60)
    api = api_with_leaf()
    async with serving(tmp_path, api, bounds) as server, asyncio.timeout(30):
        api.delay = 0.05
        reviews = [
            asyncio.create_task(server.review(PODS, review(small(f"p{number}"))))
            for number in range(20)
        ]
        while not all(task.done() for task in reviews):
            assert len(bounds) <= 4
            await asyncio.sleep(0.005)
        assert all([(await task)["allowed"] for task in reviews])


async def test_a_connection_above_the_limit_closes_a_silent_one(tmp_path: Path) -> None:
    bounds = Connections(most=4, drain=0, spared=0.05)
    api = api_with_leaf()
    async with serving(tmp_path, api, bounds) as server, asyncio.timeout(30):
        api.delay = 0.5
        task = asyncio.create_task(server.review(PODS, review(pod())))
        await until(lambda: any(each.busy for each in bounds._open.values()))
        silent = [await connect(server) for _ in range(12)]
        assert len(bounds) <= 4
        # The client that waits gets its answer.
        assert (await task)["allowed"]
        assert await is_closed(silent[0])


async def test_a_connection_without_a_request_is_closed_before_one_with_a_request(
    tmp_path: Path,
) -> None:
    bounds = Connections(drain=0, spared=0)
    api = api_with_leaf()
    async with serving(tmp_path, api, bounds) as server:
        api.delay = 0.05
        reader = await connect(server, send=WHOLE)
        assert b"200 OK" in await reader.readline()
        (had_request,) = bounds._open.values()
        await until(lambda: bounds._silent() is had_request)
        await connect(server)
        await until(lambda: len(bounds) == 2)
        assert bounds._silent() not in (None, had_request)


async def test_a_connection_with_unread_data_is_not_silent(tmp_path: Path) -> None:
    bounds = Connections(drain=0, spared=0)
    api = api_with_leaf()
    async with serving(tmp_path, api, bounds) as server:
        api.delay = 0.05
        reader = await connect(server)
        await until(lambda: len(bounds))
        (kept,) = bounds._open.values()
        assert bounds._silent() is kept
        # From here to the next await, the data has come, and the server has not read the data.
        server.kept[0].write(WHOLE)
        assert bounds._silent() is None
        assert b"200 OK" in await reader.readline()
