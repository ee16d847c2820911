"""``explain``: which quotas govern a pod, which would refuse it, and what would make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter, Shortfall, shortfalls
from hugetlb_quota.accounting.demand import MalformedDemand, demand
from hugetlb_quota.accounting.forest import Detached, QuotaKey
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.page_size import PageSize
from hugetlb_quota.plugin.manifest import Candidate
from hugetlb_quota.plugin.table import (
    BOLD,
    GREEN,
    RED,
    Cell,
    Content,
    Screen,
    amounts,
    count,
    listed,
    number,
    room,
    table,
)
from hugetlb_quota.plugin.world import Holder, World
from hugetlb_quota.quantity import render

#: How many pods and files are named as what could make room.
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Remedy:
    """How one quota that refuses could have room: a higher limit, or ``short`` bytes freed.

    ``raised``: the limit that is enough, in bytes. ``above``: ancestors whose limit is below
    that. ``holders``: what could go.
    """

    quota: QuotaKey
    size: PageSize
    raised: int
    short: int
    above: tuple[str, ...] = ()
    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the quotas say of a pod, and the API server if it was asked.

    ``accepted``: by its dry run; None when that told nothing, and ``words`` then says why.
    ``broken``: what keeps the quotas from admitting anything at all, a sentence each.
    ``hidden``: quotas above that may refuse too, and that may not be seen.
    ``fitting``: how many such pods fit as far as the quotas go; None: without limit.
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
    words: str = ""

    @property
    def refused(self) -> bool:
        """Whether it would be: by the dry run where that told, else by the quotas."""
        if self.accepted is not None:
            return not self.accepted
        return bool(self.short or self.broken)


def evaluate(world: World, candidate: Candidate, namespace: str) -> Explanation:
    """What the quotas say of ``candidate`` in ``namespace``."""
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
        remedies=_remedies(world, short),
        hidden=_hidden(world, chain),
    )


def tried(found: Explanation, accepted: bool | None, words: str) -> Explanation:
    """The same after a dry run.

    :param accepted: by the API server; None when it told nothing, ``words`` then say why.
    """
    return replace(found, accepted=accepted, words=words)


def document(found: Explanation) -> dict[str, Any]:
    """The explanation as plain data."""
    return {
        "origin": found.candidate.origin,
        "namespace": found.namespace,
        "asks": found.asks.to_resources(),
        "replicas": found.candidate.replicas,
        "fitting": found.fitting,
        "refused": found.refused,
        "decidedBy": "quotas" if found.accepted is None else "dry run",
        "message": found.words,
        "hidden": list(found.hidden),
        "broken": list(found.broken),
        "quotas": [
            {
                "quota": str(quota.key),
                "pageSize": size.resource,
                "hard": render(quota.counter.hard[size]),
                "used": render(quota.counter.used.of(size)),
                "short": render(_short(found, quota, size)),
            }
            for quota, size in _limits(found)
        ],
        "fitsAt": {size.resource: render(room) for size, room in _least(found).items()},
        "remedies": [
            {
                "quota": str(each.quota),
                "pageSize": each.size.resource,
                "raiseTo": render(each.raised),
                "raiseFirst": list(each.above),
                "free": render(each.short),
                "holders": [{"kind": held.kind, "pod": held.pod} for held in each.holders],
            }
            for each in found.remedies
        ],
    }


def picture(found: Explanation, screen: Screen) -> str:
    """The explanation for a terminal."""
    parts = [_heading(found)]
    if found.asks and found.chain:
        rows: list[list[Content]] = []
        for quota, size in _limits(found):
            counter = quota.counter
            hard, used = counter.hard[size], counter.used.of(size)
            short = _short(found, quota, size)
            verdict = f"{render(short)} is missing" if short else "fits"
            rows.append(
                [
                    str(quota.key),
                    str(size),
                    number(render(used)),
                    number(render(hard)),
                    number(room(hard - used)),
                    Cell(verdict, (RED if short else GREEN,)),
                ]
            )
        parts.append(table(["QUOTA", "SIZE", "USED", "HARD", "ROOM", "THIS POD"], rows, screen))
    if found.asks or found.broken:
        parts.append(_verdict(found, screen))
    if found.remedies:
        parts.append(_advice(found))
    return "\n\n".join(parts)


def _heading(found: Explanation) -> str:
    who = f"{found.candidate.origin} in namespace {found.namespace}"
    replicas = found.candidate.replicas
    if found.candidate.origin.startswith("Pod "):
        asks = "asks for"
    elif replicas is None:
        asks = "asks on each of its nodes for"
    else:
        asks = f"asks for each of its {count(replicas, 'pod')} for"
    if not found.asks:
        return f"{who} asks for no huge pages, so no quota is asked."
    told = f"{who} {asks} {amounts(found.asks.to_resources())}."
    if not found.chain and not found.broken:
        told += " No quota governs it, so none limits it."
    if found.candidate.stored:
        told += " It is admitted; whether another like it would be:"
    return told


def _verdict(found: Explanation, screen: Screen) -> str:
    if found.accepted is None:
        reason = f" (no dry run: {found.words})" if found.words else ""
        by = f"by the quotas as they stand{reason}"
    else:
        by = "by a dry run of the API server"
    if found.accepted is None and found.hidden:
        by += f", and of {listed(found.hidden)} and what is above, nothing may be seen"
    if not found.refused:
        fits = screen.paint("It would be admitted", GREEN, BOLD)
        return f"{fits}, {by}.{_how_many(found)}"
    refused = screen.paint("It would be refused", RED, BOLD)
    why = "" if found.accepted is None else f"\n{found.words}"
    broken = "".join(f"\n{each}" for each in found.broken if each not in found.words)
    return f"{refused}, {by}.{_how_many(found)}{why}{broken}"


def _how_many(found: Explanation) -> str:
    if found.fitting is None or not found.asks or found.broken:
        return ""
    replicas = found.candidate.replicas
    fitting = count(found.fitting, "such pod") if found.fitting else "none"
    few = replicas is not None and 0 < found.fitting < replicas
    return f" There is room for {fitting}{f', not for {replicas}' if few else ''}."


def _advice(found: Explanation) -> str:
    least = {size: room for size, room in _least(found).items() if room}
    less = " and ".join(f"{render(room)} of {size.resource}" for size, room in least.items())
    heading = "make room in each quota that refuses:"
    if len(least) == len(_least(found)):
        heading = f"ask for {less} or less, or {heading}"
    return "\n".join(
        [f"To make it fit, {heading}", *(f"- {_in_words(each)}" for each in found.remedies)]
    )


def _least(found: Explanation) -> dict[PageSize, int]:
    """What the pod might ask for of each size that is short, in bytes: whole pages."""
    rooms: dict[PageSize, int] = {}
    for each in found.short:
        room = max(0, each.hard - each.used) // each.size.bytes * each.size.bytes
        rooms[each.size] = min(room, rooms.get(each.size, room))
    return rooms


def _limits(found: Explanation) -> list[tuple[QuotaObject, PageSize]]:
    """The quotas that limit what the pod asks for, size by size, the leaf first."""
    return [
        (quota, size)
        for size, amount in found.asks.items()
        for quota in found.chain
        if amount and size in quota.counter.hard
    ]


def _short(found: Explanation, quota: QuotaObject, size: PageSize) -> int:
    return next(
        (each.short for each in found.short if (each.quota, each.size) == (quota.key, size)), 0
    )


def _broken(chain: Sequence[QuotaObject]) -> list[str]:
    found = []
    for quota in chain:
        if quota.invalid:
            found.append(f"HugeTLBQuota {quota.key} is invalid: {quota.invalid} Correct its spec.")
        elif quota.quota.terminating:
            found.append(f"HugeTLBQuota {quota.key} is being deleted and takes no more pods.")
        elif not quota.is_counted:
            found.append(
                f"HugeTLBQuota {quota.key} is not counted yet; if it stays so, see whether the"
                " controller runs: kubectl hugetlb check."
            )
    return found


def _hidden(world: World, chain: Sequence[QuotaObject]) -> tuple[str, ...]:
    """The parents that the forest leaves out because they may not be seen."""
    return tuple(
        str(quota.quota.parent)
        for quota in chain
        if quota.quota.parent is not None
        and quota.quota.parent not in world.quotas
        and world.forest[quota.key].parent is None
    )


def _fitting(counters: Sequence[Counter], asks: Charge) -> int | None:
    """How many pods that ask for ``asks`` have room; None when nothing limits them."""
    fits = [
        max(0, counter.hard[size] - counter.used.of(size)) // amount
        for counter in counters
        for size, amount in asks.items()
        if amount and size in counter.hard
    ]
    return min(fits) if fits else None


def _remedies(world: World, short: Sequence[Shortfall]) -> tuple[Remedy, ...]:
    return tuple(
        Remedy(
            quota=each.quota,
            size=each.size,
            raised=-(-(each.hard + each.short) // each.size.bytes) * each.size.bytes,
            short=each.short,
            above=_above(world, each),
            holders=_holders(world, each),
        )
        for each in short
    )


def _holders(world: World, short: Shortfall) -> tuple[Holder, ...]:
    """What could go, most first; a reservation goes by itself."""
    found = [
        each
        for each in world.charged_to(short.quota)
        if each.kind != "reserved" and each.holds.of(short.size)
    ]
    return tuple(sorted(found, key=lambda each: -each.holds.of(short.size)))


def _in_words(remedy: Remedy) -> str:
    size, parts = remedy.size, []
    retained = [
        f"{each.files[0].path if each.files else 'files'} on {each.node}"
        f" ({render(each.holds.of(size))} by {each.pod})"
        for each in remedy.holders
        if each.kind == "retained"
    ]
    pods = [
        f"{each.pod} ({render(each.holds.of(size))})"
        for each in remedy.holders
        if each.kind == "pod"
    ]
    if retained:
        parts.append(f"remove {listed(retained, _NAMED)}")
    if pods:
        parts.append(f"stop {listed(pods, _NAMED)}")
    above = f" (and first that of {listed(remedy.above)})" if remedy.above else ""
    free = f"free {render(remedy.short)}" + (f": {', or '.join(parts)}" if parts else "")
    return (
        f"{remedy.quota}: raise its limit of {size.resource} to {render(remedy.raised)}{above},"
        f" or {free}"
    )


def _above(world: World, short: Shortfall) -> tuple[str, ...]:
    """The ancestors that keep the limit from being raised so far."""
    return tuple(
        str(link.key)
        for link in world.forest.attached(short.quota)[1:]
        if short.size in link.hard and link.hard[short.size] < short.hard + short.short
    )
