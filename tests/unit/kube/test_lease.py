"""Leader election against a server that keeps one Lease."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from hugetlb_quota.kube import lease
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.lease import LeadershipLost, lead
from tests.unit.http_server import serve, write_kubeconfig


class LeaseServer:
    """Stores one Lease by compare-and-swap; ``silent``: whether the server answers no request."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.silent = False
        self.requests: list[str] = []
        self.over = asyncio.Event()

    @property
    def holder(self) -> str | None:
        return None if self.lease is None else self.lease["spec"].get("holderIdentity")

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append(request.method)
        if self.silent:
            await self.over.wait()
        if request.method == "GET":
            return self._refused(404) if self.lease is None else web.json_response(self.lease)
        body = await request.json()
        if request.method == "POST" and self.lease is not None:
            return self._refused(409)
        if request.method == "PUT":
            assert self.lease is not None
            if body["metadata"].get("resourceVersion") != str(self.version):
                return self._refused(409)
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.lease = body
        return web.json_response(body)

    def _refused(self, code: int) -> web.Response:
        status = {"kind": "Status", "code": code, "reason": "", "message": ""}
        return web.Response(status=code, text=json.dumps(status), content_type="application/json")


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LeaseServer]:
    server = LeaseServer()
    runner = await serve(server.handle)
    write_kubeconfig(tmp_path / "kubeconfig", runner.addresses[0][1])
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    # The shortest times that the library allows.
    monkeypatch.setattr(lease, "LEASE_DURATION", 3)
    monkeypatch.setattr(lease, "RENEW_DEADLINE", 2)
    monkeypatch.setattr(lease, "RETRY_PERIOD", 1)
    monkeypatch.setattr(lease, "LEASE_REQUEST_TIMEOUT", 0.4)
    yield server
    server.over.set()
    await runner.cleanup()


class Work:
    """Runs until cancelled; sets an event at its beginning and at its end."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)  # stopping takes time
            self.ended.set()


@asynccontextmanager
async def candidate(identity: str, work: Any) -> AsyncIterator[asyncio.Task[None]]:
    async with Connection.open() as connection:
        task = asyncio.create_task(lead(connection, "ns", "the-lease", identity, work))
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_only_one_process_leads(server: LeaseServer) -> None:
    first, second = Work(), Work()
    async with asyncio.timeout(10), candidate("b", second), candidate("a", first):
        # One candidate leads first. The other candidate tries again and again, and must wait.
        await asyncio.wait(
            [asyncio.ensure_future(each.begun.wait()) for each in (first, second)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        await asyncio.sleep(1.5)
        assert first.begun.is_set() != second.begun.is_set()
    assert server.holder == ""


async def test_a_cancelled_leader_has_stopped_and_has_released_the_lease(
    server: LeaseServer,
) -> None:
    work = Work()
    async with asyncio.timeout(10):
        async with candidate("a", work):
            await work.begun.wait()
            assert server.holder == "a"
        assert work.ended.is_set()
        assert server.holder == ""
        server.requests.clear()
        successor = Work()
        async with candidate("b", successor):
            await successor.begun.wait()
            assert server.requests[:2] == ["GET", "PUT"]  # the successor did not wait


async def test_a_leader_that_cant_renew_stops(server: LeaseServer) -> None:
    work = Work()
    async with asyncio.timeout(10), candidate("a", work) as task:
        await work.begun.wait()
        server.silent = True
        server.requests.clear()
        with pytest.raises(LeadershipLost, match="Lease ns/the-lease could not be renewed"):
            await task
        assert work.ended.is_set()
        # RENEW_DEADLINE ends the attempts; there is one in each RETRY_PERIOD.
        assert len(server.requests) <= 4
    assert server.holder == "a"  # a lost Lease is not released


async def test_the_lease_is_renewed_while_work_blocks_the_loop(server: LeaseServer) -> None:
    """A count from scratch may block the loop for longer than a Lease lasts."""
    seen = threading.Event()

    async def work() -> None:
        while not seen.is_set():
            pass  # without await, so no other task of this loop runs

    async def program() -> None:
        async with Connection.open() as connection:
            await lead(connection, "ns", "the-lease", "a", work)

    # The server needs this loop.
    running = asyncio.create_task(asyncio.to_thread(asyncio.run, program()))
    try:
        async with asyncio.timeout(60):
            while server.version < 5:
                await asyncio.sleep(0.05)
    finally:
        seen.set()
        await running
    assert server.holder == ""


async def test_a_leader_stops_when_another_takes_its_lease(server: LeaseServer) -> None:
    work = Work()
    async with asyncio.timeout(10), candidate("a", work) as task:
        await work.begun.wait()
        assert server.lease is not None
        server.version += 1
        server.lease["metadata"]["resourceVersion"] = str(server.version)
        server.lease["spec"]["holderIdentity"] = "thief"
        with pytest.raises(LeadershipLost):
            await task
        assert work.ended.is_set()
    assert server.holder == "thief"


async def test_terms_are_ordered_and_only_a_leader_has_one(server: LeaseServer) -> None:
    terms: list[int] = []
    for identity in ("a", "b"):
        work = Work()
        async with asyncio.timeout(10), candidate(identity, work), Connection.open() as api:
            await work.begun.wait()
            terms.append(await lease.term(api, "ns", "the-lease", identity))
            with pytest.raises(LeadershipLost, match=f"is held by {identity}"):
                await lease.term(api, "ns", "the-lease", "another")
    assert terms[0] < terms[1]


async def test_failed_work_ends_the_leadership(server: LeaseServer) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    async with asyncio.timeout(10), candidate("a", fail) as task:
        with pytest.raises(ValueError, match="broken"):
            await task
    assert server.holder == ""


async def test_finished_work_ends_the_leadership(server: LeaseServer) -> None:
    async def end() -> None:
        return

    async with asyncio.timeout(10), candidate("a", end) as task:
        await task
    assert server.holder == ""


async def test_a_renewal_of_a_taken_lease_changes_only_its_time(server: LeaseServer) -> None:
    async with Connection.open() as connection:
        take = functools.partial(lease.take, connection, "ns", "the-lease", "uninstall")
        assert not await take(), "there is no Lease yet"
        server.version, server.lease = (
            1,
            {
                "metadata": {"name": "the-lease", "resourceVersion": "1"},
                "spec": {"holderIdentity": "a", "leaseTransitions": 4, "acquireTime": "old"},
            },
        )
        assert await take()
        taken = dict(server.lease["spec"])
        assert (taken["holderIdentity"], taken["leaseTransitions"]) == ("uninstall", 5)
        assert taken["acquireTime"] == taken["renewTime"]
        assert await take()
        renewed = server.lease["spec"]
        assert renewed["renewTime"] > taken["renewTime"]
        assert renewed == taken | {"renewTime": renewed["renewTime"]}
