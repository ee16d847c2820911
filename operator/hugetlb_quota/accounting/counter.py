"""The counter of one quota, to which admission charges pods.

The algorithm is the kernel's ``page_counter_try_charge`` (mm/page_counter.c), and the counters
are fields of API objects: charge each quota from the leaf to the root; if one quota refuses,
uncharge the quotas below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
    """A page size for which a quota refuses a demand; all amounts in bytes."""

    quota: QuotaKey
    size: PageSize
    requested: int
    pods: int
    retained: int
    reserved: int
    hard: int

    @property
    def used(self) -> int:
        """The bytes that are already charged."""
        return self.pods + self.retained + self.reserved

    @property
    def short(self) -> int:
        """The bytes that the quota lacks for the request."""
        return self.used + self.requested - self.hard


@dataclass(frozen=True, slots=True)
class Counter:
    """The charges of one quota, with those of all quotas below.

    ``hard``: the limits; a size that ``hard`` does not name has no limit. ``pods``: the charges
    of pods that the controller has seen. ``retained``: the charges that gone pods left in shared
    files. ``reservations``: the reservations of admitted pods that are not counted yet, and the
    identities of pods that are. ``unreadable``: lines that are not reservations. While there
    are any, admission admits nothing, because nobody knows what these lines reserve.
    """

    quota: QuotaKey
    hard: Charge
    pods: Charge = NOTHING
    retained: Charge = NOTHING
    reservations: tuple[Reservation, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def pending(self) -> tuple[Reservation, ...]:
        """The reservations without the identities: those that count as reserved."""
        return tuple(each for each in self.reservations if not each.counted)

    @property
    def reserved(self) -> Charge:
        """The sum of the reservations, with the maximum of those that are for the same pod."""
        return Charge.total(reserved_by_pod(self.reservations).values())

    @property
    def used(self) -> Charge:
        """All charges; names every size that has a limit."""
        return (self.pods + self.retained + self.reserved).named(self.hard)

    def shortfalls(self, demand: Charge, uid: str = "") -> tuple[Shortfall, ...]:
        """The sizes for which ``demand`` does not fit, smallest first; empty if all of it fits.

        :param uid: the pod's UID; the reservations of this pod do not count.
        """
        others = tuple(each for each in self.reservations if each.uid != uid)
        return _shortfalls(self, Charge.total(reserved_by_pod(others).values()).of, demand)

    def charge(self, reservation: Reservation) -> Counter:
        """A copy with ``reservation``, which replaces one with the same ID."""
        return replace(self, reservations=(*self.release(reservation.id).reservations, reservation))

    def release(self, held: ReservationId) -> Counter:
        """A copy without the reservation ``held``."""
        kept = tuple(each for each in self.reservations if each.id != held)
        return replace(self, reservations=kept)

    def holds(self, held: ReservationId) -> bool:
        """Whether the counter has the reservation ``held``."""
        return any(reservation.id == held for reservation in self.reservations)

    def can_hold(self, reservation: Reservation) -> bool:
        """Whether the quota object has room for one more line, ``reservation``."""
        length = sum(len(each.line) + 3 for each in self.reservations)  # quotes and a comma
        return length + len(reservation.line) + 3 <= LARGEST_RESERVATIONS


class Tab:
    """A counter to which a group commit adds several reservations before one write.

    The tab keeps running sums. To add up a thousand reservations for each pod of a group would
    take longer than the write.
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
        """The counter with the added reservations; the same object if there are none."""
        if not self._added:
            return self._before
        return replace(self._before, reservations=(*self._before.reservations, *self._added))

    def holds(self, reservation: Reservation) -> bool:
        """Whether the tab has a reservation with the same ID: an earlier try of the request."""
        return reservation.id in self._ids

    def shortfalls(self, reservation: Reservation) -> tuple[Shortfall, ...]:
        """The sizes for which ``reservation`` does not fit, as :meth:`Counter.shortfalls`."""
        held = self._by_pod.get(reservation.uid, NOTHING)

        def reserved(size: PageSize) -> int:
            return self._reserved.of(size) - held.of(size)

        return _shortfalls(self._before, reserved, reservation.charge)

    def can_hold(self, reservation: Reservation) -> bool:
        """Whether the quota object has room for one more line, ``reservation``."""
        return self._length + len(reservation.line) + 3 <= LARGEST_RESERVATIONS

    def put(self, reservation: Reservation) -> None:
        """Add ``reservation``."""
        held = self._by_pod.get(reservation.uid, NOTHING)
        larger = held.peak(reservation.charge)
        self._by_pod[reservation.uid] = larger
        self._reserved += larger.beyond(held)
        self._ids.add(reservation.id)
        self._length += len(reservation.line) + 3
        self._added.append(reservation)


def reserved_by_pod(reservations: Iterable[Reservation]) -> Mapping[str, Charge]:
    """The reserved charge of each pod, by UID: the maximum of the pod's reservations.

    An identity reserves nothing, because its pod is already counted.
    """
    held: dict[str, Charge] = {}
    for each in reservations:
        if each.counted:
            continue
        previous = held.get(each.uid)
        held[each.uid] = each.charge if previous is None else previous.peak(each.charge)
    return held


def _shortfalls(
    counter: Counter, reserved: Callable[[PageSize], int], demand: Charge
) -> tuple[Shortfall, ...]:
    """The sizes for which ``demand`` does not fit, smallest first.

    :param reserved: the reserved bytes of a size that count beside ``demand``.
    """
    return tuple(
        Shortfall(
            quota=counter.quota,
            size=size,
            requested=requested,
            pods=counter.pods.of(size),
            retained=counter.retained.of(size),
            reserved=reserved(size),
            hard=counter.hard[size],
        )
        for size, requested in demand.items()
        if size in counter.hard
        and requested
        and counter.pods.of(size) + counter.retained.of(size) + reserved(size) + requested
        > counter.hard[size]
    )


def shortfalls(counters: Iterable[Counter], demand: Charge, uid: str = "") -> tuple[Shortfall, ...]:
    """Every shortfall of ``demand``, in the order of ``counters``."""
    return tuple(each for counter in counters for each in counter.shortfalls(demand, uid))
