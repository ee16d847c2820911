"""Finds the reservations that end without a counted pod."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.lives import LineId, Lives
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, Reservation
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.informer import Informer, ObjectKey
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS, PODS

#: Seconds between the two reads that prove that a pod is missing. The API server and etcd may have
#: been paused. The first read that answers shows that both run again. etcd then gives a waiting
#: create at most 7 s (ReqTimeout of its server: 5 s and two elections), and the API server's own
#: time for the create is over. An API server that is cut off from etcd keeps the connection, and
#: so a create that it has sent, for 10 s more (keepaliveTimeout in its storage factory).
APART: Final = 20.0
#: For so many seconds the informer must have shown a pod at a later version than the version of
#: the reservation: changes of quotas and namespaces may arrive later than changes of pods.
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
        #: The resourceVersion that the reservation's pod had at the last count, or the generation
        #: of the quota that moves.
        self._counted: dict[LineId, int] = {}
        #: Since when the pod's version has been later than the version that the request changes.
        self._superseded: dict[LineId, float] = {}
        #: Since when live reads have shown no pod for the reservation.
        self._missing: dict[LineId, float] = {}

    def note(self, counters: Iterable[Counter]) -> None:
        """Take in all reservations, at the moment at which the pods are counted."""
        now = time.monotonic()
        lines: set[LineId] = set()
        superseded: set[LineId] = set()
        self._counted = {}
        for counter in counters:
            lines.update(counter.unreadable)
            for each in counter.pending:
                lines.add(each.id)
                if (quota := self._moving_quota(each)) is not None:
                    self._counted[each.id] = quota.generation
                    continue
                self._counted[each.id] = version = self._version(each)
                if version > each.since:
                    superseded.add(each.id)
        self._lives.note(lines, now)
        self._superseded = {each: self._superseded.get(each, now) for each in superseded}
        self._missing = {each: since for each, since in self._missing.items() if each in lines}

    def next_due(self, after: float) -> float:
        """The first moment after ``after`` at which :meth:`gone` may return something new.

        Both are seconds of the monotonic clock; infinity if there is no such moment.
        """
        moments = (
            *self._lives.ends(),
            *(since + SUPERSEDED_FOR for since in self._superseded.values()),
            *(since + APART for since in self._missing.values()),
        )
        return min((each for each in moments if each > after), default=math.inf)

    async def gone(self, counter: Counter) -> frozenset[LineId]:
        """The reservations of ``counter`` that may be dropped without a counted pod.

        - The pod was released.
        - The pod is counted at a later version than the request changes: then the request has
          changed the pod, or has failed.
        - The life is over, and two live reads show no such pod. The informer is no proof, because
          it may lag behind a slow create.

        :raises ApiError: if a live read fails.
        """
        gone: set[LineId] = {
            each.id
            for each in counter.pending
            if self._census.was_released(each.uid) or self._is_superseded(each.id)
        }
        for each in counter.pending:
            # The count has a later version of the pod, so a read can't show more.
            if each.id in gone or each.id in self._superseded:
                continue
            if not (each.is_over or self._is_over(each.id)):
                continue
            if await self._is_missing(each):
                gone.add(each.id)
        # An unreadable line has a life too: no request lives longer.
        return frozenset(gone).union(filter(self._is_over, counter.unreadable))

    def _is_over(self, line: LineId) -> bool:
        """Whether this controller has watched ``line`` for its whole life.

        ``expires`` is no help, because the clock of its writer may be off. client-go treats a
        Lease in the same way.
        """
        return self._lives.is_over(line, time.monotonic())

    def _is_superseded(self, line: LineId) -> bool:
        """Whether the pod has been counted at a later version for long enough."""
        now = time.monotonic()
        return now - self._superseded.get(line, now + 1) >= SUPERSEDED_FOR

    async def _is_missing(self, reservation: Reservation) -> bool:
        """Whether two live reads, APART seconds apart, have shown no such pod."""
        first = self._missing.get(reservation.id)
        if first is not None and time.monotonic() - first < APART:
            return False
        if await self._exists(reservation):
            self._missing.pop(reservation.id, None)
            return False
        self._missing.setdefault(reservation.id, time.monotonic())
        return first is not None

    async def _exists(self, reservation: Reservation) -> bool:
        """Whether the pod is in the API and a later count may charge the pod to this quota.

        For the reservation of a quota that moves: whether the quota has moved, and no count has
        seen the move.
        """
        namespace, _, name = reservation.pod.partition("/")
        if not (namespace and name):
            return False  # no pod has such a name
        moves = self._moving_quota(reservation) is not None
        kind, version = (HUGETLB_QUOTAS, "generation") if moves else (PODS, "resourceVersion")
        try:
            raw = await self._connection.get(kind, name, namespace)
        except errors.NotFound:
            return False
        metadata = raw.get("metadata") or {}
        same = metadata.get("uid") == reservation.uid
        # A pod that was counted at its present version is charged to other quotas.
        return same and not self._was_counted_at(reservation, int(metadata.get(version) or 0))

    def _was_counted_at(self, reservation: Reservation, version: int) -> bool:
        """Whether the last count had the pod, or the moving quota, at ``version`` or later.

        The informer may be newer.
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
