"""Keeps the charges of nodes without a readable report since this controller started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import Tally
from hugetlb_quota.controller.counting.nodes import NodeReport


class UnreadCharges:
    """The charges that the quotas' statuses have beyond the first count of this controller.

    An earlier controller counted these charges, perhaps from reports that this controller can't
    read. The charges stay until all reports are readable. A report that becomes unreadable later
    is no reason to keep charges here: its last readable version stays in force.
    """

    def __init__(self) -> None:
        #: By quota; None before the first count.
        self._charges: Mapping[QuotaKey, Charge] | None = None

    def update(
        self,
        tally: Callable[[QuotaKey], Tally],
        counters: Iterable[Counter],
        reports: Iterable[NodeReport],
    ) -> set[QuotaKey]:
        """Take in which reports are readable.

        :param tally: gives the tally of a quota; called only at the first count.
        :param counters: the counters in the quotas' statuses.
        :returns: the quotas with an unread charge that begins or ends.
        """
        any_unreadable = any(report.boot_id is None for report in reports)
        if self._charges is None:
            self._charges = _beyond(tally, counters) if any_unreadable else {}
            return set(self._charges)
        if any_unreadable or not self._charges:
            return set()
        ended, self._charges = set(self._charges), {}
        return ended

    def complete(self, key: QuotaKey, tally: Tally) -> Tally:
        """``tally`` of the quota ``key``, with the quota's unread charge added to ``retained``."""
        charge = None if self._charges is None else self._charges.get(key)
        return replace(tally, retained=tally.retained + charge) if charge else tally


def _beyond(
    tally: Callable[[QuotaKey], Tally], counters: Iterable[Counter]
) -> Mapping[QuotaKey, Charge]:
    """By quota, what the counter has beyond the quota's tally."""
    charges: dict[QuotaKey, Charge] = {}
    for counter in counters:
        counted = tally(counter.quota)
        more = (counter.pods + counter.retained).beyond(counted.pods + counted.retained)
        if more := more.without_zeros():
            charges[counter.quota] = more
    return charges
