"""What was charged for nodes of which no report could be read since this controller began."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import Tally
from hugetlb_quota.controller.nodes import NodeReport


class Unread:
    """Keeps what the quotas' statuses say beyond the first count, as long as it can be true.

    Where a report was read before, its last reading is counted. At the first count there is
    none: what an earlier controller counted, and this one can't, is charged on until every
    report can be read.
    """

    def __init__(self) -> None:
        self._beyond: Mapping[QuotaKey, Charge] | None = None

    def look(
        self,
        tally: Callable[[QuotaKey], Tally],
        counters: Iterable[Counter],
        reports: Iterable[NodeReport],
    ) -> set[QuotaKey]:
        """Take in which reports can be read; the quotas for which :meth:`withhold` is another.

        :param tally: of each quota, by this count; asked for at the first alone.
        """
        unread = any(report.boot_id is None for report in reports)
        if self._beyond is None:
            self._beyond = _beyond(tally, counters) if unread else {}
            return set(self._beyond)
        if unread or not self._beyond:
            return set()
        released, self._beyond = set(self._beyond), {}
        return released

    def withhold(self, key: QuotaKey, total: Tally) -> Tally:
        """``total`` with what only an unreadable report can tell of, as retained."""
        beyond = None if self._beyond is None else self._beyond.get(key)
        return replace(total, retained=total.retained + beyond) if beyond else total


def _beyond(
    tally: Callable[[QuotaKey], Tally], counters: Iterable[Counter]
) -> Mapping[QuotaKey, Charge]:
    beyond: dict[QuotaKey, Charge] = {}
    for counter in counters:
        total = tally(counter.quota)
        more = (counter.pods + counter.retained).beyond(total.pods + total.retained)
        if more := more.without_zeros():
            beyond[counter.quota] = more
    return beyond
