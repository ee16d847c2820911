"""The term of a controller that leads: what orders its counts among those of other leaders."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from hugetlb_quota.kube import errors
from hugetlb_quota.kube.quotas import QuotaObject

#: Seconds for which it is taken for granted that this controller leads: less than another
#: waits before it takes the Lease.
SURE_FOR: Final = 5.0

logger = logging.getLogger(__name__)


class Superseded(Exception):
    """A quota whose count was written in a later term than this controller's."""

    def __init__(self, quota: QuotaObject) -> None:
        self.term = quota.counted_under
        super().__init__(
            f"HugeTLBQuota {quota.key} was counted under the Lease's resourceVersion {self.term},"
            " later than this controller came to lead."
        )


class Term:
    """Whether this controller leads still, and whose counts it may write over.

    :param ask: for a number above that of every leader before, and below that of every
        later one; it raises LeadershipLost when another leads.
    """

    def __init__(self, ask: Callable[[], Awaitable[int]]) -> None:
        self._ask = ask
        self._sure_until = 0.0
        self._overruled = 0
        #: What this controller's counts say that they were written under.
        self.number = 0

    async def is_held(self) -> bool:
        """Whether this controller leads still; False where that can't be read just now.

        Who was paused, and leads no more, must not count what it sees now: it would drop
        reservations of pods that its successor has not seen yet, and the successor would
        write its own count over that.

        :raises LeadershipLost: when another leads.
        """
        now = _now()
        if now < self._sure_until:
            return True
        try:
            self.number = max(self.number, await self._ask())
        except errors.ApiError as error:
            logger.warning("Who leads can't be read; trying again: %s", error)
            return False
        self._sure_until = now + SURE_FOR
        return True

    def check(self, quota: QuotaObject) -> None:
        """See that this controller may write over the count of ``quota``.

        :raises Superseded: when that was written in a later term.
        """
        if quota.counted_under > max(self.number, self._overruled):
            raise Superseded(quota)

    async def meet(self, newer: Superseded) -> None:
        """Find out whether another leads by now, or these are the words of one that led before.

        :raises LeadershipLost: when another leads.
        """
        try:
            self.number = await self._ask()
        except errors.ApiError as error:
            logger.warning("%s Who leads can't be read; trying again: %s", newer, error)
            return
        if self.number <= newer.term:
            # This one leads, so history went back: etcd was restored from a backup.
            logger.error("%s The Lease is of %d: writing over it.", newer, self.number)
            self._overruled = max(self._overruled, newer.term)


def _now() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
