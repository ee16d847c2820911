"""Observe counts, writes and delays of a controller, for ``benchmarks.controller``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp

from benchmarks.controller_world import Api
from hugetlb_quota.admission.background import in_background
from tests.kube.api import Object
from tests.kube.programs import Program

LEASES = "/apis/coordination.k8s.io/v1/leases"


class Watcher:
    """The charges in the quotas' statuses, and the number of writes."""

    def __init__(self) -> None:
        self.counted: set[str] = set()
        self.used: dict[str, str] = {}
        self.writes: dict[str, int] = {}
        self.changed = asyncio.Event()

    def notify(self, kind: str, quota: Object) -> None:
        """Note the charges and the write of one quota from a list or a watch."""
        meta, status = quota["metadata"], quota.get("status") or {}
        name = f"{meta['namespace']}/{meta['name']}"
        if status.get("observedGeneration"):
            self.counted.add(name)
        self.used[name] = (status.get("used") or {}).get("hugepages-2Mi", "0")
        if kind == "MODIFIED":
            self.writes[name] = self.writes.get(name, 0) + 1
        self.changed.set()

    async def until(self, holds: Callable[[], bool], counting: Program | None = None) -> float:
        """Wait until ``holds()``, while ``counting`` runs; return the monotonic time."""
        async with asyncio.timeout(600):
            while not holds():
                if counting is not None and counting.child.exit_status is not None:
                    raise RuntimeError(f"The controller ended:\n{counting.child.tail()}")
                self.changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await self.changed.wait()
        return time.monotonic()


class Pulse:
    """Measures how long a controller delays the answers of /healthz and the Lease."""

    def __init__(self, api: Api, controller: Program) -> None:
        self._api = api
        self._controller = controller
        self._renewed_at = 0.0
        self.stall = 0.0
        self.renewed = 0.0

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[None]:
        """Measure inside the context."""
        try:
            async with in_background(
                leases=self._api.watch(LEASES, self._notify), health=self._request_health()
            ):
                yield
        finally:
            self._renew()

    def _notify(self, _: str, lease: Object) -> None:
        if lease["spec"].get("holderIdentity") == self._controller.identity:
            self._renew()

    def _renew(self) -> None:
        now = time.monotonic()
        if self._renewed_at:
            self.renewed = max(self.renewed, now - self._renewed_at)
        self._renewed_at = now

    async def _request_health(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                sent = time.monotonic()
                with suppress(aiohttp.ClientConnectorError):  # the controller does not serve yet
                    async with session.get(f"{self._controller.address}/healthz") as answer:
                        await answer.read()
                    self.stall = max(self.stall, time.monotonic() - sent)
                await asyncio.sleep(0.05)
