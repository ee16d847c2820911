"""``explain``: the quotas that govern a pod, which of them refuse it, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter, Shortfall, shortfalls
from hugetlb_quota.accounting.demand import MalformedDemand, demand
from hugetlb_quota.accounting.forest import Detached, QuotaKey
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.page_size import PageSize
from hugetlb_quota.plugin.manifest import Candidate
from hugetlb_quota.plugin.world import Holder, World


@dataclass(frozen=True, slots=True)
class Remedy:
    """How one quota that refuses could have room: a higher limit, or ``short`` bytes freed.

    ``raised``: the lowest limit that is enough, in bytes. ``above``: the ancestors that have a
    lower limit than that. ``holders``: the pods and files that could go, the largest first.
    """

    quota: QuotaKey
    size: PageSize
    raised: int
    short: int
    above: tuple[str, ...] = ()
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Whether the quotas admit a pod, and the result of a dry run if there was one.

    ``accepted``: the verdict of the dry run; None if there is none, and ``message`` says why.
    ``broken``: why the quotas admit no pod at all, a sentence for each reason.
    ``hidden``: quotas above that may refuse too, but that the user may not see.
    ``fitting``: the number of such pods that fit into the quotas; None is unlimited.
    """

    candidate: Candidate
    namespace: str
    asks: Charge
    chain: tuple[QuotaObject, ...] = ()
    short: tuple[Shortfall, ...] = ()
    broken: tuple[str, ...] = ()
    fitting: int | None = None
    remedies: tuple[Remedy, ...] = ()
    hidden: tuple[str, ...] = ()
    accepted: bool | None = None
    message: str = ""

    @property
    def refused(self) -> bool:
        """Whether the pod would be refused: by the dry run if it gave a verdict, else by quotas."""
        if self.accepted is not None:
            return not self.accepted
        return bool(self.short or self.broken)

    def largest_demand(self) -> dict[PageSize, int]:
        """For each page size that is short, the bytes that would fit: a multiple of the size."""
        rooms: dict[PageSize, int] = {}
        for each in self.short:
            room = max(0, each.hard - each.used) // each.size.bytes * each.size.bytes
            rooms[each.size] = min(room, rooms.get(each.size, room))
        return rooms

    def limits(self) -> list[tuple[QuotaObject, PageSize]]:
        """The quotas that limit what the pod asks for, by page size, the leaf first."""
        return [
            (quota, size)
            for size, amount in self.asks.items()
            for quota in self.chain
            if amount and size in quota.counter.hard
        ]

    def missing(self, quota: QuotaObject, size: PageSize) -> int:
        """The bytes that ``quota`` lacks for this pod; 0 if the pod fits."""
        return next(
            (each.short for each in self.short if (each.quota, each.size) == (quota.key, size)), 0
        )


def evaluate(world: World, candidate: Candidate, namespace: str) -> Explanation:
    """Explain whether the quotas would admit ``candidate`` in ``namespace``."""
    try:
        asks = demand(candidate.spec)
    except (MalformedDemand, TypeError, AttributeError) as error:
        return Explanation(candidate, namespace, NOTHING, broken=(str(error),))
    governing = world.forest.selecting(namespace, candidate.labels)
    detached: tuple[str, ...] = ()
    try:
        union = world.forest.union_of_chains(quota.key for quota in governing)
    except Detached as error:
        detached = (str(error),)
        chains = [world.forest.attached(quota.key) for quota in governing]
        union = tuple({link.key: link for chain in chains for link in chain}.values())
    if not asks:
        return Explanation(candidate, namespace, asks)
    chain = tuple(world.quotas[link.key] for link in union)
    counters = [quota.counter for quota in chain]
    short = shortfalls(counters, asks)
    return Explanation(
        candidate=candidate,
        namespace=namespace,
        asks=asks,
        chain=chain,
        short=short,
        broken=(*detached, *_broken(chain)),
        fitting=_fitting(counters, asks),
        remedies=tuple(_remedy(world, each) for each in short),
        hidden=_hidden(world, chain),
    )


def with_dry_run(explanation: Explanation, accepted: bool | None, message: str) -> Explanation:
    """The same explanation with the result of a dry run.

    :param accepted: the verdict; None if the dry run gave none. ``message`` then says why.
    """
    return replace(explanation, accepted=accepted, message=message)


def _broken(chain: Sequence[QuotaObject]) -> list[str]:
    reasons = []
    for quota in chain:
        if quota.invalid:
            reasons.append(
                f"HugeTLBQuota {quota.key} is invalid: {quota.invalid} Correct its spec."
            )
        elif quota.quota.terminating:
            reasons.append(f"HugeTLBQuota {quota.key} is being deleted and takes no more pods.")
        elif not quota.is_counted:
            reasons.append(
                f"HugeTLBQuota {quota.key} is not counted yet; if this does not change, check"
                " whether the controller runs: kubectl hugetlb check."
            )
    return reasons


def _hidden(world: World, chain: Sequence[QuotaObject]) -> tuple[str, ...]:
    """The parents that the forest lacks because the user may not see them."""
    return tuple(
        str(quota.quota.parent)
        for quota in chain
        if quota.quota.parent is not None
        and quota.quota.parent not in world.quotas
        and world.forest[quota.key].parent is None
    )


def _fitting(counters: Sequence[Counter], asks: Charge) -> int | None:
    """The number of pods with the demand ``asks`` that fit; None if no quota limits them."""
    fits = [
        max(0, counter.hard[size] - counter.used.of(size)) // amount
        for counter in counters
        for size, amount in asks.items()
        if amount and size in counter.hard
    ]
    return min(fits) if fits else None


def _remedy(world: World, short: Shortfall) -> Remedy:
    return Remedy(
        quota=short.quota,
        size=short.size,
        raised=-(-(short.hard + short.short) // short.size.bytes) * short.size.bytes,
        short=short.short,
        above=_above(world, short),
        holders=_holders(world, short),
    )


def _holders(world: World, short: Shortfall) -> tuple[Holder, ...]:
    """The pods and files that could go, the largest first. A reservation ends by itself."""
    holders = [
        holder
        for holder in world.charged_to(short.quota)
        if holder.kind != "reserved" and holder.holds.of(short.size)
    ]
    return tuple(sorted(holders, key=lambda holder: -holder.holds.of(short.size)))


def _above(world: World, short: Shortfall) -> tuple[str, ...]:
    """The ancestors that have a lower limit than the quota would need."""
    return tuple(
        str(link.key)
        for link in world.forest.attached(short.quota)[1:]
        if short.size in link.hard and link.hard[short.size] < short.hard + short.short
    )
