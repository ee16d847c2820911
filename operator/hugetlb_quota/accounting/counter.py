"""The counter of one quota, and what happens when a pod is charged to a chain of them.

The algorithm is the kernel's ``page_counter_try_charge`` (mm/page_counter.c), the
counters are fields of API objects: charge each from the leaf to the root, and take back
what was charged when one refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import (
    LARGEST_RESERVATIONS,
    Reservation,
    ReservationId,
)
from hugetlb_quota.page_size import PageSize


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
    size that is not named is not limited. ``unreadable``: lines among the reservations that
    are none; nobody knows what they hold, so nothing is admitted while there are any.
    """

    quota: QuotaKey
    hard: Charge
    pods: Charge = NOTHING
    retained: Charge = NOTHING
    reservations: tuple[Reservation, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def reserved(self) -> Charge:
        """What the reservations hold; of two of the same pod the larger, for it comes once."""
        return Charge.total(reserved_by_pod(self.reservations).values())

    @property
    def used(self) -> Charge:
        """All that is charged, with every limited size named."""
        return (self.pods + self.retained + self.reserved).named(self.hard)

    def shortfalls(self, demand: Charge, uid: str = "") -> tuple[Shortfall, ...]:
        """Where ``demand`` does not fit, smallest size first; none when it fits.

        :param uid: the pod's, so that what is reserved for it already is not asked for twice.
        """
        others = tuple(each for each in self.reservations if each.uid != uid)
        reserved = Charge.total(reserved_by_pod(others).values())
        used = self.pods + self.retained + reserved
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
        """With ``reservation`` held; one of the same request is replaced, never doubled."""
        return replace(self, reservations=(*self.release(reservation.id).reservations, reservation))

    def release(self, held: ReservationId) -> Counter:
        """Without the reservation ``held``."""
        kept = tuple(each for each in self.reservations if each.id != held)
        return replace(self, reservations=kept)

    def holds(self, held: ReservationId) -> bool:
        """Whether the reservation ``held`` is there."""
        return any(reservation.id == held for reservation in self.reservations)

    def can_hold(self, reservation: Reservation) -> bool:
        """Whether one object can hold ``reservation`` beside all that are there."""
        length = sum(len(each.line) + 3 for each in self.reservations)  # quotes and a comma
        return length + len(reservation.line) + 3 <= LARGEST_RESERVATIONS


def reserved_by_pod(reservations: Iterable[Reservation]) -> Mapping[str, Charge]:
    """What is reserved by the UID it is for: a pod is charged to a quota once at most."""
    held: dict[str, Charge] = {}
    for each in reservations:
        known = held.get(each.uid)
        held[each.uid] = each.charge if known is None else known.peak(each.charge)
    return held


def shortfalls(counters: Iterable[Counter], demand: Charge, uid: str = "") -> tuple[Shortfall, ...]:
    """Every reason why ``demand`` does not fit, in the order of ``counters``."""
    return tuple(each for counter in counters for each in counter.shortfalls(demand, uid))
