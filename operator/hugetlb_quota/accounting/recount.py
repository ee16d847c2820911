"""The recount: the new counter of every quota, computed from the observed pods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.reservation import Reservation, ReservationId
from hugetlb_quota.page_size import PageSize


@dataclass(frozen=True, slots=True)
class ChargedPod:
    """A counted pod.

    ``quotas``: the quotas that are charged directly. ``version``: the resourceVersion of the
    observed pod; 1 if only the pod's node has seen the pod; 0 if the node's report may mean
    another pod with the same UID. Version 0 ends no reservation.
    """

    uid: str
    charge: Charge
    quotas: frozenset[QuotaKey]
    version: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Retained:
    """The charge that the gone pod ``uid`` still has on ``node``.

    ``quotas``: the quotas that are charged directly.
    """

    uid: str
    charge: Charge
    quotas: frozenset[QuotaKey]
    node: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RetainedFile:
    """A shared file in which a gone pod left pages.

    ``charged``: bytes of ``size``. ``quotas``: the quotas that are charged directly. ``uid``:
    the pod's UID.
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
    """A pod with a line that stays on ``quotas`` as an identity, without the pod's charge.

    ``counted``: as in :class:`Reservation`. ``in_api``: whether the pod is in the API.
    """

    counted: str
    quotas: frozenset[QuotaKey]
    in_api: bool


@dataclass(frozen=True, slots=True)
class Identities:
    """The pods with identities that the quotas keep, by UID.

    ``unneeded``: the UIDs of pods that have lines and no longer need them.
    """

    kept: Mapping[str, Identity] = field(default_factory=dict)
    unneeded: Set[str] = frozenset()

    def may_drop(self, line: Reservation) -> bool:
        """Whether the pod of ``line`` is in the API, so that the line may be dropped."""
        kept = self.kept.get(line.uid)
        return kept is not None and kept.in_api


@dataclass(frozen=True, slots=True)
class Tally:
    """The counted and the retained charges of one quota, with those of all quotas below.

    ``seen``: the resourceVersion of each counted pod and the generation of each quota below,
    by UID. ``files``: the largest files that hold the retained charge, largest first.
    """

    pods: Charge = NOTHING
    seen: Mapping[str, int] = field(default_factory=dict)
    retained: Charge = NOTHING
    files: tuple[RetainedFile, ...] = ()


#: The largest number of files in a quota's status.
FILES_SHOWN = 5


#: How many identities a quota keeps; each one makes every write of admission longer. Above this
#: number the identities of pods in the API are dropped. The identities of counted pods stay. A
#: reservation of a pod that is neither counted nor in the API stays a charged reservation
#: instead of becoming an identity: nothing is lost, and the quota fills.
IDENTITIES_KEPT = 256


def tally(
    forest: Forest,
    pods: Iterable[ChargedPod],
    retained: Iterable[Retained] = (),
    files: Iterable[RetainedFile] = (),
) -> Mapping[QuotaKey, Tally]:
    """The tally of every quota of ``forest``.

    A pod of two quotas with a common ancestor is charged to the ancestor once. The charges of a
    quota go up as far as :meth:`Forest.attached` says.
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
            files=tuple(sorted(held_in[key], key=largest_first))[:FILES_SHOWN],
        )
        for key in charges
    }


def largest_first(file: RetainedFile) -> tuple[int, str, str]:
    """The sort key that puts the file with the largest charge first."""
    return -file.charged, file.node, file.path


def recount(
    counter: Counter,
    counted: Tally,
    gone: Set[ReservationId | str],
    identities: Identities = Identities(),
) -> Counter:
    """The new ``counter`` to write.

    A reservation ends in the write that counts its pod under ``pods``, if the pod was seen after
    the reservation was made. (The reservation of a quota that moved here ends in the write that
    counts the quota's pods.) A reservation also ends if it is in ``gone``: the pod was seen and
    released since, or the reservation's life is over and the pod is not in the API. Any other
    reservation stays, so that each pod is counted at every moment. An ended reservation becomes
    an identity if ``identities`` keeps the pod. Unreadable lines in ``gone`` are dropped.
    """

    def is_alone(line: Reservation) -> bool:
        return line.uid not in counted.seen and not identities.may_drop(line)

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
    """The line that replaces ``line``; None to drop ``line``."""
    if not line.counted and counted.seen.get(line.uid, 0) <= line.since and line.id not in gone:
        return line
    kept = identities.kept.get(line.uid)
    if kept is not None and counter.quota in kept.quotas:
        return line.as_identity(kept.counted)
    # A line that came after the snapshot of this count stays until the next count.
    unknown = kept is None and line.uid not in identities.unneeded
    return line if line.counted and unknown else None


def _bounded(lines: list[Reservation], identities: Identities) -> tuple[Reservation, ...]:
    """``lines`` without the oldest identities of pods in the API above IDENTITIES_KEPT."""
    excess = sum(1 for each in lines if each.counted) - IDENTITIES_KEPT
    if excess <= 0:
        return tuple(lines)
    droppable = [each for each in lines if each.counted and identities.may_drop(each)]
    dropped = {each.uid for each in droppable[:excess]}
    return tuple(each for each in lines if not (each.counted and each.uid in dropped))
