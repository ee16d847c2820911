"""``explain``: which quotas govern a pod, which would refuse it, and what would make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter, Shortfall, shortfalls
from hugetlb_quota.accounting.demand import MalformedDemand, demand
from hugetlb_quota.accounting.forest import Detached
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
class Explanation:
    """What the quotas say of a pod, and the API server if it was asked.

    ``accepted``: by its dry run; None when that told nothing, and ``words`` then says why.
    ``broken``: what keeps the quotas from admitting anything at all, a sentence each.
    ``fitting``: how many such pods fit as far as the quotas go; None: without limit.
    """

    candidate: Candidate
    namespace: str
    asks: Charge
    chain: tuple[QuotaObject, ...] = ()
    short: tuple[Shortfall, ...] = ()
    broken: tuple[str, ...] = ()
    fitting: int | None = None
    remedies: tuple[str, ...] = ()
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
    found = Explanation(
        candidate=candidate,
        namespace=namespace,
        asks=asks,
        chain=chain,
        short=short,
        broken=(*detached, *_broken(chain)),
        fitting=_fitting(counters, asks),
    )
    return _with_remedies(found, world)


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
        "remedies": list(found.remedies),
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
    parts.append(_verdict(found, screen))
    if found.remedies:
        parts.append("\n".join(["To make it fit:", *(f"- {each}" for each in found.remedies)]))
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
        return f"{told} No quota governs it, so none limits it."
    return told


def _verdict(found: Explanation, screen: Screen) -> str:
    if found.accepted is None:
        reason = f" (no dry run: {found.words})" if found.words else ""
        by = f"by the quotas as they stand{reason}"
    else:
        by = "by a dry run of the API server"
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
    return f" There is room for {count(found.fitting, 'such pod')}."


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


def _fitting(counters: Sequence[Counter], asks: Charge) -> int | None:
    """How many pods that ask for ``asks`` have room; None when nothing limits them."""
    fits = [
        max(0, counter.hard[size] - counter.used.of(size)) // amount
        for counter in counters
        for size, amount in asks.items()
        if amount and size in counter.hard
    ]
    return min(fits) if fits else None


def _with_remedies(found: Explanation, world: World) -> Explanation:
    remedies: list[str] = []
    for size in dict.fromkeys(each.size for each in found.short):
        short = [each for each in found.short if each.size == size]
        least = min(max(0, each.hard - each.used) for each in short)
        if least >= size.bytes:
            whole = least // size.bytes * size.bytes
            remedies.append(f"ask for {render(whole)} of {size.resource} or less;")
        for each in short:
            raised = -(-(each.hard + each.short) // size.bytes) * size.bytes
            remedies.append(
                f"or raise the limit of {each.quota} to {render(raised)} of {size.resource}"
                f"{_above(world, each, raised)};"
            )
        remedies.extend(_to_free(world, each) for each in short)
    if remedies:
        remedies[0] = remedies[0].removeprefix("or ")
        remedies[-1] = remedies[-1].rstrip(";") + "."
    return replace(found, remedies=tuple(remedies))


def _above(world: World, short: Shortfall, raised: int) -> str:
    """Which ancestors keep the limit from being raised so far."""
    below = [
        str(link.key)
        for link in world.forest.attached(short.quota)[1:]
        if short.size in link.hard and link.hard[short.size] < raised
    ]
    return f" (and first those of {listed(below)} as far)" if below else ""


def _to_free(world: World, short: Shortfall) -> str:
    holders = [each for each in world.charged_to(short.quota) if each.holds.of(short.size)]
    holders.sort(key=lambda each: -each.holds.of(short.size))
    retained = [
        f"{each.files[0].path if each.files else 'files'} on {each.node}"
        f" ({render(each.holds.of(short.size))} by {each.pod})"
        for each in holders
        if each.kind == "retained"
    ]
    pods = [_held(each, short.size) for each in holders if each.kind == "pod"]
    told = f"or free {render(short.short)} of {short.size.resource} below {short.quota}"
    if retained:
        told += f": remove {listed(retained, _NAMED)}"
    if pods:
        told += f"{', or' if retained else ':'} stop {listed(pods, _NAMED)}"
    return f"{told};"


def _held(holder: Holder, size: PageSize) -> str:
    return f"{holder.pod} ({render(holder.holds.of(size))})"
