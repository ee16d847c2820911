"""The counter of one quota, and what happens when a pod is charged to a chain of them.

The algorithm is the kernel's ``page_counter_try_charge`` (mm/page_counter.c), the
counters are fields of API objects: charge each from the leaf to the root, and take back
what was charged when one refuses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.page_size import PageSize

#: How long a create may be under way after admission: the API server's own limit on a
#: request (kube-apiserver --request-timeout).
RESERVATION_LIFETIME: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A charge admitted for a pod that is not yet counted.

    ``uid`` identifies the pod, ``pod`` is its ``namespace/name``. Until ``expires``
    the API request that creates the pod may still be under way.
    """

    uid: str
    pod: str
    charge: Charge
    expires: datetime


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a quota refuses: the page size and its numbers, all in bytes."""

    quota: QuotaKey
    size: PageSize
    requested: int
    pods: int
    retained: int
    reserved: int
    hard: int

    @property
    def used(self) -> int:
        """What is charged already."""
        return self.pods + self.retained + self.reserved

    @property
    def short(self) -> int:
        """How much the quota lacks for the request to fit."""
        return self.used + self.requested - self.hard


@dataclass(frozen=True, slots=True)
class Counter:
    """What is charged to one quota, descendants included.

    ``pods``: of pods that the controller has seen. ``retained``: left in shared files by
    pods that are gone. ``reservations``: admitted, not yet seen. ``hard``: the limits; a
    size that is not named is not limited.
    """

    quota: QuotaKey
    hard: Charge
    pods: Charge = NOTHING
    retained: Charge = NOTHING
    reservations: tuple[Reservation, ...] = ()

    @property
    def reserved(self) -> Charge:
        """The sum of the reservations."""
        return Charge.total(reservation.charge for reservation in self.reservations)

    @property
    def used(self) -> Charge:
        """All that is charged, with every limited size named."""
        return (self.pods + self.retained + self.reserved).named(self.hard)

    def shortfalls(self, demand: Charge) -> tuple[Shortfall, ...]:
        """Where ``demand`` does not fit, smallest size first; none when it fits."""
        used, reserved = self.used, self.reserved
        return tuple(
            Shortfall(
                quota=self.quota,
                size=size,
                requested=requested,
                pods=self.pods.of(size),
                retained=self.retained.of(size),
                reserved=reserved.of(size),
                hard=self.hard[size],
            )
            for size, requested in demand.items()
            if size in self.hard and requested and used.of(size) + requested > self.hard[size]
        )

    def charge(self, reservation: Reservation) -> Counter:
        """With ``reservation`` held; one of the same pod is replaced, never doubled."""
        return replace(
            self, reservations=(*self.release(reservation.uid).reservations, reservation)
        )

    def release(self, uid: str) -> Counter:
        """Without the reservation of the pod ``uid``."""
        kept = tuple(each for each in self.reservations if each.uid != uid)
        return replace(self, reservations=kept)

    def holds(self, uid: str) -> bool:
        """Whether a reservation of the pod ``uid`` is there."""
        return any(reservation.uid == uid for reservation in self.reservations)


def shortfalls(counters: Iterable[Counter], demand: Charge) -> tuple[Shortfall, ...]:
    """Every reason why ``demand`` does not fit, in the order of ``counters``."""
    return tuple(each for counter in counters for each in counter.shortfalls(demand))
