"""What was charged for nodes of which no report could be read since this controller began."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import Tally
from hugetlb_quota.controller.nodes import NodeReport


class Unread:
    """Keeps what the quotas' statuses say beyond the first count, as long as it can be true."""

    def __init__(self) -> None:
        self._beyond: Mapping[QuotaKey, Charge] | None = None

    def withhold(
        self,
        totals: Mapping[QuotaKey, Tally],
        counters: Iterable[Counter],
        reports: Iterable[NodeReport],
    ) -> Mapping[QuotaKey, Tally]:
        """``totals`` with what only an unreadable report can tell of, as retained.

        Where a report was read before, its last reading is counted. At the first count there
        is none: what an earlier controller counted, and this one can't, is charged on until
        every report can be read.
        """
        unread = any(report.boot_id is None for report in reports)
        if self._beyond is None:
            self._beyond = {
                counter.quota: (counter.pods + counter.retained)
                .beyond(totals[counter.quota].pods + totals[counter.quota].retained)
                .without_zeros()
                for counter in counters
                if counter.quota in totals
            }
        if not unread:
            self._beyond = {}
        return {
            key: replace(total, retained=total.retained + beyond)
            if (beyond := self._beyond.get(key))
            else total
            for key, total in totals.items()
        }
