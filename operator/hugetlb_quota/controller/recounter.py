"""The controller's loop: count soon after every change, and write what differs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import timedelta
from typing import Any, Final

from hugetlb_quota.accounting.forest import Forest
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME
from hugetlb_quota.controller.counting.books import Books
from hugetlb_quota.controller.counting.nodes import NodeReport, NodeSpec
from hugetlb_quota.controller.counting.unread import UnreadCharges
from hugetlb_quota.controller.expiry import Expiry
from hugetlb_quota.controller.guard import Guard, is_guarded
from hugetlb_quota.controller.informers import Informers
from hugetlb_quota.controller.lag import Lag
from hugetlb_quota.controller.term import Term
from hugetlb_quota.controller.writing.node_spec import write_spec
from hugetlb_quota.controller.writing.orphans import OrphanReporter
from hugetlb_quota.controller.writing.quota_events import QuotaEvents
from hugetlb_quota.controller.writing.status_writer import StatusWriter
from hugetlb_quota.controller.writing.write_plan import WritePlan, WritePlanner
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.quotas import QuotaObject

#: Seconds from a change to the count, so that one count takes in a burst of changes.
SETTLE: Final = 0.1
#: The least number of seconds between two counts. So a quota is written at most twice a second:
#: each write is a conflict for an admission that is under way.
SHORTEST_PERIOD: Final = 0.5
#: Seconds between two counts when nothing changes: reservations expire, agents become silent.
PERIOD: Final = 5.0
#: Seconds from a failed read or write to the next count.
RETRY: Final = 1.0
#: The most objects that are written at the same time.
WRITERS: Final = 8


class Recounter:
    """Keeps the status of every HugeTLBQuota, and the spec of every HugeTLBNode, up to date.

    ``books`` and ``lag`` are for the metrics too.

    :param instance: the name of this controller, for Events.
    :param read_term: as :class:`Term` says.
    :param lifetime: the longest time that a create request may last after admission.
    :param may_begin: whether the API server asks admission about pods by now. Before, no quota is
        counted for the first time, because a pod may still be created without admission.
    """

    def __init__(
        self,
        connection: Connection,
        instance: str,
        read_term: Callable[[], Awaitable[int]],
        *,
        lifetime: timedelta = RESERVATION_LIFETIME,
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        self._connection = connection
        self._may_begin = may_begin
        self.books = Books()
        self.lag = Lag()
        self._wake = asyncio.Event()
        self._term = Term(read_term)
        events = QuotaEvents(connection, instance)
        self._orphans = OrphanReporter(connection, instance)
        self._informers = Informers(connection, self.books, events.warn)
        self._expiry = Expiry(
            *(connection, self.books.census, self._informers.pods, self._informers.quotas), lifetime
        )
        self._guard = Guard(connection, self._informers.quotas.store)
        unread = UnreadCharges()
        self._planner = WritePlanner(self.books, self._informers, unread, self._expiry.next_due)
        self._writer = StatusWriter(
            connection, self.books, unread, self._expiry, self._term, events
        )
        self._informers.quotas.on_change(self._guard.on_change)
        for informer in self._informers.all:
            informer.on_change(lambda *_: self._changed())

    @property
    def quotas(self) -> tuple[QuotaObject, ...]:
        """All quotas; none before this controller leads."""
        return tuple(self._informers.quotas.store.values())

    @property
    def quotas_exist(self) -> bool | None:
        """Whether any quota exists; None before the first list of quotas."""
        quotas = self._informers.quotas
        return bool(quotas.store) if quotas.synced.is_set() else None

    @property
    def report_ages(self) -> Mapping[str, float]:
        """By node name, the seconds since the last report came."""
        return self._informers.report_ages

    def on_quotas(self, look: Callable[[], None]) -> None:
        """Call ``look`` whenever :attr:`quotas_exist` may have changed."""

        def changed(old: QuotaObject | None, new: QuotaObject | None, _: int) -> None:
            # A reservation changes a quota, but adds and removes none.
            if old is None or new is None:
                look()

        self._informers.quotas.on_change(changed)
        self._informers.quotas.on_progress(lambda listed: look() if listed else None)

    def look(self) -> None:
        """Count soon."""
        self._wake.set()

    async def run(self) -> None:
        """Run the informers and the guard; count soon after every change and every PERIOD.

        :raises LeadershipLost: if another controller leads.
        """
        informers = self._informers.all
        async with asyncio.TaskGroup() as group:
            for task in (*(each.run() for each in informers), self._guard.run()):
                group.create_task(task)
            for informer in informers:
                await informer.synced.wait()
            while True:
                self._wake.clear()
                began = time.monotonic()
                if await self._term.is_held():
                    await self._recount()
                else:
                    self._try_again()
                try:
                    async with asyncio.timeout(self._patience()):
                        await self._wake.wait()
                        rest = began + SHORTEST_PERIOD - time.monotonic()
                        await asyncio.sleep(max(SETTLE, rest))
                except TimeoutError:
                    pass

    def _patience(self) -> float:
        """Seconds until the next count if nothing changes."""
        now = time.monotonic()
        return min(PERIOD, max(SHORTEST_PERIOD, self._expiry.next_due(now) - now))

    def _changed(self) -> None:
        # Most heartbeats need no count.
        if self.books.is_due:
            self.lag.changed()
            self._wake.set()

    def _try_again(self) -> None:
        """Count again in a moment, because a read or a write failed."""
        self.lag.failed()
        asyncio.get_running_loop().call_later(RETRY, self._wake.set)

    async def _recount(self) -> None:
        """Count, and write what differs."""
        self.lag.begin()
        plan = self._planner.plan()
        self._orphans.report(self.books.ledger.orphans)
        store = self.books.store
        self._expiry.note(store.quotas[key].counter for key in store.pending)
        # From the leaves up: a reservation must not end on a quota before the pod's identity is
        # stored on the quota below.
        for quotas in from_the_leaves(plan.quotas, plan.forest):
            readable = [quota for quota in quotas if not quota.invalid]
            counted = [quota for quota in readable if self._may_count(quota)]
            self._planner.retry_quotas |= {each.key for each in readable} - {
                each.key for each in counted
            }
            await _few_at_a_time(self._write_status(each, plan) for each in counted)
        await _few_at_a_time(self._write_spec(*each) for each in plan.node_specs)
        self.lag.end()

    def _may_count(self, quota: QuotaObject) -> bool:
        """Whether a count of ``quota`` may be written now."""
        return bool(quota.observed_generation) or (is_guarded(quota) and self._may_begin())

    async def _write_status(self, quota: QuotaObject, plan: WritePlan) -> None:
        if not await self._writer.write(quota, plan):
            self._planner.retry_quotas.add(quota.key)
            self._try_again()

    async def _write_spec(self, report: NodeReport, wanted: NodeSpec) -> None:
        if not await write_spec(self._connection, report, wanted):
            self._planner.retry_nodes.add(report.node)
            self._try_again()


async def _few_at_a_time(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all of ``work``, at most :data:`WRITERS` at the same time.

    A coroutine is taken from ``work`` when it can run, so ten thousand do not exist at once.
    """
    waiting = iter(work)

    async def writer() -> None:
        for each in waiting:
            await each

    async with asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(writer())


def from_the_leaves(
    quotas: Iterable[QuotaObject], forest: Forest
) -> tuple[tuple[QuotaObject, ...], ...]:
    """``quotas`` by their depth in ``forest``, the deepest first.

    A quota that is not in ``forest`` is left out.
    """
    levels: dict[int, list[QuotaObject]] = {}
    for quota in quotas:
        if quota.key in forest:
            levels.setdefault(len(forest.attached(quota.key)), []).append(quota)
    return tuple(tuple(levels[depth]) for depth in sorted(levels, reverse=True))
