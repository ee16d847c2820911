"""Group commit: the reservations of many pods in one compare-and-swap write of each quota.

The requests that wait for one tree of quotas are decided together, in order of arrival
(:mod:`batch`), and all levels of their chains are written at the same time. If another program
wrote a level meanwhile, the level is decided again; a request that no longer fits is taken back
from the other levels (:mod:`uncharge`). A partial charge may refuse too much for a moment. A
partial charge never admits too much.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import Reservation, ReservationId
from hugetlb_quota.admission.batch import (
    ChainChanged,
    ChargeRequest,
    Level,
    decide,
    decide_again,
    merged_error,
)
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.lane import Lane
from hugetlb_quota.admission.uncharge import Uncharger
from hugetlb_quota.kube import errors, status
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.connection import REQUEST_TIMEOUT
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.plural import number_of

#: How long :meth:`Committer.close` waits, in seconds.
CLOSE_TIMEOUT: Final = 10.0
#: How long the next batch waits until the reservations of refused requests are taken back, so
#: that the next batch finds their room; in seconds.
UNCHARGE_WAIT: Final = 1.0
#: After a Conflict, how long to wait for the newer quota in the watch before a read, in seconds.
PATIENCE: Final = 0.005

logger = logging.getLogger(__name__)


class Overloaded(Exception):
    """A request can't be answered in time.

    ``waiting``: the number of requests that wait for the same tree. ``seconds``: the time until
    this request would be answered.
    """

    def __init__(self, waiting: int, seconds: float) -> None:
        super().__init__(waiting, seconds)
        self.waiting = waiting
        self.seconds = seconds


class Committer:
    """Charges reservations to quotas, and takes them back.

    :param on_batch: called with the number of requests of each batch.
    """

    def __init__(
        self,
        api: ObjectApi,
        cache: QuotaCache,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._api = api
        self._on_batch = on_batch
        self._cache = cache
        self._lanes: dict[QuotaKey, Lane] = {}
        self._uncharger = Uncharger(api, cache)
        #: The number of attempted writes, and how many of them met a Conflict.
        self.writes = self.conflicts = 0

    async def charge(
        self, chain: tuple[QuotaObject, ...], reservation: Reservation, deadline: Deadline
    ) -> int:
        """Hold ``reservation`` on every quota of ``chain``, each quota before its ancestors.

        If the charge fails or is cancelled, the reservation is taken back from every quota. If
        the API server does not answer, the reservation stays until it expires, and the log says
        so.

        :returns: the highest resourceVersion of the writes.
        :raises NoRoom: if a quota has no room in the newest version that the cache has.
        :raises TooManyReservations: if the object of a quota has no room for another line.
        :raises ChainChanged: if a quota is no longer as in ``chain``.
        :raises Overloaded: if the request can't be answered before ``deadline``.
        :raises InvalidQuota: if the spec of a quota became invalid.
        :raises ApiError: if a read or a write fails.
        """
        root = chain[-1].key
        lane = self._lanes.setdefault(root, Lane())
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        request = ChargeRequest(chain, reservation, done)
        seconds = lane.expected_wait(request.namespace)
        if seconds > deadline.left():
            raise Overloaded(len(lane), seconds)
        lane.add(request)
        if lane.task is None:
            lane.task = asyncio.create_task(self._serve(root, lane), name=f"commits to {root}")
        try:
            return await done
        except asyncio.CancelledError:
            if done.done() and not done.cancelled():
                self.uncharge(chain, reservation)
            raise

    def uncharge(self, chain: Iterable[QuotaObject], reservation: Reservation) -> None:
        """Take ``reservation`` back from ``chain``, in a task that no cancelled request stops."""
        self._uncharger.start({quota.key: {reservation.id: reservation} for quota in chain})

    async def close(self) -> None:
        """Wait until every request is answered, and every refused one is taken back."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                while tasks := self._uncharger.tasks.union(
                    lane.task for lane in self._lanes.values() if lane.task is not None
                ):
                    await asyncio.wait(tasks)

    async def _serve(self, root: QuotaKey, lane: Lane) -> None:
        """Commit the requests of ``lane``, batch after batch, until the lane is empty."""
        loop = asyncio.get_running_loop()
        try:
            while len(lane):
                # Even a sleep of 0 lets all requests of this turn of the event loop come in.
                await asyncio.sleep(lane.gathering * random.uniform(0.5, 1.0))  # noqa: S311
                await lane.gather()
                conflicts, began = self.conflicts, loop.time()
                batch = lane.take_batch()
                await self._commit_or_fail(batch)
                took = loop.time() - began
                lane.batch_seconds = max(took, 0.9 * lane.batch_seconds + 0.1 * took)
                lane.answered(len(batch), conflict=self.conflicts > conflicts)
                if not len(lane):
                    await lane.gather()
        finally:
            lane.task = None
            if not len(lane):
                self._lanes.pop(root, None)

    async def _commit_or_fail(self, batch: list[ChargeRequest]) -> None:
        try:
            await self._commit(batch)
        except Exception as error:  # a bug must not leave the requests waiting
            requests = number_of(len(batch), "request")
            logger.exception("A batch of %s could not be committed.", requests)
            for request in batch:
                if not request.done.done():
                    request.done.set_exception(error)
                self.uncharge(request.chain, request.reservation)

    async def _commit(self, batch: list[ChargeRequest]) -> None:
        """Decide the batch, write all levels, and answer each request."""
        self._on_batch(len(batch))
        levels = decide(batch, self._cache.get)
        await asyncio.gather(*(self._write(level) for level in levels))
        failed: dict[QuotaKey, dict[ReservationId, Reservation]] = {}
        for request in batch:
            if request.is_open:
                request.done.set_result(request.version)
                continue
            # From all quotas: if the answer to a write was lost, the write may have happened.
            for key in request.held_on:
                failed.setdefault(key, {})[request.reservation.id] = request.reservation
            if not request.done.done():
                request.done.set_exception(merged_error(request.errors))
        if failed:
            await asyncio.wait((self._uncharger.start(failed),), timeout=UNCHARGE_WAIT)

    async def _write(self, level: Level) -> None:
        """Write one level; an error becomes an error of all its requests."""
        requests = level.requests
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self._swap(level)
        except (errors.ApiError, InvalidQuota, TimeoutError) as error:
            key = level.quota.key
            raised: Exception = error
            if isinstance(error, errors.NotFound):
                raised = ChainChanged(str(key))
            elif isinstance(error, TimeoutError):
                raised = errors.ApiUnreachable(f"HugeTLBQuota {key} could not be written.")
            for request in requests:
                request.errors.append(raised)

    async def _swap(self, level: Level) -> None:
        """Write one level by compare-and-swap; after a Conflict, decide the level again."""
        requests = level.requests
        while level.tab.counter is not level.quota.counter:
            self.writes += 1
            position = self._cache.position
            charged = level.quota.with_counter(level.tab.counter)
            try:
                raw = await status.write(self._api, charged.attached(level.quota.quota.parent))
            except errors.Conflict:
                self.conflicts += 1
                newer = await self._cache.newer_than(level.quota, PATIENCE)
                level = decide_again(newer, requests)
                continue
            self._cache.put_json(raw, written_after=position)
            version = int(raw["metadata"]["resourceVersion"])
            break
        else:
            version = int(level.quota.resource_version)  # nothing to write
        for request in level.requests:
            request.version = max(request.version, version)
