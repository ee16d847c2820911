"""The books: all charges, kept by counts of what changed and checked by counts from scratch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.controller.counting.changes import Scope
from hugetlb_quota.controller.counting.count_input import CountInput
from hugetlb_quota.controller.counting.ledger import Ledger
from hugetlb_quota.controller.counting.store import Store

#: The most differences that one check logs.
_MOST_LOGGED: Final = 10

logger = logging.getLogger(__name__)


class Books:
    """The store that informers feed, and the ledger that the counts keep.

    ``counts``: the number of counts of what changed. ``checks``: the number of counts from
    scratch. ``differences``: the number of checks that found other charges.

    :param clock: returns seconds since any fixed moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = Store(clock)
        self.input = CountInput(self.store)
        self.census = Census()
        self.ledger = Ledger()
        self.counts = 0
        self.checks = 0
        self.differences = 0

    @property
    def is_due(self) -> bool:
        """Whether a count would find anything new."""
        return self.input.is_count_due(self.ledger)

    def count(self, seen_up_to: int, listed_at: int) -> Scope:
        """Bring the ledger up to date with the store.

        :param seen_up_to: the resourceVersion up to which the pods' informer has seen all changes.
        :param listed_at: the resourceVersion of that informer's last list.
        :returns: what the count looked at. Its quotas include all quotas with new charges.
        """
        self.counts += 1
        scope = self.input.scope(self.census, self.ledger, listed_at)
        if scope.new_forest:
            self.ledger.use_forest(self.input.forest)
        count = self.census.count(self.input.snapshot(seen_up_to, scope.uids))
        self.ledger.update(scope.uids, count)
        scope.quotas |= self.ledger.pop_changed()
        return scope

    def check(self, seen_up_to: int) -> bool:
        """Count from scratch, right after :meth:`count`, and compare the charges.

        A difference is a fault of this program. It is logged, and the new charges are kept.

        :returns: whether the charges are the same.
        """
        self.checks += 1
        scratch = Ledger()
        self.input.rebuild()
        scratch.use_forest(self.input.forest)
        scratch.update(None, self.census.count(self.input.snapshot(seen_up_to, None)))
        found = self.ledger.differences(scratch)
        if not found:
            return True
        self.differences += 1
        for sentence in found[:_MOST_LOGGED]:
            logger.error(
                "The count from scratch differs and replaces the earlier counts; this is a fault of"
                " hugetlb-quota: %s",
                sentence,
            )
        self.ledger = scratch
        return False
