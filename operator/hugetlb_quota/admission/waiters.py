"""How requests wait for the cache: for a version of the watch, or for a shared read."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Hashable

from hugetlb_quota.kube import errors


class VersionWaiters:
    """The requests that wait until the watch has reached a resourceVersion."""

    def __init__(self) -> None:
        #: A heap; the serial number keeps futures from being compared.
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._serial = itertools.count()

    async def wait(self, resource_version: int) -> None:
        """Wait until the watch has reached ``resource_version``.

        :raises Gone: if a new list is older than ``resource_version``: etcd lost history.
        """
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (resource_version, next(self._serial), future))
        await future

    def advance(self, position: int, *, listed: bool) -> None:
        """Wake the requests that wait for ``position`` or an earlier version.

        :param listed: whether the position comes from a new list. Then every request wakes, and
            wait raises Gone for a later version.
        """
        while self._waiting and (listed or self._waiting[0][0] <= position):
            wanted, _, future = heapq.heappop(self._waiting)
            if future.done():
                continue
            if wanted <= position:
                future.set_result(None)
            else:
                future.set_exception(errors.Gone(410, "Expired", "The quotas were listed again."))


class SharedReads:
    """Reads that many requests share. No request gets a read that began before the request."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[None]] = {}
        self._next: dict[Hashable, asyncio.Task[None]] = {}

    async def join(self, key: Hashable, read: Callable[[], Awaitable[object]]) -> None:
        """Wait for the next read of ``key``, which one of the waiting requests makes.

        Errors of ``read`` are raised for all requests that wait.
        """
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.create_task(self._read_after_running(key, read))
            task.add_done_callback(_retrieve_error)
        await asyncio.shield(task)

    async def _read_after_running(
        self, key: Hashable, read: Callable[[], Awaitable[object]]
    ) -> None:
        running = self._running.get(key)
        if running is not None:
            await asyncio.wait((running,))
        task = self._next.pop(key)
        self._running[key] = task
        try:
            await read()
        finally:
            if self._running.get(key) is task:
                del self._running[key]


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Keep asyncio from logging the error when no request waits for the task any more."""
    if not task.cancelled():
        task.exception()
