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

    ``version``: the resourceVersion at which it was seen; 1 where only its node has seen it; 0
    where a node tells of it, and it may be another's: then its reservations stay.
    """

    uid: str
    charge: Charge
    quotas: frozenset[QuotaKey]
    version: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Retained:
    """What the pod ``uid``, which is gone, is charged still on ``node``.

    ``quotas`` are charged directly.
    """

    uid: str
    charge: Charge
    quotas: frozenset[QuotaKey]
    node: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RetainedFile:
    """A shared file in which a pod that is gone left pages.

    ``charged``: bytes of ``size``. ``quotas``: charged directly. ``uid``: the pod's.
    """

    node: str
    path: str
    pod: str
    size: PageSize
    charged: int
    quotas: frozenset[QuotaKey]
    uid: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """A pod whose line is to stay on ``quotas``, without its charge.

    ``counted``: the word that says so, as in :class:`Reservation`. ``in_api``: the pod is there.
    """

    counted: str
    quotas: frozenset[QuotaKey]
    in_api: bool


@dataclass(frozen=True, slots=True)
class Identities:
    """The pods of which the quotas must keep who they are, by UID.

    ``settled``: the pods that have lines and need none any more.
    """

    kept: Mapping[str, Identity] = field(default_factory=dict)
    settled: Set[str] = frozenset()

    def spare(self, line: Reservation) -> bool:
        """Whether the pod of ``line`` is in the API, which knows it too."""
        kept = self.kept.get(line.uid)
        return kept is not None and kept.in_api


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


#: How many identities a quota keeps: each makes every admission's write longer. Those of pods
#: in the API go when there are more. Those of pods that are charged stay. A reservation that would
#: become another one, of a pod that is neither, stays what it is, and charged: nothing is
#: forgotten, and the quota fills.
IDENTITIES_KEPT = 256


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
            files=tuple(sorted(held_in[key], key=largest_first))[:FILES_TOLD],
        )
        for key in charges
    }


def largest_first(file: RetainedFile) -> tuple[int, str, str]:
    """By what files are sorted that people are told of."""
    return -file.charged, file.node, file.path


def expired(counter: Counter, now: datetime) -> tuple[Reservation, ...]:
    """The reservations for which no create can be under way any more."""
    return tuple(each for each in counter.pending if each.expires <= now)


def recount(
    counter: Counter,
    counted: Tally,
    gone: Set[ReservationId | str],
    identities: Identities = Identities(),
) -> Counter:
    """``counter`` as it must be written now.

    A reservation ends in the very write that counts its pod under ``pods`` (or the pods of
    its quota, when it was made for one that moved here), if the pod was seen after the
    reservation was made; or when its pod is proved ``gone``: seen and released since, or
    expired and not in the API. One whose pod was not seen stays: there is no moment at which
    a pod is counted nowhere. Where it ends, its pod's identity stays as long as it is kept.
    Lines that can't be read go when they are among the ``gone``.
    """

    def is_alone(line: Reservation) -> bool:
        return line.uid not in counted.seen and not identities.spare(line)

    lines: list[Reservation] = []
    named: dict[str, int] = {}
    alone = sum(1 for each in counter.reservations if each.counted and is_alone(each))
    for each in counter.reservations:
        stays = _stays(each, counter, counted, gone, identities)
        if stays is None:
            continue
        if stays.counted and not each.counted and is_alone(stays):
            if alone >= IDENTITIES_KEPT:
                lines.append(each)
                continue
            alone += 1
        if stays.counted:
            if stays.uid in named:
                lines[named[stays.uid]] = stays
                continue
            named[stays.uid] = len(lines)
        lines.append(stays)
    return replace(
        counter,
        pods=counted.pods,
        retained=counted.retained,
        reservations=_bounded(lines, identities),
        unreadable=tuple(line for line in counter.unreadable if line not in gone),
    )


def _stays(
    line: Reservation,
    counter: Counter,
    counted: Tally,
    gone: Set[ReservationId | str],
    identities: Identities,
) -> Reservation | None:
    """What is to stand in the place of ``line``; None for nothing."""
    if not line.counted and counted.seen.get(line.uid, 0) <= line.since and line.id not in gone:
        return line
    kept = identities.kept.get(line.uid)
    if kept is not None and counter.quota in kept.quotas:
        return line.as_identity(kept.counted)
    # Of an identity that the count knew nothing of, the next one decides.
    unknown = kept is None and line.uid not in identities.settled
    return line if line.counted and unknown else None


def _bounded(lines: list[Reservation], identities: Identities) -> tuple[Reservation, ...]:
    """``lines`` without the identities that are too many: the oldest of pods in the API."""
    excess = sum(1 for each in lines if each.counted) - IDENTITIES_KEPT
    if excess <= 0:
        return tuple(lines)
    spare = [each for each in lines if each.counted and identities.spare(each)]
    dropped = {each.uid for each in spare[:excess]}
    return tuple(each for each in lines if not (each.counted and each.uid in dropped))
