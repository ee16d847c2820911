"""Group commit: many pods' reservations in one compare-and-swap a quota, all of a pod's or none.

``page_counter_try_charge`` (mm/page_counter.c) on API objects. The requests that wait for one
tree are decided together, in the order in which they came, and the levels of their chains are
written at the same time. A level that was written by somebody else meanwhile is decided on
anew, for all of the batch: who does not fit any more is taken back from the other levels. A
partial charge can only refuse too much for a moment, never admit too much.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from hugetlb_quota.accounting.charge import NOTHING
from hugetlb_quota.accounting.counter import Counter, Shortfall, Tab
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.accounting.reservation import Reservation, ReservationId
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.lane import Lane, Wanted
from hugetlb_quota.kube import errors, status
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.connection import REQUEST_TIMEOUT
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.program import about

#: How long taking back may go on, in seconds, also after the request was answered.
BACK_OUT_TIMEOUT: Final = 10.0
#: How long a level that others wrote is waited for in the watch, before it is read, in seconds.
PATIENCE: Final = 0.005

#: A quota, what it is to be, and for whom.
_Level = tuple[QuotaObject, Tab, list[Wanted]]

logger = logging.getLogger(__name__)


class NoRoom(Exception):
    """A quota refuses: ``shortfalls`` are the numbers, ``files`` hold what is retained.

    ``silent``: sentences on what is charged for want of a node's report.
    """

    def __init__(
        self,
        shortfalls: tuple[Shortfall, ...],
        files: Mapping[QuotaKey, Sequence[RetainedFile]],
        silent: Mapping[QuotaKey, str] | None = None,
    ) -> None:
        super().__init__(shortfalls)
        self.shortfalls = shortfalls
        self.files = files
        self.silent = silent or {}


class TooManyReservations(Exception):
    """A quota holds as many reservations as one object can: ``counter`` is what it holds."""

    def __init__(self, counter: Counter) -> None:
        super().__init__(str(counter.quota))
        self.counter = counter


class PlaceChanged(Exception):
    """A quota's spec changed since the decision was made on it: decide again."""


class Overloaded(Exception):
    """More wait than can be served in time: ``waiting`` before this one, ``seconds`` for them."""

    def __init__(self, waiting: int, seconds: float) -> None:
        super().__init__(waiting, seconds)
        self.waiting = waiting
        self.seconds = seconds


class Committer:
    """Reserves and takes back; owns what is still being taken back.

    :param committed: told how many requests each group had.
    """

    def __init__(
        self,
        api: ObjectApi,
        cache: QuotaCache,
        committed: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._api = api
        self._committed = committed
        self._cache = cache
        self._lanes: dict[QuotaKey, Lane] = {}
        self._backing_out: set[asyncio.Task[None]] = set()
        #: Writes that were tried, and those of them that met a conflict.
        self.writes = self.conflicts = 0

    async def charge(
        self, chain: tuple[QuotaObject, ...], reservation: Reservation, deadline: Deadline
    ) -> int:
        """Hold ``reservation`` on every quota of ``chain``, each before its ancestors.

        Whatever prevents it, a cancellation too: nothing stays held on any of them, or
        it is left to expire where the API can't be reached, and the log says so.

        :returns: the highest resourceVersion of its writes.
        :raises NoRoom: when a quota has none, going by what is known of it.
        :raises TooManyReservations: when one has no place for another line.
        :raises PlaceChanged: when a quota is not any more what it was in ``chain``.
        :raises Overloaded: when it could not be answered in time.
        :raises ApiError: and InvalidQuota, as the API has it.
        """
        root = chain[-1].key
        lane = self._lanes.setdefault(root, Lane())
        seconds = lane.wait_for(reservation.pod.partition("/")[0])
        if seconds > deadline.left():
            raise Overloaded(len(lane), seconds)
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        wanted = Wanted(chain, reservation, deadline, done)
        lane.add(wanted)
        if lane.task is None:
            lane.task = asyncio.create_task(self._serve(root, lane), name=f"commits to {root}")
        try:
            return await done
        except asyncio.CancelledError:
            if done.done() and not done.cancelled():
                self.take_back(chain, reservation)
            raise

    def take_back(self, chain: Iterable[QuotaObject], reservation: Reservation) -> None:
        """Hold ``reservation`` no longer, in a task that no cancelled request can stop."""
        self._start_taking_back({quota.key: {reservation.id: reservation} for quota in chain})

    async def close(self) -> None:
        """Wait until all is answered and taken back."""
        with suppress(TimeoutError):
            async with asyncio.timeout(BACK_OUT_TIMEOUT):
                while tasks := self._backing_out.union(
                    lane.task for lane in self._lanes.values() if lane.task is not None
                ):
                    await asyncio.wait(tasks)

    async def _serve(self, root: QuotaKey, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        try:
            while len(lane):
                # All that came in this turn of the loop at the least.
                await asyncio.sleep(lane.gathering * random.uniform(0.5, 1.0))  # noqa: S311
                await lane.gather()
                conflicts, began = self.conflicts, loop.time()
                batch = lane.take()
                await self._commit_or_tell(batch)
                took = loop.time() - began
                lane.batch_seconds = max(took, 0.9 * lane.batch_seconds + 0.1 * took)
                lane.answered(len(batch), conflict=self.conflicts > conflicts)
                if not len(lane):
                    await lane.gather()
        finally:
            lane.task = None
            if not len(lane):
                self._lanes.pop(root, None)

    async def _commit_or_tell(self, batch: list[Wanted]) -> None:
        try:
            await self._commit(batch)
        except Exception as error:  # a bug must not leave those behind waiting
            logger.exception("A batch of %d requests could not be committed.", len(batch))
            for wanted in batch:
                if not wanted.done.done():
                    wanted.done.set_exception(error)
                self.take_back(wanted.chain, wanted.reservation)

    async def _commit(self, batch: list[Wanted]) -> None:
        self._committed(len(batch))
        levels = self._decide(batch)
        await asyncio.gather(*(self._write(*level) for level in levels.values()))
        back: dict[QuotaKey, dict[ReservationId, Reservation]] = {}
        for wanted in batch:
            if not wanted.errors and not wanted.done.done():
                wanted.done.set_result(wanted.written)
                continue
            held = wanted.reservation
            # From all of them: a write whose answer was lost may have happened.
            for key in wanted.held:
                back.setdefault(key, {})[held.id] = held
            if not wanted.done.done():
                wanted.done.set_exception(_first_of(wanted.errors))
        if back:
            # The next batch is to find the room.
            await asyncio.wait((self._start_taking_back(back),), timeout=1.0)

    def _decide(self, batch: list[Wanted]) -> dict[QuotaKey, _Level]:
        """Who fits everywhere, by what is known: by quota, what it was, and is to be with them."""
        tabs: dict[QuotaKey, tuple[QuotaObject, Tab]] = {}
        levels: dict[QuotaKey, _Level] = {}
        for wanted in batch:
            for quota in wanted.chain:
                if quota.key not in tabs:
                    now = _newest(quota, self._cache.get(quota.key))
                    tabs[quota.key] = now, Tab(now.counter)
            here = [tabs[quota.key] for quota in wanted.chain]
            if refused := _refused(wanted, here):
                wanted.errors.append(refused)
                # What an earlier attempt of this very request left is taken back too.
                wanted.held = {now.key for now, tab in here if tab.holds(wanted.reservation)}
                continue
            for now, tab in here:
                wanted.held.add(now.key)
                if not tab.holds(wanted.reservation):
                    tab.put(wanted.reservation)
                levels.setdefault(now.key, (now, tab, []))[2].append(wanted)
        return levels

    async def _write(self, base: QuotaObject, tab: Tab, batch: list[Wanted]) -> None:
        """Write one level for all of ``batch``; what prevents it becomes their errors."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await self._swap(base, tab, batch)
        except (errors.ApiError, InvalidQuota, TimeoutError) as error:
            told: Exception = error
            if isinstance(error, errors.NotFound):
                told = PlaceChanged(str(base.key))
            elif isinstance(error, TimeoutError):
                told = errors.ApiUnreachable(f"HugeTLBQuota {base.key} could not be written.")
            for wanted in batch:
                wanted.errors.append(told)

    async def _swap(self, now: QuotaObject, tab: Tab, batch: list[Wanted]) -> None:
        fitting = batch
        while True:
            if tab.counter is not now.counter:
                self.writes += 1
                position = self._cache.position
                try:
                    charged = now.with_counter(tab.counter).attached(now.quota.parent)
                    raw = await status.write(self._api, charged)
                except errors.Conflict:
                    self.conflicts += 1
                    now = await self._cache.newer_than(now, PATIENCE)
                    tab, fitting = _fit(now, batch)
                    continue
                now_version = int(raw["metadata"]["resourceVersion"])
                self._cache.put_json(raw, written_after=position)
            else:
                now_version = int(now.resource_version)
            for wanted in fitting:
                wanted.written = max(wanted.written, now_version)
            return

    def _start_taking_back(
        self, held: Mapping[QuotaKey, Mapping[ReservationId, Reservation]]
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(self._release_all(held))
        self._backing_out.add(task)
        task.add_done_callback(self._taken_back)
        return task

    def _taken_back(self, task: asyncio.Task[None]) -> None:
        self._backing_out.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Reservations are not taken back, and left to expire.", exc_info=error)

    async def _release_all(
        self, held: Mapping[QuotaKey, Mapping[ReservationId, Reservation]]
    ) -> None:
        await asyncio.gather(*(self._release(key, each) for key, each in held.items()))

    async def _release(self, key: QuotaKey, held: Mapping[ReservationId, Reservation]) -> None:
        def change(quota: QuotaObject) -> QuotaObject:
            counter = quota.counter
            kept = tuple(each for each in counter.reservations if each.id not in held)
            if len(kept) == len(counter.reservations):
                return quota
            return quota.with_counter(replace(counter, reservations=kept))

        try:
            written = await status.compare_and_swap(self._api, key, change, within=BACK_OUT_TIMEOUT)
            self._cache.put(written)
        except errors.NotFound:
            return
        except (errors.ApiError, InvalidQuota) as error:
            for each in held.values():
                logger.warning(
                    "The reservation of pod %s (%s) on HugeTLBQuota %s could not be taken back"
                    " and is left to expire at %s: %s",
                    *(each.pod, each.uid, key, each.expires.isoformat(timespec="seconds"), error),
                    extra=about(pod=each.pod, uid=each.uid, quota=key),
                )


def _fit(now: QuotaObject, batch: list[Wanted]) -> tuple[Tab, list[Wanted]]:
    """Those who fit on what others have written meanwhile; what prevents it is their error."""
    tab, fitting = Tab(now.counter), []
    for wanted in batch:
        if wanted.errors or wanted.done.done():
            continue
        if refused := _refused(wanted, [(now, tab)]):
            wanted.errors.append(refused)
            continue
        if not tab.holds(wanted.reservation):
            tab.put(wanted.reservation)
        fitting.append(wanted)
    return tab, fitting


def _refused(wanted: Wanted, levels: Sequence[tuple[QuotaObject, Tab]]) -> Exception | None:
    """Why ``wanted`` can't be put on all of ``levels``; None when it can."""
    shortfalls: list[Shortfall] = []
    for now, tab in levels:
        decided = wanted.decided(now.key)
        # An unchanged spec is not even read again.
        same = now.quota is decided.quota or _place(now) == _place(decided)
        if not (same and now.is_readable):
            return PlaceChanged(str(now.key))
        if not tab.holds(wanted.reservation):
            shortfalls += tab.shortfalls(wanted.reservation)
    if shortfalls:
        files = {now.key: now.retained_files for now, _ in levels}
        silent = {now.key: now.silence for now, _ in levels}
        return NoRoom(tuple(shortfalls), files, silent)
    for now, tab in levels:
        if not tab.holds(wanted.reservation) and not tab.can_hold(wanted.reservation):
            return TooManyReservations(now.counter)
    return None


def _first_of(found: list[Exception]) -> Exception:
    """The error to tell: shortfalls of several levels are one refusal."""
    short = [error for error in found if isinstance(error, NoRoom)]
    if short and len(short) == len(found):
        return NoRoom(
            tuple(each for error in short for each in error.shortfalls),
            {key: files for error in short for key, files in error.files.items()},
            {key: silence for error in short for key, silence in error.silent.items()},
        )
    return next(error for error in found if not isinstance(error, NoRoom))


def _newest(decided: QuotaObject, known: QuotaObject | InvalidQuota | None) -> QuotaObject:
    """The later of the two; resource versions of one kind are ordered (KEP-5504)."""
    if not isinstance(known, QuotaObject):
        return decided
    later = int(known.resource_version) > int(decided.resource_version)
    return known if later else decided


def _place(quota: QuotaObject) -> tuple[str, Quota]:
    """All but the limit, which is compared when charging, and what the charge itself writes."""
    return quota.uid, replace(quota.quota, hard=NOTHING, generation=0, attached_to=None)
