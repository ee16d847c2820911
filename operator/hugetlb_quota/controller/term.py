"""The term of a leader: a number that orders the counts of successive leaders.

The term is the resourceVersion of the Lease. A later leader has a higher term.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from hugetlb_quota.kube import errors
from hugetlb_quota.kube.quotas import QuotaObject

#: How long a read of the Lease proves that this controller leads, in seconds: shorter than
#: another controller waits before it takes the Lease.
SURE_FOR: Final = 5.0

logger = logging.getLogger(__name__)


class Superseded(Exception):
    """The count of a quota has a later term than this controller; ``term`` is the later term."""

    def __init__(self, quota: QuotaObject) -> None:
        self.term = quota.counted_under
        super().__init__(
            f"The count of HugeTLBQuota {quota.key} has the term {self.term}, which is later than"
            " the term of this controller."
        )


class Term:
    """Whether this controller still leads, and which counts it may overwrite.

    :param read_term: the present term of this controller, from the Lease; raises LeadershipLost if
        another controller leads.
    """

    def __init__(self, read_term: Callable[[], Awaitable[int]]) -> None:
        self._read_term = read_term
        self._sure_until = 0.0
        #: After a restore of etcd, counts of later terms up to this one may be overwritten.
        self._overwritable = 0
        #: The term of this controller's counts; 0 before the first read of the Lease.
        self.number = 0

    async def is_held(self) -> bool:
        """Whether this controller still leads; False if the Lease can't be read at present.

        A controller that was paused and does not lead any more must not count: it would end
        reservations of pods that its successor has not seen yet. The successor would then
        overwrite that count, and nobody would count the pods.

        :raises LeadershipLost: if another controller leads.
        """
        now = _now()
        if now < self._sure_until:
            return True
        try:
            self.number = max(self.number, await self._read_term())
        except errors.ApiError as error:
            logger.warning("The Lease can't be read; trying again: %s", error)
            return False
        self._sure_until = now + SURE_FOR
        return True

    def check(self, quota: QuotaObject) -> None:
        """Check that this controller may overwrite the count of ``quota``.

        :raises Superseded: if the count has a later term.
        """
        if quota.counted_under > max(self.number, self._overwritable):
            raise Superseded(quota)

    async def check_lease(self, newer: Superseded) -> None:
        """Read the Lease again after a later term was found.

        If this controller holds the Lease and its term is not later, etcd was restored from a
        backup. From then on this controller may overwrite counts up to the later term.

        :raises LeadershipLost: if another controller leads.
        """
        try:
            self.number = await self._read_term()
        except errors.ApiError as error:
            logger.warning("%s The Lease can't be read; trying again: %s", newer, error)
            return
        if self.number <= newer.term:
            logger.error(
                "%s This controller holds the Lease with the term %d, so etcd was restored from a"
                " backup. The count will be overwritten.",
                newer,
                self.number,
            )
            self._overwritable = max(self._overwritable, newer.term)


def _now() -> float:
    """The time in seconds, on a clock that also runs while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
