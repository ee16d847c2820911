"""Writes the status of one quota after a count."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.recount import RetainedFile, Tally, recount
from hugetlb_quota.accounting.reservation import ReservationId
from hugetlb_quota.controller.counting.books import Books
from hugetlb_quota.controller.counting.unread import UnreadCharges
from hugetlb_quota.controller.expiry import Expiry
from hugetlb_quota.controller.term import Superseded, Term
from hugetlb_quota.controller.writing import conditions
from hugetlb_quota.controller.writing.quota_events import QuotaEvents
from hugetlb_quota.controller.writing.write_plan import WritePlan
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.kube.status import compare_and_swap
from hugetlb_quota.program import about

logger = logging.getLogger(__name__)


class StatusWriter:
    """Writes counted statuses by compare-and-swap, and publishes the Events about changes."""

    def __init__(
        self,
        connection: ObjectApi,
        books: Books,
        unread: UnreadCharges,
        expiry: Expiry,
        term: Term,
        events: QuotaEvents,
    ) -> None:
        self._connection = connection
        self._books = books
        self._unread = unread
        self._expiry = expiry
        self._term = term
        self._events = events

    async def write(self, quota: QuotaObject, plan: WritePlan) -> bool:
        """Write what the last count says of ``quota``, if the status differs.

        :param quota: as it was counted.
        :returns: False if the write must be tried again.
        :raises LeadershipLost: if another controller leads.
        """
        key = quota.key
        tally = self._unread.complete(key, self._books.ledger.tally(key))
        try:
            gone = await self._expiry.gone(quota.counter)
            change = self._change(quota, tally, gone, plan)
            if not change(quota).is_stored:
                written = await compare_and_swap(self._connection, key, change, just_read=quota)
                self._events.retained(quota, tally.files)
                turned = conditions.turned(quota.conditions, written.conditions)
                await self._events.conditions_changed(written, turned)
        except Superseded as newer:
            await self._term.check_lease(newer)
            return False
        except errors.NotFound:
            logger.info(
                "HugeTLBQuota %s was deleted before its count was written.",
                key,
                extra=about(quota=key),
            )
        except (errors.ApiError, InvalidQuota) as error:
            logger.warning(
                "HugeTLBQuota %s was not recounted; trying again: %s",
                *(key, error),
                extra=about(quota=key),
            )
            return False
        return True

    def _change(
        self,
        counted: QuotaObject,
        tally: Tally,
        gone: frozenset[ReservationId | str],
        plan: WritePlan,
    ) -> Callable[[QuotaObject], QuotaObject]:
        """The function that puts the count on the stored quota.

        :param counted: the quota as it was counted; the stored quota may be newer.
        """
        ledger = self._books.ledger
        held, identities = ledger.held(counted.key), ledger.identities

        def change(quota: QuotaObject) -> QuotaObject:
            self._term.check(quota)
            counter = recount(quota.counter, tally, gone, identities)
            found = conditions.findings(
                quota.quota,
                counter=counter,
                forest=plan.forest,
                held=held,
                silent=plan.silent,
                leaving_out=plan.leaving_out,
            )
            new = restate(
                quota,
                counter,
                found,
                files=tally.files,
                counted=counted,
                now=datetime.now(UTC),
            )
            if (quota.uid, quota.generation) == (counted.uid, counted.generation):
                attached_to = plan.forest.attachment(quota.quota, charged=bool(counter.used))
                new = new.attached(attached_to)
            # A new term alone is no reason to write.
            return new if new.is_stored else replace(new, counted_under=self._term.number)

        return change


def restate(
    quota: QuotaObject,
    counter: Counter,
    found: Iterable[conditions.Finding],
    *,
    files: tuple[RetainedFile, ...] = (),
    counted: QuotaObject,
    now: datetime,
) -> QuotaObject:
    """A copy of ``quota`` with the results of a count.

    :param counted: the quota as it was counted. If the spec changed since, the copy still says
        that the newer spec is not counted. If the quota was deleted and created again since, the
        count is of another quota, and ``quota`` is returned unchanged.
    """
    if quota.uid != counted.uid:
        return quota
    return replace(
        quota,
        counter=counter,
        retained_files=files,
        conditions=conditions.conditions(found, quota.conditions, counted.generation, now),
        observed_generation=counted.generation,
    )
