"""The books: a count of whoever changed after another, and now and then one from scratch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from hugetlb_quota.controller.census import Census
from hugetlb_quota.controller.known import Changes, Known
from hugetlb_quota.controller.ledger import Ledger

#: Differences that are told of one by one.
_TOLD: Final = 10

logger = logging.getLogger(__name__)


class Books:
    """What is known, who is charged, and what that makes in every quota.

    ``counts``: how many there were, of those whom something concerned and from scratch;
    ``differences``: how many from scratch found anything else than those before them.

    :param clock: seconds, of any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.known = Known(clock)
        self.census = Census()
        self.ledger = Ledger()
        self.counts = 0
        self.checks = 0
        self.differences = 0

    @property
    def is_due(self) -> bool:
        """Whether a count would find anything new."""
        return self.known.matters(self.ledger)

    def count(self, seen_up_to: int, listed_at: int) -> Changes:
        """Bring the ledger up to what is known.

        :param seen_up_to: the resourceVersion of the pods' informer.
        :param listed_at: that of its last list.
        :returns: what was looked at; its ``quotas`` are those that may have to be written.
        """
        self.counts += 1
        changes = self.known.begin(self.census, self.ledger, listed_at)
        only = None if changes.all else changes.uids
        self.ledger.take(only, self.census.count(self.known.snapshot(seen_up_to, only)))
        changes.quotas |= self.ledger.changed()
        return changes

    def check(self, seen_up_to: int) -> bool:
        """Count from scratch, right after :meth:`count`; whether that found the same.

        What it found holds. A difference is a fault of this program.
        """
        self.checks += 1
        scratch = Ledger()
        self.known.derive()
        scratch.replant(self.known.forest)
        scratch.take(None, self.census.count(self.known.snapshot(seen_up_to, None)))
        found = self.ledger.differences(scratch)
        if not found:
            return True
        self.differences += 1
        for sentence in found[:_TOLD]:
            logger.error(
                "The count from scratch differs, and holds; this is a fault of hugetlb-quota: %s",
                sentence,
            )
        self.ledger = scratch
        return False
