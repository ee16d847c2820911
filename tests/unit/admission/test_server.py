"""The server: probes, TLS, rotation of the certificate, and its end."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme

from hugetlb_quota.admission.connections import Connections
from hugetlb_quota.kube import errors
from tests.unit.admission.fake_api import FakeApi, Fate, pod
from tests.unit.admission.https import (
    PODS,
    WHOLE,
    Server,
    api_with_leaf,
    connect,
    issue,
    review,
    serving,
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with db/leaf of 128Mi."""
    async with serving(tmp_path, api_with_leaf()) as server:
        yield server


class Unreachable(FakeApi):
    async def turn(self, request: str) -> Fate:
        raise errors.ApiUnreachable("The API server can't be reached for GET /x: refused.")


async def test_without_the_api_server_admission_refuses_and_is_not_ready(tmp_path: Path) -> None:
    async with serving(tmp_path, Unreachable()) as server:
        answer = await server.review(PODS, review(pod()))
        assert "can't be reached" in answer["status"]["message"]
        assert (await server.get("/healthz"))[0] == 200
        status, text = await server.get("/readyz")
        assert (status, "can't be reached" in text) == (503, True)


async def test_admission_is_ready_if_the_api_server_answers(server: Server) -> None:
    assert (await server.get("/readyz"))[0] == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_old_tls_is_refused(server: Server) -> None:
    server.trust.minimum_version = ssl.TLSVersion.TLSv1
    server.trust.maximum_version = ssl.TLSVersion.TLSv1_1
    server.trust.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(aiohttp.ClientConnectorError):
        await server.get("/healthz")


async def test_a_rotated_certificate_is_loaded_and_a_half_written_one_is_not(
    tmp_path: Path,
) -> None:
    new = trustme.CA()
    async with serving(tmp_path, FakeApi()) as before:
        certificate = before.certificate
        after = Server(before.address, before.api, new, certificate)
        torn = new.issue_cert("127.0.0.1").cert_chain_pems[0]
        torn.write_to_path(tmp_path / "tls.crt")  # with the old key: half of a rotation
        certificate.refresh()
        assert (await before.get("/healthz"))[0] == 200
        issue(new, tmp_path)
        certificate.refresh()
        assert (await after.get("/healthz"))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await before.get("/healthz")


class Ending:
    """A server that can be ended, with its connections."""

    def __init__(self, server: Server, bounds: Connections, end: asyncio.Event) -> None:
        self.server = server
        self.bounds = bounds
        self.end = end

    async def begin(self) -> None:
        """End the server; return when it drains its connections."""
        self.end.set()
        while not self.bounds.draining:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def ending(
    tmp_path: Path, **options: float
) -> AsyncIterator[tuple[Ending, asyncio.Task[None]]]:
    """A server in a task; the task is done when the server has ended."""
    bounds, end = Connections(**options), asyncio.Event()  # type: ignore[arg-type]
    started: asyncio.Future[Server] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with serving(tmp_path, FakeApi(), bounds) as server:
            started.set_result(server)
            await end.wait()

    task = asyncio.create_task(run())
    try:
        yield Ending(await started, bounds, end), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_server_that_ends_goes_on_answering_and_closes_each_connection(
    tmp_path: Path,
) -> None:
    async with ending(tmp_path) as (ended, task):
        url = f"{ended.server.address}/secret/validate-pods"
        async with aiohttp.ClientSession() as session:

            async def create_pod() -> aiohttp.ClientResponse:
                async with session.post(url, json=review(pod()), ssl=ended.server.trust) as answer:
                    assert (await answer.json())["response"]["allowed"]
                return answer

            assert (await create_pod()).headers.get("Connection") != "close"
            (kept,) = ended.bounds._open
            await ended.begin()
            assert (await ended.server.get("/readyz"))[0] == 503
            assert not task.done()
            assert kept in ended.bounds._open
            assert (await create_pod()).headers["Connection"] == "close"
            async with asyncio.timeout(10):
                await task


async def test_a_server_that_ends_leaves_idle_connections_to_their_clients(tmp_path: Path) -> None:
    async with ending(tmp_path) as (ended, task):
        reader = await connect(ended.server, send=WHOLE)
        assert b"200 OK" in await reader.readline()
        await ended.begin()
        await asyncio.wait((task,), timeout=0.3)
        assert not task.done()
        assert len(ended.bounds) == 1
        ended.server.kept[0].close()
        async with asyncio.timeout(10):
            await task


async def test_a_server_ends_after_its_time_limit(tmp_path: Path) -> None:
    async with ending(tmp_path, drain=0.1) as (ended, task):
        reader = await connect(ended.server, send=WHOLE)
        assert b"200 OK" in await reader.readline()
        await ended.begin()
        async with asyncio.timeout(10):
            await task


async def test_a_server_that_ends_closes_the_connection_after_a_404_too(tmp_path: Path) -> None:
    async with ending(tmp_path) as (ended, _):
        await connect(ended.server)
        await ended.begin()
        reader = await connect(ended.server, send=WHOLE.replace(b"healthz", b"none"))
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert b"404" in answer
        assert b"Connection: close" in answer
