"""The recount: from the pods that are seen to what every quota's counter must say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import datetime

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.reservation import Reservation, ReservationId
from hugetlb_quota.page_size import PageSize


@dataclass(frozen=True, slots=True)
class ChargedPod:
    """A pod that is counted: ``quotas`` govern it directly.

    ``version``: the resourceVersion at which it was seen; 1 where only its node has seen it.
    """

    uid: str
    charge: Charge
    quotas: frozenset[QuotaKey]
    version: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Retained:
    """What pods left in shared files that are gone or moved; ``quotas`` are charged directly."""

    charge: Charge
    quotas: frozenset[QuotaKey]


@dataclass(frozen=True, slots=True)
class RetainedFile:
    """A shared file in which a pod that is gone or moved left pages.

    ``charged``: bytes of ``size``. ``quotas``: charged directly.
    """

    node: str
    path: str
    pod: str
    size: PageSize
    charged: int
    quotas: frozenset[QuotaKey]


@dataclass(frozen=True, slots=True)
class Unreported:
    """A pod that ended on ``node``, and that its agent has not told of; it is charged still.

    ``pod`` is its ``namespace/name``. ``quotas`` govern it directly. ``cgroup``: the UID in
    the name of its cgroup.
    """

    uid: str
    pod: str
    node: str
    charge: Charge
    quotas: frozenset[QuotaKey]
    cgroup: str


@dataclass(frozen=True, slots=True)
class Tally:
    """What is charged to one quota for pods, and what is retained.

    ``seen``: at which resourceVersion, by UID, of these pods; and at which generation of the
    quotas below, whose pods are counted here too.
    ``files``: the largest that hold what is retained, largest first.
    """

    pods: Charge = NOTHING
    seen: Mapping[str, int] = field(default_factory=dict)
    retained: Charge = NOTHING
    files: tuple[RetainedFile, ...] = ()


#: How many files a quota tells of: enough to know where to look.
FILES_TOLD = 5


#: How many unreported pods a quota tells of: some 300 bytes each in an object that every
#: admission writes. Those beyond are charged all the same, and told when there is room.
UNREPORTED_TOLD = 256


def tally(
    forest: Forest,
    pods: Iterable[ChargedPod],
    retained: Iterable[Retained] = (),
    files: Iterable[RetainedFile] = (),
) -> Mapping[QuotaKey, Tally]:
    """The tally of every quota of ``forest``, descendants included.

    What is under two quotas with a common ancestor is charged to that ancestor once. A
    quota whose chain is broken charges the part of it that holds.
    """
    above = {
        quota.key: frozenset(link.key for link in forest.attached(quota.key)) for quota in forest
    }
    charges: dict[QuotaKey, list[Charge]] = {quota.key: [] for quota in forest}
    left: dict[QuotaKey, list[Charge]] = {quota.key: [] for quota in forest}
    seen: dict[QuotaKey, dict[str, int]] = {quota.key: {} for quota in forest}
    for quota in forest:
        for link in above[quota.key] - {quota.key}:
            seen[link][quota.uid] = quota.generation

    def union(keys: Iterable[QuotaKey]) -> frozenset[QuotaKey]:
        return frozenset[QuotaKey]().union(*(above.get(key, frozenset()) for key in keys))

    for pod in pods:
        for key in union(pod.quotas):
            if pod.uid not in seen[key]:
                seen[key][pod.uid] = pod.version
                charges[key].append(pod.charge)
    for each in retained:
        for key in union(each.quotas):
            left[key].append(each.charge)
    held_in: dict[QuotaKey, list[RetainedFile]] = {quota.key: [] for quota in forest}
    for file in files:
        for key in union(file.quotas):
            held_in[key].append(file)
    return {
        key: Tally(
            pods=Charge.total(charges[key]),
            seen=seen[key],
            retained=Charge.total(left[key]),
            files=tuple(
                sorted(held_in[key], key=lambda file: (-file.charged, file.node, file.path))
            )[:FILES_TOLD],
        )
        for key in charges
    }


def expired(counter: Counter, now: datetime) -> tuple[Reservation, ...]:
    """The reservations for which no create can be under way any more."""
    return tuple(each for each in counter.reservations if each.expires <= now)


def recount(counter: Counter, counted: Tally, gone: Set[ReservationId | str]) -> Counter:
    """``counter`` as it must be written now.

    A reservation is dropped in the very write that counts its pod under ``pods`` (or the
    pods of its quota, when it was made for one that moved here), if the pod was seen after
    the reservation was made; or when its pod is proved ``gone``: seen and released since, or
    expired and not in the API. One whose pod was not seen stays: there is no moment at which
    a pod is counted nowhere. Lines that can't be read go when they are among the ``gone``.
    """
    kept = tuple(
        each
        for each in counter.reservations
        if counted.seen.get(each.uid, 0) <= each.since and each.id not in gone
    )
    return replace(
        counter,
        pods=counted.pods,
        retained=counted.retained,
        reservations=kept,
        unreadable=tuple(line for line in counter.unreadable if line not in gone),
    )


def tell_unreported(
    told: Iterable[Unreported], unreported: Iterable[Unreported], room: int = UNREPORTED_TOLD
) -> tuple[Unreported, ...]:
    """What a quota tells of ``unreported``: those that are ``told`` already come first.

    A pod that is told stays so until it is not unreported any more, and no write is needed
    for one that waits for room.
    """
    waiting = {each.uid: each for each in unreported}
    kept = [waiting.pop(each.uid) for each in told if each.uid in waiting]
    return tuple((*kept, *waiting.values())[:room])


def merge_unreported(
    told: Mapping[QuotaKey, Iterable[Unreported]],
) -> Mapping[str, Unreported]:
    """The unreported pods by UID, of what each quota tells: one under two quotas is in both.

    Each names all its quotas, so that one of the two tells enough when a write was cut off.
    """
    merged: dict[str, Unreported] = {}
    for key, pods in told.items():
        for pod in pods:
            known = merged.get(pod.uid, pod)
            merged[pod.uid] = replace(known, quotas=known.quotas | pod.quotas | {key})
    return merged
