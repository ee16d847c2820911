"""How a quota stands, as conditions: each True when all is well, each with a sentence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Detached, Forest, Quota
from hugetlb_quota.accounting.recount import IDENTITIES_KEPT
from hugetlb_quota.accounting.reservation import SOMEWHERE, UNBOUND
from hugetlb_quota.api.model import Condition
from hugetlb_quota.api.quota import NODES_REPORTING
from hugetlb_quota.controller.count import Held
from hugetlb_quota.controller.nodes import OUT_OF_SERVICE

READY: Final = "Ready"
WITHIN_LIMITS: Final = "WithinLimits"

#: Names listed in a sentence before it says how many more there are.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One aspect of a quota: ``good`` or not, why in one word, and the sentence."""

    type: str
    good: bool
    reason: str
    message: str


def findings(
    quota: Quota,
    counter: Counter,
    forest: Forest,
    held: Collection[Held],
    silent: Collection[str],
    cut: Collection[str] = (),
) -> tuple[Finding, ...]:
    """Every finding about ``quota``.

    :param counter: as it is about to be written.
    :param held: the ended pods that are still charged to it.
    :param silent: the nodes whose agents have not reported for long; ``cut``: those whose reports
        have no room for all pods.
    """
    return (
        _ready(quota, forest),
        _within_limits(counter),
        _nodes_reporting(held, frozenset(silent), frozenset(cut) - frozenset(silent), counter),
    )


def conditions(
    found: Iterable[Finding], before: Iterable[Condition], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The findings as conditions; each keeps its transition time while its status does."""
    known = {condition.type: condition for condition in before}
    return tuple(
        Condition(
            type=finding.type,
            status="True" if finding.good else "False",
            reason=finding.reason,
            message=finding.message,
            last_transition_time=_since(finding, known.get(finding.type), now),
            observed_generation=generation,
        )
        for finding in found
    )


def turned(before: Iterable[Condition], after: Iterable[Condition]) -> tuple[Condition, ...]:
    """The conditions of ``after`` that are new as bad ones, or changed their reason or status."""
    known = {condition.type: (condition.status, condition.reason) for condition in before}
    return tuple(
        condition
        for condition in after
        if known.get(condition.type, ("True", condition.reason))
        != (condition.status, condition.reason)
    )


def _since(finding: Finding, before: Condition | None, now: datetime) -> datetime:
    if before is not None and (before.status == "True") == finding.good:
        return before.last_transition_time
    return now.replace(microsecond=0)


def _ready(quota: Quota, forest: Forest) -> Finding:
    if quota.terminating:
        return Finding(
            READY,
            False,
            "Terminating",
            f"HugeTLBQuota {quota.key} is being deleted and admits no pods; it goes when nothing"
            " is charged to it any more.",
        )
    try:
        chain = forest.chain(quota.key)
    except Detached as broken:
        held = forest.parent(quota)
        stays = (
            f" What is charged to it stays charged to {held.key}."
            if held is not None and broken.quota == quota.key and held.key == quota.attached_to
            else ""
        )
        sentence = f"{broken} Until then its pods are refused.{stays}"
        return Finding(READY, False, broken.reason, sentence)
    going = next((link for link in chain if link.terminating), None)
    if going is not None:
        return Finding(
            READY,
            False,
            "Terminating",
            f"HugeTLBQuota {going.key}, above {quota.key}, is being deleted, and no pods are"
            " admitted below it; change spec.parentRef.",
        )
    path = " -> ".join(str(link.key) for link in chain)
    if len(chain) == 1:
        return Finding(READY, True, "Root", f"HugeTLBQuota {quota.key} is a root.")
    above = _above_an_ancestor(chain)
    if above is not None:
        return Finding(READY, True, "LimitAboveParent", above)
    return Finding(READY, True, "Attached", f"Charges go up the chain {path}.")


def _above_an_ancestor(chain: tuple[Quota, ...]) -> str | None:
    quota = chain[0]
    for size, limit in quota.hard.items():
        for ancestor in chain[1:]:
            if size in ancestor.hard and ancestor.hard[size] < limit:
                return (
                    f"The limit of {size.resource} is {quantity.render(limit)}, above the"
                    f" {quantity.render(ancestor.hard[size])} of {ancestor.key}, which holds first."
                )
    return None


def _within_limits(counter: Counter) -> Finding:
    over = [
        f"{quantity.render(used)} of {size.resource} is charged and the limit is"
        f" {quantity.render(counter.hard[size])}"
        for size, used in counter.used.items()
        if size in counter.hard and used > counter.hard[size]
    ]
    if not over:
        return Finding(WITHIN_LIMITS, True, "Fits", "Everything charged fits the limits.")
    sentence = "; ".join(over)
    return Finding(
        WITHIN_LIMITS,
        False,
        "OverLimit",
        f"In HugeTLBQuota {counter.quota}, {sentence}. Nothing more is admitted until pods end or"
        " the limit is raised.",
    )


def _unnamed(counter: Counter, cut: Collection[str]) -> Iterator[Finding]:
    """What is to be said of pods that no report names, where they are too many to remember more.

    Those that wait for a node are none of them.

    :param cut: nodes whose agents report, and have no room for all pods.
    """
    words = [each.counted for each in counter.reservations if each.counted not in ("", UNBOUND)]
    if len(words) < IDENTITIES_KEPT:
        return
    nodes = {word for word in words if word != SOMEWHERE}
    full, others = sorted(nodes & frozenset(cut)), sorted(nodes - frozenset(cut))
    see = f" See that the agents report{f' on {_some(others)}' if others else ''}."
    advice = ("" if full and not others else see) + (f" {_make_room(full)}" if full else "")
    yield Finding(
        NODES_REPORTING,
        False,
        "TooManyUnreported",
        f"{len(words)} pods that no node has reported are remembered in status.reservations, and"
        " there is room for no more: a reservation whose pod may have run unseen stays charged, and"
        f" of the pods that run the oldest are not remembered.{advice}",
    )


def _make_room(nodes: list[str]) -> str:
    return (
        f"A report has no room for all pods on {_some(nodes)}: remove files that gone pods left"
        " there, as ReportComplete of the HugeTLBNode tells."
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _nodes_reporting(
    held: Collection[Held], silent: frozenset[str], cut: frozenset[str], counter: Counter
) -> Finding:
    problems = [
        *_for_silence([each for each in held if each.nodes & silent], silent),
        *_for_room([each for each in held if each.nodes & cut], cut),
        *_unnamed(counter, cut),
    ]
    if not problems:
        return Finding(
            NODES_REPORTING, True, "Reporting", "No charge is held for want of a node's report."
        )
    return replace(problems[0], message=" ".join(each.message for each in problems))


def _for_silence(held: list[Held], silent: frozenset[str]) -> Iterator[Finding]:
    if held:
        yield Finding(
            NODES_REPORTING,
            False,
            "AgentSilent",
            f"{_amount(held)} stays charged, because the agent does not report on"
            f" {_some(_nodes(held, silent))}. Start the agent there; if the node is gone, delete"
            f" its Node object; if it is off, taint it {OUT_OF_SERVICE}. The charge goes then.",
        )


def _for_room(held: list[Held], cut: frozenset[str]) -> Iterator[Finding]:
    if held:
        yield Finding(
            NODES_REPORTING,
            False,
            "ReportTooLarge",
            f"{_amount(held)} stays charged. {_make_room(_nodes(held, cut))}",
        )


def _nodes(held: Iterable[Held], among: frozenset[str]) -> list[str]:
    return sorted(frozenset[str]().union(*(each.nodes for each in held)) & among)


def _amount(held: Collection[Held]) -> str:
    amount = ", ".join(
        f"{quantity.render(amount)} of {size.resource}"
        for size, amount in Charge.total(each.pod.charge for each in held).items()
    )
    return f"{amount} of {'an ended pod' if len(held) == 1 else f'{len(held)} ended pods'}"
