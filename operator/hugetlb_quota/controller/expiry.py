"""Which reservations are over although no pod of theirs was counted."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.lives import Held, Lives
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, Reservation
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.informer import Informer, ObjectKey
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS, PODS

#: Seconds between the two reads that prove a pod missing. One that answers shows that the API
#: server and etcd run again, after a pause that no clock here may have seen; a create that the
#: pause has kept is then committed or given up: etcd gives itself 7 s (5 s and two elections,
#: ReqTimeout of its server), the API server's own time is over.
APART: Final = 10.0
#: Seconds for which the count must have known a pod at a later version than a reservation's:
#: what it is told of quotas and namespaces may come later than what it is told of pods.
SUPERSEDED_FOR: Final = 5.0


class Expiry:
    """Watches each reservation for its whole life, and proves that its pod will not come."""

    def __init__(
        self,
        connection: Connection,
        census: Census,
        pods: Informer[Pod],
        quotas: Informer[QuotaObject],
        lifetime: timedelta = RESERVATION_LIFETIME,
    ) -> None:
        self._connection = connection
        self._census = census
        self._pods = pods
        self._quotas = quotas
        self._lives = Lives(lifetime)
        #: The resourceVersion of its pod (or the generation of the quota that moves) that the
        #: recount knew of; and since when the pod has had a later one than the reservation was
        #: made for.
        self._counted: dict[Held, int] = {}
        self._superseded: dict[Held, float] = {}
        #: Since when a live read has shown no pod of it.
        self._missing: dict[Held, float] = {}

    def note(self, counters: Iterable[Counter]) -> None:
        """Take in what all quotas hold now, at the same moment as the pods are counted."""
        now = time.monotonic()
        held: set[Held] = set()
        superseded: set[Held] = set()
        self._counted = {}
        for counter in counters:
            held.update(counter.unreadable)
            for each in counter.pending:
                held.add(each.id)
                if (quota := self._moving_quota(each)) is not None:
                    self._counted[each.id] = quota.generation
                    continue
                self._counted[each.id] = version = self._version(each)
                if version > each.since:
                    superseded.add(each.id)
        self._lives.note(held, now)
        self._superseded = {each: self._superseded.get(each, now) for each in superseded}
        self._missing = {each: since for each, since in self._missing.items() if each in held}

    def next_due(self, after: float) -> float:
        """The first moment after ``after`` at which :meth:`gone` may say something new.

        Both are seconds of the monotonic clock; infinity if there is no such moment.
        """
        moments = (
            *self._lives.ends(),
            *(since + SUPERSEDED_FOR for since in self._superseded.values()),
            *(since + APART for since in self._missing.values()),
        )
        return min((each for each in moments if each > after), default=math.inf)

    async def gone(self, counter: Counter) -> frozenset[Held]:
        """The reservations that may be dropped though no pod of theirs is counted.

        Those whose pod was released; and those whose pod is counted as it became since: a request
        changes the pod that it was asked about, or fails, so it has done either. Of the others
        two live reads prove that they are over: the informer may lag behind a create that was slow.

        :raises ApiError: when the API can't be asked.
        """
        gone: set[Held] = {
            each.id
            for each in counter.pending
            if self._census.was_released(each.uid) or self._is_superseded(each.id)
        }
        for each in counter.pending:
            # The count knows a later version of the pod: no read can say more.
            if each.id in gone or each.id in self._superseded:
                continue
            if not (each.is_over or self._is_over(each.id)):
                continue
            if await self._is_missing(each):
                gone.add(each.id)
        # Whatever these lines were written for is over when they have been there for so long.
        return frozenset(gone).union(filter(self._is_over, counter.unreadable))

    def _is_over(self, held: Held) -> bool:
        """Whether this controller has watched ``held`` for its whole life.

        As client-go watches a Lease: the clock of the program that wrote ``expires`` may be off.
        """
        return self._lives.is_over(held, time.monotonic())

    def _is_superseded(self, held: Held) -> bool:
        """Whether its pod has been counted at a later version for long enough."""
        now = time.monotonic()
        return now - self._superseded.get(held, now + 1) >= SUPERSEDED_FOR

    async def _is_missing(self, reservation: Reservation) -> bool:
        """Whether two live reads, some time apart, have shown no pod of it."""
        first = self._missing.get(reservation.id)
        if first is not None and time.monotonic() - first < APART:
            return False
        if await self._exists(reservation):
            self._missing.pop(reservation.id, None)
            return False
        self._missing.setdefault(reservation.id, time.monotonic())
        return first is not None

    async def _exists(self, reservation: Reservation) -> bool:
        """Whether the pod, or the quota's move, is in the API and will yet be counted here."""
        namespace, _, name = reservation.pod.partition("/")
        if not (namespace and name):
            return False  # no pod is called so
        moves = self._moving_quota(reservation) is not None
        kind, version = (HUGETLB_QUOTAS, "generation") if moves else (PODS, "resourceVersion")
        try:
            raw = await self._connection.get(kind, name, namespace)
        except errors.NotFound:
            return False
        metadata = raw.get("metadata") or {}
        same = metadata.get("uid") == reservation.uid
        # One that was counted as it is now was counted where it belongs, and that is not here.
        return same and not self._has_seen(reservation, int(metadata.get(version) or 0))

    def _has_seen(self, reservation: Reservation, version: int) -> bool:
        """Whether the recount knew the pod, or the quota that moves, at ``version``.

        The informer may know a later version by now.
        """
        return 0 < version <= self._counted.get(reservation.id, 0)

    def _moving_quota(self, reservation: Reservation) -> QuotaObject | None:
        """The quota that moves, if ``reservation`` is for a move."""
        namespace, _, name = reservation.pod.partition("/")
        quota = self._quotas.store.get(ObjectKey(namespace, name))
        return quota if quota is not None and quota.uid == reservation.uid else None

    def _version(self, reservation: Reservation) -> int:
        namespace, _, name = reservation.pod.partition("/")
        pod = self._pods.store.get(ObjectKey(namespace, name))
        return pod.resource_version if pod is not None and pod.uid == reservation.uid else 0
