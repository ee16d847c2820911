"""The recount's loop: look at what changed, work out every counter, write what differs."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile, Tally, recount
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, ReservationId
from hugetlb_quota.controller import conditions
from hugetlb_quota.controller.books import Books
from hugetlb_quota.controller.expiry import Expiry
from hugetlb_quota.controller.guard import Guard, is_guarded
from hugetlb_quota.controller.lag import Lag
from hugetlb_quota.controller.node_wishes import Succession, wishes, write_wishes
from hugetlb_quota.controller.nodes import (
    NodeFacts,
    NodeReport,
    NodeWishes,
    project_node,
    project_report,
)
from hugetlb_quota.controller.orphans import Orphans
from hugetlb_quota.controller.quota_events import QuotaEvents
from hugetlb_quota.controller.store import Namespace
from hugetlb_quota.controller.term import Superseded, Term
from hugetlb_quota.controller.unread import Unread
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.informer import Informer, ObjectKey
from hugetlb_quota.kube.pods import Pod, project_demanding_pod
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.kube.resources import HUGETLB_NODES, HUGETLB_QUOTAS, NAMESPACES, NODES, PODS
from hugetlb_quota.kube.status import compare_and_swap
from hugetlb_quota.program import about

#: Seconds from a change to the recount, so that a burst makes one.
SETTLE: Final = 0.1
#: Seconds between recounts at the least, so that a quota is written twice a second at most:
#: each of these writes is a conflict for whoever admits just then.
SHORTEST_PERIOD: Final = 0.5
#: Seconds between recounts when nothing changes: reservations expire, agents go silent.
PERIOD: Final = 5.0
#: Seconds between counts from scratch, at a moment when nothing is to be written; twice as many
#: where there is none.
CHECK_PERIOD: Final = 300.0
#: Seconds from a write that failed to the next recount.
RETRY: Final = 1.0
#: Seconds without a report after which an agent counts as silent: two heartbeats and a half.
SILENT_AFTER: Final = 150.0
#: Quotas written at the same time.
WRITERS: Final = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Picture:
    """What is to be written after a count; the ledger stays as it is meanwhile."""

    forest: Forest
    quotas: tuple[QuotaObject, ...]
    silent: frozenset[str]
    cut: frozenset[str]
    wishes: tuple[tuple[NodeReport, NodeWishes], ...]


class Recounter:
    """Keeps the status of every HugeTLBQuota true.

    :param identity: of this controller, for its Events.
    :param ask_term: as :class:`Term` asks.
    :param lifetime: how long a create may be under way after admission.
    :param may_begin: whether pods are asked about by now: before, no quota is counted for the
        first time, as a pod could pass by a quota that is said to hold.
    """

    def __init__(
        self,
        connection: Connection,
        identity: str,
        ask_term: Callable[[], Awaitable[int]],
        *,
        lifetime: timedelta = RESERVATION_LIFETIME,
        may_begin: Callable[[], bool] = lambda: True,
    ) -> None:
        self._connection = connection
        self._may_begin = may_begin
        self._term = Term(ask_term)
        #: What is known and counted, for the metrics too.
        self.books = Books()
        self.lag = Lag()
        self._events = QuotaEvents(connection, identity)
        self._wake = asyncio.Event()
        self._reported: dict[str, float] = {}
        self._pods = Informer(connection, PODS, project_demanding_pod)
        self._expiry = Expiry(connection, self.books.census, self._pods, lifetime)
        self._quotas = Informer(connection, HUGETLB_QUOTAS, self._to_count)
        self._reports = Informer(connection, HUGETLB_NODES, self._to_report)
        self._nodes = Informer(connection, NODES, project_node)
        self._namespaces = Informer(connection, NAMESPACES, _project_namespace)
        self._unread = Unread()
        self._silent, self._cut = frozenset[str](), frozenset[str]()
        self._expires_at = 0.0
        self._check_at = time.monotonic() + CHECK_PERIOD
        #: What could not be written.
        self._quotas_again, self._reports_again = set[QuotaKey](), set[str]()
        self._orphans = Orphans(connection, identity)
        self._pods.on_change(self._note_pod)
        self._nodes.on_change(self._note_node)
        self._reports.on_change(self._note_report)
        self._guard = Guard(connection, self._quotas.store)
        self._quotas.on_change(self._guard.look)
        store = self.books.store
        self._quotas.on_change(lambda old, new, _: store.quota_changed(old, new))
        self._namespaces.on_change(lambda old, new, _: store.namespace_changed(old, new))
        for informer in (self._pods, self._quotas, self._reports, self._nodes, self._namespaces):
            informer.on_change(lambda *_: self._changed())

    @property
    def quotas(self) -> tuple[QuotaObject, ...]:
        """All that are known; none before this controller leads."""
        return tuple(self._quotas.store.values())

    @property
    def report_ages(self) -> Mapping[str, float]:
        """By node, how many seconds ago its last report came."""
        now = time.monotonic()
        return {node: now - at for node, at in self._reported.items()}

    async def run(self) -> None:
        """Recount for ever: soon after every change, and now and then."""
        informers = (self._pods, self._quotas, self._reports, self._nodes, self._namespaces)
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
                    async with asyncio.timeout(PERIOD):
                        await self._wake.wait()
                        rest = began + SHORTEST_PERIOD - time.monotonic()
                        await asyncio.sleep(max(SETTLE, rest))
                except TimeoutError:
                    pass

    def on_quotas(self, look: Callable[[], None]) -> None:
        """Call ``look`` whenever :attr:`quotas_exist` may be another."""

        def changed(old: QuotaObject | None, new: QuotaObject | None, _: int) -> None:
            # Each reservation is a change of a quota that is there.
            if old is None or new is None:
                look()

        self._quotas.on_change(changed)
        self._quotas.on_progress(lambda listed: look() if listed else None)

    @property
    def quotas_exist(self) -> bool | None:
        """Whether there is any quota; None while that is not known."""
        return bool(self._quotas.store) if self._quotas.synced.is_set() else None

    def look(self) -> None:
        """Recount soon."""
        self._wake.set()

    def _is_counted(self, quota: QuotaObject) -> bool:
        """Whether its count may be written now."""
        return bool(quota.observed_generation) or (is_guarded(quota) and self._may_begin())

    def _try_again(self) -> None:
        """Recount in a moment: what was to be read or written just now could not be."""
        self.lag.failed()
        asyncio.get_running_loop().call_later(RETRY, self._wake.set)

    def _changed(self) -> None:
        # A mere heartbeat changes no count.
        if self.books.is_due:
            self.lag.changed()
            self._wake.set()

    async def _recount(self) -> None:
        self.lag.begin()
        picture = self._picture()
        store = self.books.store
        self._expiry.note(store.quotas[key].counter for key in store.pending)
        # From the leaves up: a reservation must not end above before its identity stands below.
        for quotas in from_the_leaves(picture.quotas, picture.forest):
            readable = [quota for quota in quotas if not quota.invalid]
            counted = [quota for quota in readable if self._is_counted(quota)]
            self._quotas_again |= {each.key for each in readable} - {each.key for each in counted}
            await _few_at_a_time(self._write(each, picture) for each in counted)
        await _few_at_a_time(self._wish(*each) for each in picture.wishes)
        self.lag.end()

    def _picture(self) -> _Picture:
        """Count whom something concerned, and say what is to be written because of that."""
        store, at = self.books.store, self._pods.resource_version
        scope = self.books.count(at, self._pods.listed_at)
        if scope.is_everything:
            # A million objects that stay: each look for garbage among them holds everything up.
            gc.freeze()
        keys = scope.quotas | self._quotas_again | self._by_time()
        reports = scope.node_specs | self._reports_again
        self._quotas_again, self._reports_again = set(), set()
        if self._is_check_due(idle=not keys) and not self.books.check(at):
            keys, reports = set(store.quotas), set(store.nodes.reports)
        keys |= self._unread.look(
            self.books.ledger.tally,
            (quota.counter for quota in store.quotas.values()),
            store.nodes.reports.values(),
        )
        self._orphans.tell(self.books.ledger.orphans)
        return _Picture(
            forest=self.books.input.forest,
            quotas=tuple(store.quotas[key] for key in keys if key in store.quotas),
            silent=self._silent,
            cut=self._cut,
            wishes=tuple(self._wishes(reports)),
        )

    def _is_check_due(self, *, idle: bool) -> bool:
        now = time.monotonic()
        if now < self._check_at + (0 if idle else CHECK_PERIOD):
            return False
        self._check_at = now + CHECK_PERIOD
        return True

    def _by_time(self) -> set[QuotaKey]:
        """The quotas of which something may be new for the time alone."""
        now = time.monotonic()
        keys = set[QuotaKey]()
        if now >= self._expires_at:
            # Less than the time between two counts at rest, so that none is passed over.
            self._expires_at = now + PERIOD / 2
            keys |= self.books.store.pending
        self._reported = {name: self._reported[name] for name in self.books.store.nodes.reports}
        silent = frozenset(name for name, at in self._reported.items() if now - at >= SILENT_AFTER)
        cut = frozenset(name for name, it in self.books.store.nodes.reports.items() if it.is_cut)
        if (silent, cut) != (self._silent, self._cut):
            self._silent, self._cut = silent, cut
            keys |= self.books.ledger.holding()
        return keys

    def _wishes(self, names: Iterable[str]) -> Iterator[tuple[NodeReport, NodeWishes]]:
        """What is to be written to the nodes ``names``, where that is not there already."""
        store, ledger = self.books.store, self.books.ledger
        leaving = {name for name, it in store.namespaces.items() if it.leaving}
        succession = Succession(self.books.input.forest, leaving)
        for name in names:
            report = store.nodes.reports.get(name)
            if report is not None and store.nodes.is_report_valid(name):
                retained = [each for pod in report.pods for each in ledger.retained(pod.uid)]
                if (wanted := wishes(report, retained, succession)) != report.wishes:
                    yield report, wanted

    async def _write(self, known: QuotaObject, picture: _Picture) -> None:
        """Bring one quota's status up to ``picture``, if it is not there already."""
        total = self._unread.withhold(known.key, self.books.ledger.tally(known.key))
        try:
            gone = await self._expiry.gone(known.counter)
            change = self._change(known, total, gone, picture)
            if not change(known).is_stored:
                before = known.conditions
                written = await compare_and_swap(self._connection, known.key, change, known=known)
                self._events.retained(known, total.files)
                await self._events.turned(written, conditions.turned(before, written.conditions))
        except Superseded as newer:
            await self._term.meet(newer)
            self._quotas_again.add(known.key)
            self._try_again()
        except errors.NotFound:
            logger.info(
                "HugeTLBQuota %s went while it was recounted.",
                known.key,
                extra=about(quota=known.key),
            )
        except (errors.ApiError, InvalidQuota) as error:
            logger.warning(
                "HugeTLBQuota %s was not recounted; trying again: %s",
                *(known.key, error),
                extra=about(quota=known.key),
            )
            self._quotas_again.add(known.key)
            self._try_again()

    async def _wish(self, report: NodeReport, wanted: NodeWishes) -> None:
        if not await write_wishes(self._connection, report, wanted):
            self._reports_again.add(report.node)
            self._try_again()

    def _change(
        self,
        known: QuotaObject,
        total: Tally,
        gone: frozenset[ReservationId | str],
        picture: _Picture,
    ) -> Callable[[QuotaObject], QuotaObject]:
        held, identities = self.books.ledger.held(known.key), self.books.ledger.identities

        def change(quota: QuotaObject) -> QuotaObject:
            self._term.check(quota)
            counter = recount(quota.counter, total, gone, identities)
            found = conditions.findings(
                *(quota.quota, counter, picture.forest),
                *(held, picture.silent, picture.cut),
            )
            counted = restate(
                quota,
                counter,
                found,
                files=total.files,
                counted=known,
                now=datetime.now(UTC),
            )
            if (quota.uid, quota.generation) == (known.uid, known.generation):
                attached_to = picture.forest.attachment(quota.quota, charged=bool(counter.used))
                counted = counted.attached(attached_to)
            # The same count is not written anew for having another counter.
            under = self._term.number
            return counted if counted.is_stored else replace(counted, counted_under=under)

        return change

    def _to_count(self, raw: dict[str, Any]) -> QuotaObject:
        metadata = raw["metadata"]
        known = self._quotas.store.get(ObjectKey(metadata.get("namespace", ""), metadata["name"]))
        quota = QuotaObject.to_count(raw, known)
        if quota.invalid and (known is None or known.invalid != quota.invalid):
            sentence = (
                f"HugeTLBQuota {quota.key} can't be understood: {quota.invalid} What was charged"
                " stays charged, and its pods are refused; correct its spec."
            )
            logger.error(sentence, extra=about(quota=quota.key))
            self._events.warn(quota, "Invalid", sentence)
        return quota

    def _to_report(self, raw: dict[str, Any]) -> NodeReport | None:
        return project_report(raw, self._reports.store.get(ObjectKey("", raw["metadata"]["name"])))

    def _note_pod(self, old: Pod | None, new: Pod | None, version: int) -> None:
        # There is no position while a list is taken in.
        listing = not self._pods.resource_version
        self.books.census.pod_changed(old, new, version, missed=listing)
        self.books.store.pod_changed(old, new)

    def _note_node(self, old: NodeFacts | None, new: NodeFacts | None, version: int) -> None:
        listing = not self._nodes.resource_version
        self.books.store.nodes.node_changed(old, new, 0 if listing else version)

    def _note_report(self, old: NodeReport | None, new: NodeReport | None, _: int) -> None:
        if new is not None:
            self._reported[new.node] = time.monotonic()
        self.books.store.nodes.report_changed(old, new)


async def _few_at_a_time(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of ``work``, :data:`WRITERS` at a time; each is made when it is its turn."""
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
    """``quotas`` by how many are above them, the lowest first.

    One that came after ``forest`` was made is left out.
    """
    levels: dict[int, list[QuotaObject]] = {}
    for quota in quotas:
        if quota.key in forest:
            levels.setdefault(len(forest.attached(quota.key)), []).append(quota)
    return tuple(tuple(levels[depth]) for depth in sorted(levels, reverse=True))


def restate(
    quota: QuotaObject,
    counter: Counter,
    found: Iterable[conditions.Finding],
    *,
    files: tuple[RetainedFile, ...] = (),
    counted: QuotaObject,
    now: datetime,
) -> QuotaObject:
    """``quota`` with what a recount says of it.

    :param counted: the object that was counted. When its spec changed since, ``quota``
        stays to be counted; when it was made anew under its name, it is another's count.
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


def _project_namespace(raw: Mapping[str, Any]) -> Namespace:
    metadata = raw["metadata"]
    return Namespace(
        metadata["name"], metadata.get("labels") or {}, "deletionTimestamp" in metadata
    )
