"""New replicas of admission replace old replicas one at a time, and no create of a pod fails.

A forwarder acts as the Service. As in a rolling update, a new replica is Ready before an old
replica ends. The old replica gets no new connections, and still answers on the API server's
connections.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.chaos import load
from tests.chaos.faults import port_of
from tests.chaos.forwarder import Forwarder
from tests.chaos.observer import PAGES
from tests.kube import chart as charts
from tests.kube.api import Object
from tests.kube.cluster import Cluster
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program
from tests.kube.quotas import create_quota

CREATORS = 12
REPLACED = 4


@pytest.fixture(scope="module")
def own_cluster(assets: object) -> Iterator[Cluster]:
    """A cluster for this test alone, because the test changes the webhooks."""
    with ControlPlane() as plane, Cluster(control_plane=plane) as running:
        yield running


class Creators:
    """Clients that create one pod after the other; `failed` has every answer but 201."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self.created = 0
        self.failed: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Create pods inside the context, and wait for started requests at its end."""
        end = asyncio.Event()
        connector = aiohttp.TCPConnector(limit=CREATORS, ssl=self._plane.admin_tls())
        async with aiohttp.ClientSession(connector=connector) as session:
            tasks = [
                asyncio.create_task(self._create(session, number, end))
                for number in range(CREATORS)
            ]
            try:
                yield
            finally:
                end.set()
                await asyncio.gather(*tasks)

    async def _create(self, session: aiohttp.ClientSession, who: int, end: asyncio.Event) -> None:
        number = 0
        while not end.is_set():
            number += 1
            body: Object = load.pod(f"c{who}-{number}", "x", 2)
            async with session.post(self._plane.server + self._path, json=body) as answer:
                text = await answer.text()
            if answer.status == 201:
                self.created += 1
            else:
                self.failed.append(text)

    async def wait_for(self, more: int) -> None:
        """Wait until ``more`` more pods were created, or a request failed."""
        until = self.created + more
        async with asyncio.timeout(60):
            while self.created < until and not self.failed:
                await asyncio.sleep(0.02)


async def test_no_create_fails_while_replicas_are_replaced(own_cluster: Cluster) -> None:
    plane, programs = own_cluster.control_plane, own_cluster.programs
    namespace = f"test-{uuid.uuid4().hex[:8]}"
    plane.create_namespace(namespace)
    quota = load.quota((namespace, "all"), 1, None, {})
    quota["spec"]["hard"] = {PAGES: "1Ti"}
    create_quota(plane.api, quota)
    serving = [programs.start_admission(drain_seconds=None) for _ in range(2)]
    for program in serving:
        program.wait_ready()
    forwarder = Forwarder([port_of(each) for each in serving])
    creators = Creators(plane, namespace)
    async with forwarder.running():
        address = f"https://127.0.0.1:{forwarder.port}"
        await asyncio.to_thread(charts.register_webhooks, plane, own_cluster.chart, address)
        async with creators.running():
            for _ in range(REPLACED):
                await creators.wait_for(50)
                new = programs.start_admission(drain_seconds=None)
                await asyncio.to_thread(new.wait_ready)
                forwarder.take_in(port_of(new))
                serving.append(new)
                await replace(serving.pop(0), forwarder)
            await creators.wait_for(50)
    assert not creators.failed, creators.failed[0]
    assert creators.created >= 50 * REPLACED


async def replace(old: Program, forwarder: Forwarder) -> None:
    """End the replica like kubelet: first the Service removes it."""
    forwarder.leave_out(port_of(old))
    # The replica ends when the API server has closed its connections, long before a kill.
    assert await asyncio.to_thread(old.stop, 60.0) == 0
