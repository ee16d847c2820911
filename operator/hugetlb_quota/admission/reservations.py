"""Makes a pod's reservations on a chain of quotas, all of them or none.

``page_counter_try_charge`` (mm/page_counter.c) on API objects: each quota is charged by
compare-and-swap, from the leaf to the root; when one refuses, what was charged is taken
back. A partial charge can only refuse too much for a moment, never admit too much.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

from hugetlb_quota.accounting.charge import NOTHING
from hugetlb_quota.accounting.counter import Counter, Shortfall
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.kube.status import Change, QuotaApi, compare_and_swap

#: How long taking back may go on, in seconds, also after the request was answered.
BACK_OUT_TIMEOUT: Final = 10.0

logger = logging.getLogger(__name__)


class NoRoom(Exception):
    """A quota refuses: ``shortfalls`` are the numbers, ``files`` hold what is retained."""

    def __init__(
        self,
        shortfalls: tuple[Shortfall, ...],
        files: Mapping[QuotaKey, Sequence[RetainedFile]],
    ) -> None:
        super().__init__(shortfalls)
        self.shortfalls = shortfalls
        self.files = files


class TooManyReservations(Exception):
    """A quota holds as many reservations as one object can: ``counter`` is what it holds."""

    def __init__(self, counter: Counter) -> None:
        super().__init__(str(counter.quota))
        self.counter = counter


class PlaceChanged(Exception):
    """A quota's spec changed since the decision was made on it: decide again."""


class _Queue:
    """The requests of this process that write one quota, one after the other.

    Each begins with what the one before has ``written``. Without it they would mostly
    meet each other's conflicts: with sixteen at once hardly one got through in time.
    Only a compare-and-swap relies on it, so another replica's write is never lost.
    """

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.written: QuotaObject | None = None


class Reservations:
    """Reserves and takes back; owns what is still being taken back."""

    def __init__(self, api: QuotaApi) -> None:
        self._api = api
        # Weak: a queue lasts, and remembers, only while somebody stands in it.
        self._queues = WeakValueDictionary[QuotaKey, _Queue]()
        self._backing_out: set[asyncio.Task[None]] = set()

    async def reserve(
        self, chain: Sequence[QuotaObject], reservation: Reservation, deadline: Deadline
    ) -> None:
        """Hold ``reservation`` on every quota of ``chain``, in its order.

        Whatever prevents it, a cancellation too: nothing stays held on any of them, or
        it is left to expire where the API can't be reached, and the log says so.

        :raises NoRoom: when a quota has none now.
        :raises PlaceChanged: when a quota is not any more what it was in ``chain``.
        :raises ApiError: and InvalidQuota, as compare_and_swap does.
        """
        touched: list[QuotaKey] = []
        try:
            for decided in chain:
                # Before the write: one that is cut off may have happened all the same.
                touched.append(decided.key)
                charge = partial(_charge, decided=decided, reservation=reservation)
                async with self._turn(decided.key) as queue:
                    known = _newest(decided, queue.written)
                    try:
                        queue.written = await self._swap(
                            decided.key, charge, deadline.left(), known
                        )
                    except NoRoom:
                        # What was known may be old: only what was read now may refuse.
                        queue.written = await self._swap(decided.key, charge, deadline.left())
        except BaseException:
            await self._back_out(touched, reservation, deadline)
            raise

    async def release(
        self, keys: Iterable[QuotaKey], reservation: Reservation, deadline: Deadline
    ) -> None:
        """Hold ``reservation`` no longer on ``keys``, as far as they are there."""
        await self._back_out(list(keys), reservation, deadline)

    async def close(self) -> None:
        """Wait until all is taken back."""
        if self._backing_out:
            await asyncio.wait(self._backing_out, timeout=BACK_OUT_TIMEOUT)

    @asynccontextmanager
    async def _turn(self, key: QuotaKey) -> AsyncIterator[_Queue]:
        queue = self._queues.setdefault(key, _Queue())
        async with queue.turn:
            yield queue

    async def _swap(
        self, key: QuotaKey, change: Change, within: float, known: QuotaObject | None = None
    ) -> QuotaObject:
        return await compare_and_swap(self._api, key, change, within=within, known=known)

    async def _back_out(
        self, keys: Sequence[QuotaKey], reservation: Reservation, deadline: Deadline
    ) -> None:
        """Take back, in a task of its own that no cancelled or late request can stop."""
        if not keys:
            return
        task = asyncio.create_task(self._release_all(keys, reservation))
        self._backing_out.add(task)
        task.add_done_callback(self._backing_out.discard)
        # The answer waits for it only while there is time.
        await asyncio.wait((task,), timeout=deadline.left())

    async def _release_all(self, keys: Sequence[QuotaKey], reservation: Reservation) -> None:
        for key in reversed(keys):
            try:
                async with self._turn(key) as queue:
                    release = partial(_release, reservation=reservation)
                    queue.written = await self._swap(key, release, BACK_OUT_TIMEOUT)
            except errors.NotFound:
                continue
            except (errors.ApiError, InvalidQuota) as error:
                logger.warning(
                    "The reservation of pod %s (%s) on HugeTLBQuota %s could not be taken back"
                    " and is left to expire at %s: %s",
                    reservation.pod,
                    reservation.uid,
                    key,
                    reservation.expires.isoformat(timespec="seconds"),
                    error,
                )


def _newest(decided: QuotaObject, written: QuotaObject | None) -> QuotaObject:
    """The later of the two; resource versions of one kind are ordered (KEP-5504)."""
    if written is None or int(written.resource_version) < int(decided.resource_version):
        return decided
    return written


def _charge(quota: QuotaObject, decided: QuotaObject, reservation: Reservation) -> QuotaObject:
    if quota.uid != decided.uid or _place(quota.quota) != _place(decided.quota):
        raise PlaceChanged(str(quota.key))
    if not quota.is_readable:
        raise PlaceChanged(str(quota.key))
    # A request that is sent again meets its own reservation.
    others = quota.counter.release(reservation.id)
    if short := others.shortfalls(reservation.charge, reservation.uid):
        raise NoRoom(short, {quota.key: quota.retained_files})
    if reservation in quota.counter.reservations:
        return quota
    if not others.can_hold(reservation):
        raise TooManyReservations(others)
    return quota.with_counter(others.charge(reservation))


def _release(quota: QuotaObject, reservation: Reservation) -> QuotaObject:
    if not quota.counter.holds(reservation.id):
        return quota
    return quota.with_counter(quota.counter.release(reservation.id))


def _place(quota: Quota) -> Quota:
    """All but the limit, which is compared when charging."""
    return replace(quota, hard=NOTHING, generation=0)
