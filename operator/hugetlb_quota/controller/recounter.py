"""The recount's loop: look at what changed, work out every counter, write what differs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.recount import (
    RetainedFile,
    Tally,
    Unreported,
    expired,
    merge_unreported,
    recount,
    tally,
    tell_unreported,
)
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, Reservation, ReservationId
from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.model import Condition
from hugetlb_quota.api.quota import KIND
from hugetlb_quota.controller import conditions
from hugetlb_quota.controller.census import LISTED_WITHIN, Census, Held, held_by_quota
from hugetlb_quota.controller.nodes import (
    NodeReport,
    evidence,
    project_boot_id,
    project_report,
    remembering,
)
from hugetlb_quota.kube import errors, events
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.informer import Informer, ObjectKey
from hugetlb_quota.kube.pods import project_demanding_pod
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject, project_quota
from hugetlb_quota.kube.resources import HUGETLB_NODES, HUGETLB_QUOTAS, NAMESPACES, NODES, PODS
from hugetlb_quota.kube.status import compare_and_swap

#: Seconds from a change to the recount, so that a burst makes one.
SETTLE: Final = 0.1
#: Seconds between recounts when nothing changes: reservations expire, agents go silent.
PERIOD: Final = 5.0
#: Seconds from a write that failed to the next recount.
RETRY: Final = 1.0
#: Seconds without a report after which an agent counts as silent: two heartbeats and a half.
SILENT_AFTER: Final = 150.0
#: Quotas written at the same time.
WRITERS: Final = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Picture:
    """Everything a recount needs, taken at one moment."""

    forest: Forest
    totals: Mapping[QuotaKey, Tally]
    held: Mapping[QuotaKey, tuple[Held, ...]]
    silent: frozenset[str]
    unreported: Mapping[QuotaKey, list[Unreported]]


class Recounter:
    """Keeps the status of every HugeTLBQuota true.

    :param identity: of this controller, for its Events.
    """

    def __init__(self, connection: Connection, identity: str) -> None:
        self._connection = connection
        self._identity = identity
        self._census = Census()
        self._wake = asyncio.Event()
        self._first_seen: dict[ReservationId | str, float] = {}
        self._reported: dict[str, float] = {}
        self._pods = Informer(connection, PODS, project_demanding_pod)
        self._quotas = Informer(connection, HUGETLB_QUOTAS, project_quota)
        self._reports = Informer(connection, HUGETLB_NODES, project_report)
        self._boot_ids = Informer(connection, NODES, project_boot_id)
        self._namespaces = Informer(connection, NAMESPACES, _labels)
        self._pods.on_change(self._census.pod_changed)
        self._reports.on_change(self._census.report_changed)
        self._reports.on_change(self._note_report)
        for informer in (self._pods, self._quotas, self._boot_ids, self._namespaces):
            informer.on_change(lambda *_: self._wake.set())

    async def run(self) -> None:
        """Recount for ever: soon after every change, and now and then."""
        informers = (self._pods, self._quotas, self._reports, self._boot_ids, self._namespaces)
        async with asyncio.TaskGroup() as group:
            for informer in informers:
                group.create_task(informer.run())
            for informer in informers:
                await informer.synced.wait()
            while True:
                self._wake.clear()
                await self._recount()
                try:
                    async with asyncio.timeout(PERIOD):
                        await self._wake.wait()
                        await asyncio.sleep(SETTLE)
                except TimeoutError:
                    pass

    async def _recount(self) -> None:
        picture = self._picture()
        self._note_reservations()
        limit = asyncio.Semaphore(WRITERS)

        async def write(quota: QuotaObject) -> None:
            async with limit:
                await self._write(quota, picture)

        known = [quota for quota in self._quotas.store.values() if isinstance(quota, QuotaObject)]
        await asyncio.gather(*(write(quota) for quota in known))

    def _picture(self) -> _Picture:
        valid = [each for each in self._quotas.store.values() if isinstance(each, QuotaObject)]
        labels = {key.name: labels for key, labels in self._namespaces.store.items()}
        forest = Forest((each.quota for each in valid), labels)
        reports = {key.name: report for key, report in self._reports.store.items()}
        boot_ids = {key.name: boot_id for key, boot_id in self._boot_ids.store.items()}
        known = evidence(boot_ids, reports.values())
        now = time.monotonic()
        count = self._census.count(
            forest,
            self._pods.store.values(),
            known,
            reports,
            merge_unreported({each.key: each.unreported for each in valid}),
            seen_up_to=self._pods.resource_version,
            now=now,
            unreadable={
                key.namespace
                for key, each in self._quotas.store.items()
                if isinstance(each, InvalidQuota)
            },
        )
        if count.waits:
            asyncio.get_running_loop().call_later(LISTED_WITHIN, self._wake.set)
        silent = frozenset(name for name in reports if now - self._reported[name] >= SILENT_AFTER)
        holding = remembering(known, reports.values())
        totals = tally(
            forest,
            count.pods,
            (each for report in holding for each in report.retained),
            (each for report in holding for each in report.files),
        )
        unreported: dict[QuotaKey, list[Unreported]] = {}
        for pod in count.unreported:
            for key in pod.quotas:
                unreported.setdefault(key, []).append(pod)
        return _Picture(forest, totals, held_by_quota(count, forest), silent, unreported)

    async def _write(self, known: QuotaObject, picture: _Picture) -> None:
        """Bring one quota's status up to ``picture``, if it is not there already."""
        total = picture.totals[known.key]
        try:
            gone = await self._gone(known.counter)
            # Whatever they were made for is over when they have been seen for so long.
            over = frozenset(filter(self._watched_for_life, known.counter.unreadable))
            change = self._change(known, total, gone | over, picture)
            if not change(known).is_stored:
                before = known.conditions
                written = await compare_and_swap(self._connection, known.key, change)
                await self._tell(written, conditions.turned(before, written.conditions))
        except errors.NotFound:
            logger.info("HugeTLBQuota %s went while it was recounted.", known.key)
        except (errors.ApiError, InvalidQuota) as error:
            logger.warning("HugeTLBQuota %s was not recounted; trying again: %s", known.key, error)
            asyncio.get_running_loop().call_later(RETRY, self._wake.set)

    def _change(
        self,
        known: QuotaObject,
        total: Tally,
        gone: frozenset[ReservationId | str],
        picture: _Picture,
    ) -> Callable[[QuotaObject], QuotaObject]:
        held = picture.held.get(known.key, ())
        unreported = picture.unreported.get(known.key, ())

        def change(quota: QuotaObject) -> QuotaObject:
            counter = recount(quota.counter, total, gone)
            found = conditions.findings(quota.quota, counter, picture.forest, held, picture.silent)
            return restate(
                quota,
                counter,
                found,
                files=total.files,
                unreported=tell_unreported(quota.unreported, unreported),
                counted=known,
                now=datetime.now(UTC),
            )

        return change

    async def _gone(self, counter: Counter) -> frozenset[ReservationId]:
        """The reservations that may be dropped though no pod of theirs is counted.

        A live read proves each: the informer may lag behind a create that was slow.
        """
        gone = {each.id for each in counter.reservations if self._census.was_released(each.uid)}
        for each in expired(counter, datetime.now(UTC)):
            if self._watched_for_life(each.id) and not await self._exists(each):
                gone.add(each.id)
        return frozenset(gone)

    def _watched_for_life(self, held: ReservationId | str) -> bool:
        """Whether this controller has seen it for as long as a reservation lives.

        As client-go watches a Lease: the clock of the one that wrote the time may be off.
        """
        now = time.monotonic()
        return now - self._first_seen.get(held, now) >= RESERVATION_LIFETIME.total_seconds()

    async def _exists(self, reservation: Reservation) -> bool:
        """Whether the pod is in the API and will yet be counted under this quota."""
        namespace, _, name = reservation.pod.partition("/")
        if not (namespace and name):
            return False  # no pod is called so
        try:
            raw = await self._connection.get(PODS, name, namespace)
        except errors.NotFound:
            return False
        same = (raw.get("metadata") or {}).get("uid") == reservation.uid
        # One that the informer has was counted where it belongs, and that is not here.
        return same and not self._has_seen(reservation.uid, namespace, name)

    def _has_seen(self, uid: str, namespace: str, name: str) -> bool:
        pod = self._pods.store.get(ObjectKey(namespace, name))
        return pod is not None and pod.uid == uid

    def _note_reservations(self) -> None:
        now = time.monotonic()
        held: set[ReservationId | str] = set()
        for quota in self._quotas.store.values():
            if isinstance(quota, QuotaObject):
                held.update(each.id for each in quota.counter.reservations)
                held.update(quota.counter.unreadable)
        self._first_seen = {each: self._first_seen.get(each, now) for each in held}

    def _note_report(self, old: NodeReport | None, new: NodeReport | None, _: int) -> None:
        if new is not None:
            self._reported[new.node] = time.monotonic()
        elif old is not None:
            self._reported.pop(old.node, None)
        # A mere heartbeat changes no count.
        if old is None or new is None or replace(old, reported_at=new.reported_at) != new:
            self._wake.set()

    async def _tell(self, quota: QuotaObject, turned: tuple[Condition, ...]) -> None:
        for condition in turned:
            await events.publish(
                self._connection,
                events.Regarding(API_VERSION, KIND, quota.key.namespace, quota.key.name, quota.uid),
                kind="Normal" if condition.status == "True" else "Warning",
                reason=condition.reason,
                note=condition.message,
                program="controller",
                instance=self._identity,
            )


def restate(
    quota: QuotaObject,
    counter: Counter,
    found: Iterable[conditions.Finding],
    *,
    files: tuple[RetainedFile, ...] = (),
    unreported: tuple[Unreported, ...] = (),
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
        unreported=unreported,
        conditions=conditions.conditions(found, quota.conditions, counted.generation, now),
        observed_generation=counted.generation,
    )


def _labels(raw: Mapping[str, object]) -> Mapping[str, str]:
    metadata = raw["metadata"]
    assert isinstance(metadata, Mapping)
    labels: Mapping[str, str] = metadata.get("labels") or {}
    return labels
