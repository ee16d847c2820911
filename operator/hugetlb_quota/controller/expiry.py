"""Which reservations are over although no pod of theirs was counted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.recount import expired
from hugetlb_quota.accounting.reservation import (
    RESERVATION_LIFETIME,
    Reservation,
    ReservationId,
)
from hugetlb_quota.controller.census import Census
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.informer import Informer, ObjectKey
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.resources import PODS

#: A reservation, or a line that is none.
_Held = ReservationId | str


class Expiry:
    """Watches each reservation for its whole life, and proves that its pod will not come."""

    def __init__(
        self,
        connection: Connection,
        census: Census,
        pods: Informer[Pod],
        lifetime: timedelta = RESERVATION_LIFETIME,
    ) -> None:
        self._connection = connection
        self._census = census
        self._pods = pods
        self._lifetime = lifetime.total_seconds()
        self._first_seen: dict[_Held, float] = {}
        #: The resourceVersion of its pod that the recount knew of.
        self._counted: dict[_Held, int] = {}

    def note(self, counters: Iterable[Counter]) -> None:
        """Take in what all quotas hold now, at the same moment as the pods are counted."""
        now = time.monotonic()
        held: set[_Held] = set()
        self._counted = {}
        for counter in counters:
            held.update(each.id for each in counter.pending)
            held.update(counter.unreadable)
            self._counted.update((each.id, self._version(each)) for each in counter.reservations)
        self._first_seen = {each: self._first_seen.get(each, now) for each in held}

    async def gone(self, counter: Counter) -> frozenset[_Held]:
        """The reservations that may be dropped though no pod of theirs is counted.

        A live read proves each: the informer may lag behind a create that was slow.

        :raises ApiError: when the API can't be asked.
        """
        gone: set[_Held] = {
            each.id for each in counter.pending if self._census.was_released(each.uid)
        }
        for each in expired(counter, datetime.now(UTC)):
            if self._watched_for_life(each.id) and not await self._exists(each):
                gone.add(each.id)
        # Whatever these lines were written for is over when they have been there for so long.
        return frozenset(gone).union(filter(self._watched_for_life, counter.unreadable))

    def _watched_for_life(self, held: _Held) -> bool:
        """Whether this controller has seen it for as long as a reservation lives.

        As client-go watches a Lease: the clock of the one that wrote the time may be off.
        """
        now = time.monotonic()
        return now - self._first_seen.get(held, now) >= self._lifetime

    async def _exists(self, reservation: Reservation) -> bool:
        """Whether the pod is in the API and will yet be counted under this quota."""
        namespace, _, name = reservation.pod.partition("/")
        if not (namespace and name):
            return False  # no pod is called so
        try:
            raw = await self._connection.get(PODS, name, namespace)
        except errors.NotFound:
            return False
        metadata = raw.get("metadata") or {}
        same = metadata.get("uid") == reservation.uid
        # One that was counted as it is now was counted where it belongs, and that is not here.
        return same and not self._has_seen(reservation, int(metadata.get("resourceVersion") or 0))

    def _has_seen(self, reservation: Reservation, version: int) -> bool:
        """Whether the recount knew the pod at ``version``; the informer may by now know more."""
        return 0 < version <= self._counted.get(reservation.id, 0)

    def _version(self, reservation: Reservation) -> int:
        namespace, _, name = reservation.pod.partition("/")
        pod = self._pods.store.get(ObjectKey(namespace, name))
        return pod.resource_version if pod is not None and pod.uid == reservation.uid else 0
