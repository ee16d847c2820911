"""Decide a batch of requests, without I/O.

The algorithm is the kernel's ``page_counter_try_charge`` (mm/page_counter.c): a request is charged
on all quotas of its chain, or on none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from hugetlb_quota.accounting.charge import NOTHING
from hugetlb_quota.accounting.counter import Counter, Shortfall, Tab
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject


class NoRoom(Exception):
    """One quota or more have no room for a request.

    ``files``: the largest retained files, by quota. ``silent``: by quota, a sentence about the
    charges that wait for a node's report; "" if there are none.
    """

    def __init__(
        self,
        shortfalls: tuple[Shortfall, ...],
        files: Mapping[QuotaKey, Sequence[RetainedFile]],
        silent: Mapping[QuotaKey, str],
    ) -> None:
        super().__init__(shortfalls)
        self.shortfalls = shortfalls
        self.files = files
        self.silent = silent

    @classmethod
    def of(cls, shortfalls: Iterable[Shortfall], chain: Collection[QuotaObject]) -> Self:
        """The error of a request that does not fit on ``chain``."""
        return cls(
            tuple(shortfalls),
            {quota.key: quota.retained_files for quota in chain},
            {quota.key: quota.silence for quota in chain},
        )


class TooManyReservations(Exception):
    """The object of a quota has no room for another line; ``counter`` is the quota's."""

    def __init__(self, counter: Counter) -> None:
        super().__init__(str(counter.quota))
        self.counter = counter


class ChainChanged(Exception):
    """A quota is no longer as it was when the request's chain was found: find the chain again."""


@dataclass(eq=False, slots=True)
class ChargeRequest:
    """A request to hold ``reservation`` on all quotas of ``chain``.

    ``chain``: the quotas as they were when the chain was found, each before its ancestors.
    ``done``: gets the highest resourceVersion of the writes, or an error. ``errors``: why the
    request is refused. ``held_on``: the quotas that may hold the reservation. ``version``: the
    highest resourceVersion so far of a quota that holds the reservation.
    """

    chain: tuple[QuotaObject, ...]
    reservation: Reservation
    done: asyncio.Future[int]
    errors: list[Exception] = field(default_factory=list)
    held_on: set[QuotaKey] = field(default_factory=set)
    version: int = 0

    @property
    def namespace(self) -> str:
        """The namespace of the pod, or of the quota that moves."""
        return self.reservation.pod.partition("/")[0]

    @property
    def is_open(self) -> bool:
        """Whether the request is neither refused nor cancelled."""
        return not self.errors and not self.done.done()

    def in_chain(self, key: QuotaKey) -> QuotaObject:
        """The quota ``key`` as it was when the chain was found."""
        return next(quota for quota in self.chain if quota.key == key)


@dataclass(slots=True)
class Level:
    """One quota, and what a batch adds to its counter.

    ``quota``: the version to write over. ``tab``: its counter with the added reservations.
    ``requests``: the requests that the write is for.
    """

    quota: QuotaObject
    tab: Tab
    requests: list[ChargeRequest]


def decide(
    batch: Iterable[ChargeRequest],
    cached: Callable[[QuotaKey], QuotaObject | InvalidQuota | None],
) -> list[Level]:
    """Decide the requests in order; each request finds the reservations of earlier requests.

    A request that does not fit gets its error, and is on no level.

    :param cached: finds a quota in the cache.
    :returns: the levels to write.
    """
    tabs: dict[QuotaKey, tuple[QuotaObject, Tab]] = {}
    levels: dict[QuotaKey, Level] = {}
    for request in batch:
        for quota in request.chain:
            if quota.key not in tabs:
                newest = _newest(quota, cached(quota.key))
                tabs[quota.key] = newest, Tab(newest.counter)
        chain = [tabs[quota.key] for quota in request.chain]
        if error := _why_not(request, chain):
            request.errors.append(error)
            # An earlier attempt of the same request may have written; that is taken back too.
            request.held_on = {quota.key for quota, tab in chain if tab.holds(request.reservation)}
            continue
        for quota, tab in chain:
            request.held_on.add(quota.key)
            if not tab.holds(request.reservation):
                tab.put(request.reservation)
            levels.setdefault(quota.key, Level(quota, tab, [])).requests.append(request)
    return list(levels.values())


def decide_again(quota: QuotaObject, requests: Iterable[ChargeRequest]) -> Level:
    """Decide one level again, after another program wrote the quota.

    A request that no longer fits gets its error, and is not on the level.
    """
    level = Level(quota, Tab(quota.counter), [])
    for request in requests:
        if not request.is_open:
            continue
        if error := _why_not(request, [(quota, level.tab)]):
            request.errors.append(error)
            continue
        if not level.tab.holds(request.reservation):
            level.tab.put(request.reservation)
        level.requests.append(request)
    return level


def merged_error(found: Sequence[Exception]) -> Exception:
    """The error to raise for a request: shortfalls of several levels make one NoRoom."""
    short = [error for error in found if isinstance(error, NoRoom)]
    if short and len(short) == len(found):
        return NoRoom(
            tuple(each for error in short for each in error.shortfalls),
            {key: files for error in short for key, files in error.files.items()},
            {key: silence for error in short for key, silence in error.silent.items()},
        )
    return next(error for error in found if not isinstance(error, NoRoom))


def _why_not(request: ChargeRequest, levels: Sequence[tuple[QuotaObject, Tab]]) -> Exception | None:
    """Why the request can't be charged on all of ``levels``; None if it can."""
    shortfalls: list[Shortfall] = []
    for quota, tab in levels:
        before = request.in_chain(quota.key)
        # Comparing the specs takes time, and a spec that did not change is the same object.
        same = quota.quota is before.quota or _charging_fields(quota) == _charging_fields(before)
        if not (same and quota.is_readable):
            return ChainChanged(str(quota.key))
        if not tab.holds(request.reservation):
            shortfalls += tab.shortfalls(request.reservation)
    if shortfalls:
        return NoRoom.of(shortfalls, [quota for quota, _ in levels])
    for quota, tab in levels:
        if not tab.holds(request.reservation) and not tab.can_hold(request.reservation):
            return TooManyReservations(quota.counter)
    return None


def _newest(quota: QuotaObject, cached: QuotaObject | InvalidQuota | None) -> QuotaObject:
    """The later of two versions; resourceVersions of one kind are ordered (KEP-5504)."""
    if not isinstance(cached, QuotaObject):
        return quota
    later = int(cached.resource_version) > int(quota.resource_version)
    return cached if later else quota


def _charging_fields(quota: QuotaObject) -> tuple[str, Quota]:
    """The fields that decide which pods and quotas are charged to ``quota``.

    The limit is not among them, because each charge compares with the newest limit; nor are the
    fields that the programs write themselves.
    """
    return quota.uid, replace(quota.quota, hard=NOTHING, generation=0, attached_to=None)
