"""Makes a pod's reservations on a chain of quotas, all of them or none.

``page_counter_try_charge`` (mm/page_counter.c) on API objects: each quota is charged by
compare-and-swap, from the leaf to the root; when one refuses, what was charged is taken
back. A partial charge can only refuse too much for a moment, never admit too much.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from hugetlb_quota.accounting.charge import NOTHING
from hugetlb_quota.accounting.counter import Reservation, Shortfall
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.kube.status import QuotaApi, compare_and_swap

#: How long taking back may go on, in seconds, also after the request was answered.
BACK_OUT_TIMEOUT: Final = 10.0

logger = logging.getLogger(__name__)


class NoRoom(Exception):
    """A quota refuses; ``shortfalls`` are its numbers."""

    def __init__(self, shortfalls: tuple[Shortfall, ...]) -> None:
        super().__init__(shortfalls)
        self.shortfalls = shortfalls


class PlaceChanged(Exception):
    """A quota's spec changed since the decision was made on it: decide again."""


class Reservations:
    """Reserves and takes back; owns what is still being taken back."""

    def __init__(self, api: QuotaApi) -> None:
        self._api = api
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
                await compare_and_swap(
                    self._api,
                    decided.key,
                    partial(_charge, decided=decided, reservation=reservation),
                    within=deadline.left(),
                    known=decided,
                )
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
                await compare_and_swap(
                    self._api,
                    key,
                    partial(_release, reservation=reservation),
                    within=BACK_OUT_TIMEOUT,
                )
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


def _charge(quota: QuotaObject, decided: QuotaObject, reservation: Reservation) -> QuotaObject:
    if quota.uid != decided.uid or _place(quota.quota) != _place(decided.quota):
        raise PlaceChanged(str(quota.key))
    # A request that the API server sends again meets its own reservation.
    others = quota.counter.release(reservation.uid)
    if short := others.shortfalls(reservation.charge):
        raise NoRoom(short)
    if reservation in quota.counter.reservations:
        return quota
    return quota.with_counter(others.charge(reservation))


def _release(quota: QuotaObject, reservation: Reservation) -> QuotaObject:
    if not quota.counter.holds(reservation.uid):
        return quota
    return quota.with_counter(quota.counter.release(reservation.uid))


def _place(quota: Quota) -> Quota:
    """All but the limit, which is compared when charging."""
    return replace(quota, hard=NOTHING)
