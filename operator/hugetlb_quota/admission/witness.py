"""Marks each reservation at the end of its life: a controller's restart lengthens no life.

The controller watches each reservation for its whole life by its own clock, and a new controller
would begin anew. The replicas of admission watch all reservations too, each by its own clock,
and write into the quota which lives are over. So a life is lengthened only if the controller and
every replica end during this life.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Set
from dataclasses import replace
from datetime import timedelta
from typing import Final

from hugetlb_quota.accounting.lives import LineId, Lives
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.kube.status import compare_and_swap

#: The longest time between two looks at all quotas, in seconds. The shortest is half of that: so
#: the replicas seldom write the same mark at the same time.
PERIOD: Final = 2.0

logger = logging.getLogger(__name__)


class Witness:
    """Watches all reservations, and marks each reservation when its life is over."""

    def __init__(
        self, api: ObjectApi, cache: QuotaCache, lifetime: timedelta = RESERVATION_LIFETIME
    ) -> None:
        self._api = api
        self._cache = cache
        self._lives = Lives(lifetime)

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(PERIOD * random.uniform(0.5, 1.0))  # noqa: S311
            try:
                await self.look()
            except errors.ApiError as error:
                logger.warning("Reservations can't be marked; trying again: %s", error)
            except Exception:  # a bug; it must not end the program
                logger.exception("Reservations can't be marked; trying again.")

    async def look(self) -> None:
        """Look at all quotas once.

        :raises ApiError: if a mark could not be written; the next look tries again. The marks of
            other quotas are written, unless the API server does not answer.
        """
        now = time.monotonic()
        held = [
            (quota, [each.id for each in quota.counter.pending if not each.is_over])
            for quota in self._cache.all()
            if isinstance(quota, QuotaObject) and quota.counter.reservations
        ]
        self._lives.note((each for _, ids in held for each in ids), now)
        failed: errors.ApiError | None = None
        for quota, ids in held:
            if over := frozenset(each for each in ids if self._lives.is_over(each, now)):
                try:
                    await self._mark(quota, over)
                except errors.ApiUnreachable:
                    raise
                except errors.ApiError as error:  # of this quota alone
                    failed = error
        if failed is not None:
            raise failed

    async def _mark(self, watched: QuotaObject, over: Set[LineId]) -> None:
        def change(quota: QuotaObject) -> QuotaObject:
            lines = quota.counter.reservations
            due = {each.id for each in lines if not (each.counted or each.is_over)} & over
            # The charges of an unreadable status must stay as they are.
            if not due or not quota.is_readable:
                return quota
            marked = tuple(each.as_over() if each.id in due else each for each in lines)
            return quota.with_counter(replace(quota.counter, reservations=marked))

        try:
            written = await compare_and_swap(self._api, watched.key, change, just_read=watched)
        except (errors.NotFound, InvalidQuota):
            return
        self._cache.put(written)
