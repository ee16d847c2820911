"""Take reservations back, in tasks that go on after the request was answered or cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import Reservation, ReservationId
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.kube import errors, status
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.program import about

#: How long one quota may take, in seconds.
UNCHARGE_TIMEOUT: Final = 10.0

#: The reservations to take back, by ID, for each quota.
ByQuota = Mapping[QuotaKey, Mapping[ReservationId, Reservation]]

logger = logging.getLogger(__name__)


class Uncharger:
    """Takes reservations back from quotas.

    If that fails, the log says so, and the controller ends the reservations when they expire.
    """

    def __init__(self, api: ObjectApi, cache: QuotaCache) -> None:
        self._api = api
        self._cache = cache
        #: The tasks that run.
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, reservations: ByQuota) -> asyncio.Task[None]:
        """Take ``reservations`` back in a task of their own; the task."""
        task = asyncio.create_task(self._uncharge_all(reservations))
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error(
                "Reservations could not be taken back; they stay until they expire.",
                exc_info=error,
            )

    async def _uncharge_all(self, reservations: ByQuota) -> None:
        await asyncio.gather(*(self._uncharge(key, each) for key, each in reservations.items()))

    async def _uncharge(
        self, key: QuotaKey, reservations: Mapping[ReservationId, Reservation]
    ) -> None:
        def change(quota: QuotaObject) -> QuotaObject:
            counter = quota.counter
            kept = tuple(each for each in counter.reservations if each.id not in reservations)
            if len(kept) == len(counter.reservations):
                return quota
            return quota.with_counter(replace(counter, reservations=kept))

        try:
            written = await status.compare_and_swap(self._api, key, change, within=UNCHARGE_TIMEOUT)
            self._cache.put(written)
        except errors.NotFound:
            return
        except (errors.ApiError, InvalidQuota) as error:
            for each in reservations.values():
                logger.warning(
                    "The reservation of pod %s (%s) on HugeTLBQuota %s could not be taken back;"
                    " it stays until it expires at %s: %s",
                    *(each.pod, each.uid, key, each.expires.isoformat(timespec="seconds"), error),
                    extra=about(pod=each.pod, uid=each.uid, quota=key),
                )
