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
    pods that are gone. ``reservations``: admitted, not yet seen, and the identities of pods
    that are counted already. ``hard``: the limits; a size that is not named is not limited.
    ``unreadable``: lines among the reservations that are none; nobody knows what they hold, so
    nothing is admitted while there are any.
    """

    quota: QuotaKey
    hard: Charge
    pods: Charge = NOTHING
    retained: Charge = NOTHING
    reservations: tuple[Reservation, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def pending(self) -> tuple[Reservation, ...]:
        """The reservations whose charge counts here: all but the identities."""
        return tuple(each for each in self.reservations if not each.counted)

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


class Tab:
    """A counter that several reservations are put on before it is written.

    Each is decided with all before it, without adding everything up again: a batch on a
    quota of a thousand reservations would take longer than its write.
    """

    def __init__(self, counter: Counter) -> None:
        self._before = counter
        self._by_pod = dict(reserved_by_pod(counter.reservations))
        self._reserved = Charge.total(self._by_pod.values())
        self._ids = {each.id for each in counter.reservations}
        self._length = sum(len(each.line) + 3 for each in counter.reservations)
        self._added: list[Reservation] = []

    @property
    def counter(self) -> Counter:
        """The counter with all that was put on it; the very same when there was nothing."""
        if not self._added:
            return self._before
        return replace(self._before, reservations=(*self._before.reservations, *self._added))

    def holds(self, reservation: Reservation) -> bool:
        """Whether it is held already, by an earlier attempt of the same request."""
        return reservation.id in self._ids

    def shortfalls(self, reservation: Reservation) -> tuple[Shortfall, ...]:
        """Where it does not fit, as :meth:`Counter.shortfalls`."""
        counter = self._before
        held = self._by_pod.get(reservation.uid, NOTHING)
        return tuple(
            Shortfall(
                quota=counter.quota,
                size=size,
                requested=requested,
                pods=counter.pods.of(size),
                retained=counter.retained.of(size),
                reserved=self._reserved.of(size) - held.of(size),
                hard=counter.hard[size],
            )
            for size, requested in reservation.charge.items()
            if size in counter.hard
            and requested
            and counter.pods.of(size)
            + counter.retained.of(size)
            + self._reserved.of(size)
            - held.of(size)
            + requested
            > counter.hard[size]
        )

    def can_hold(self, reservation: Reservation) -> bool:
        """Whether one object can hold it beside all that are there."""
        return self._length + len(reservation.line) + 3 <= LARGEST_RESERVATIONS

    def put(self, reservation: Reservation) -> None:
        """Put it on."""
        held = self._by_pod.get(reservation.uid, NOTHING)
        larger = held.peak(reservation.charge)
        self._by_pod[reservation.uid] = larger
        self._reserved += larger.beyond(held)
        self._ids.add(reservation.id)
        self._length += len(reservation.line) + 3
        self._added.append(reservation)


def reserved_by_pod(reservations: Iterable[Reservation]) -> Mapping[str, Charge]:
    """What is reserved by the UID it is for: a pod is charged to a quota once at most.

    An identity reserves nothing: its pod is counted already.
    """
    held: dict[str, Charge] = {}
    for each in reservations:
        if each.counted:
            continue
        known = held.get(each.uid)
        held[each.uid] = each.charge if known is None else known.peak(each.charge)
    return held


def shortfalls(counters: Iterable[Counter], demand: Charge, uid: str = "") -> tuple[Shortfall, ...]:
    """Every reason why ``demand`` does not fit, in the order of ``counters``."""
    return tuple(each for counter in counters for each in counter.shortfalls(demand, uid))
