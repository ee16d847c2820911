"""The conditions of a quota. True means that all is well; each condition has a sentence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Detached, Forest, Quota
from hugetlb_quota.accounting.recount import IDENTITIES_KEPT
from hugetlb_quota.accounting.reservation import SOMEWHERE, UNBOUND
from hugetlb_quota.api.model import Condition, transition_time
from hugetlb_quota.api.quota import NODES_REPORTING
from hugetlb_quota.controller.counting.count import Held
from hugetlb_quota.controller.counting.nodes import OUT_OF_SERVICE

READY: Final = "Ready"
WITHIN_LIMITS: Final = "WithinLimits"

#: The largest number of names in a sentence; the sentence gives the number of the others.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """A condition without times; ``good``: whether it is True, ``reason``: one word."""

    type: str
    good: bool
    reason: str
    message: str


def findings(
    quota: Quota,
    *,
    counter: Counter,
    forest: Forest,
    held: Collection[Held] = (),
    silent: Collection[str] = (),
    leaving_out: Collection[str] = (),
) -> tuple[Finding, ...]:
    """All findings about ``quota``.

    :param counter: the quota's counter as it will be written.
    :param forest: all quotas.
    :param held: the ended pods that are still charged to the quota.
    :param silent: the nodes without a report for a long time.
    :param leaving_out: the nodes with reports that leave out pods.
    """
    return (
        _ready(quota, forest),
        _within_limits(counter),
        _nodes_reporting(
            held, frozenset(silent), frozenset(leaving_out) - frozenset(silent), counter
        ),
    )


def conditions(
    found: Iterable[Finding], before: Iterable[Condition], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The findings as conditions; the transition time changes only with the status."""
    earlier = {condition.type: condition for condition in before}
    return tuple(
        _condition(finding, earlier.get(finding.type), generation, now) for finding in found
    )


def turned(before: Iterable[Condition], after: Iterable[Condition]) -> tuple[Condition, ...]:
    """The conditions with a changed status or reason, and the new ones that are not True."""
    earlier = {condition.type: (condition.status, condition.reason) for condition in before}
    return tuple(
        condition
        for condition in after
        if earlier.get(condition.type, ("True", condition.reason))
        != (condition.status, condition.reason)
    )


def _condition(
    finding: Finding, before: Condition | None, generation: int, now: datetime
) -> Condition:
    status: Literal["True", "False"] = "True" if finding.good else "False"
    return Condition(
        type=finding.type,
        status=status,
        reason=finding.reason,
        message=finding.message,
        last_transition_time=transition_time(
            status,
            now.replace(microsecond=0),
            before=None if before is None else before.status,
            changed_at=None if before is None else before.last_transition_time,
        ),
        observed_generation=generation,
    )


def _ready(quota: Quota, forest: Forest) -> Finding:
    if quota.terminating:
        return Finding(
            READY,
            False,
            "Terminating",
            f"HugeTLBQuota {quota.key} is being deleted and admits no pods. The quota stays until"
            " nothing is charged to it.",
        )
    try:
        chain = forest.chain(quota.key)
    except Detached as broken:
        parent = forest.parent(quota)
        stays = (
            f" The charge of {quota.key} stays charged to {parent.key} too."
            if parent is not None and broken.quota == quota.key and parent.key == quota.attached_to
            else ""
        )
        sentence = f"{broken} Until then its pods are refused.{stays}"
        return Finding(READY, False, broken.reason, sentence)
    terminating = next((link for link in chain if link.terminating), None)
    if terminating is not None:
        return Finding(
            READY,
            False,
            "Terminating",
            f"HugeTLBQuota {terminating.key}, above {quota.key}, is being deleted, so no pods are"
            f" admitted under {quota.key}. Change spec.parentRef.",
        )
    path = " -> ".join(str(link.key) for link in chain)
    if len(chain) == 1:
        return Finding(READY, True, "Root", f"HugeTLBQuota {quota.key} is a root.")
    unreachable = _unreachable_limit(chain)
    if unreachable is not None:
        return Finding(READY, True, "LimitAboveParent", unreachable)
    return Finding(READY, True, "Attached", f"Each pod is charged on the whole chain {path}.")


def _unreachable_limit(chain: tuple[Quota, ...]) -> str | None:
    """A sentence about a limit of the first quota that is above a limit of an ancestor."""
    quota = chain[0]
    for size, limit in quota.hard.items():
        for ancestor in chain[1:]:
            if size in ancestor.hard and ancestor.hard[size] < limit:
                return (
                    f"The limit of {quantity.render(limit)} of {size.resource} can't be reached:"
                    f" HugeTLBQuota {ancestor.key} above has the limit"
                    f" {quantity.render(ancestor.hard[size])}."
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
        return Finding(WITHIN_LIMITS, True, "Fits", "All charges are within the limits.")
    sentence = "; ".join(over)
    return Finding(
        WITHIN_LIMITS,
        False,
        "OverLimit",
        f"In HugeTLBQuota {counter.quota}, {sentence}. Nothing more is admitted until pods end or"
        " the limit is raised.",
    )


def _unnamed(counter: Counter, leaving_out: Collection[str]) -> Iterator[Finding]:
    """A finding if the quota remembers as many unreported pods as it can.

    Pods without a node do not count: no agent can report them yet.

    :param leaving_out: the nodes with reports that come, but leave out pods.
    """
    words = [each.counted for each in counter.reservations if each.counted not in ("", UNBOUND)]
    if len(words) < IDENTITIES_KEPT:
        return
    nodes = {word for word in words if word != SOMEWHERE}
    full = sorted(nodes & frozenset(leaving_out))
    others = sorted(nodes - frozenset(leaving_out))
    report = f" Make sure that the agents report{f' on {_some(others)}' if others else ''}."
    advice = ("" if full and not others else report) + (f" {_make_room(full)}" if full else "")
    yield Finding(
        NODES_REPORTING,
        False,
        "TooManyUnreported",
        f"status.reservations remembers {len(words)} pods that no node has reported, and has no"
        " room for more. If the pod of a reservation may have run unseen, the reservation stays"
        f" charged. The oldest running pods are not remembered.{advice}",
    )


def _make_room(nodes: list[str]) -> str:
    return (
        f"There is no room for all pods in the report of {_some(nodes)}. Remove files that gone"
        " pods left there; the condition ReportComplete of the HugeTLBNode says more."
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _nodes_reporting(
    held: Collection[Held], silent: frozenset[str], leaving_out: frozenset[str], counter: Counter
) -> Finding:
    problems = [
        *_for_silence([each for each in held if each.nodes & silent], silent),
        *_for_room([each for each in held if each.nodes & leaving_out], leaving_out),
        *_unnamed(counter, leaving_out),
    ]
    if not problems:
        return Finding(NODES_REPORTING, True, "Reporting", "No charge waits for a node's report.")
    return replace(problems[0], message=" ".join(each.message for each in problems))


def _for_silence(held: list[Held], silent: frozenset[str]) -> Iterator[Finding]:
    if held:
        yield Finding(
            NODES_REPORTING,
            False,
            "AgentSilent",
            f"{_amount(held)} stays charged, because the agent does not report on"
            f" {_some(_nodes(held, silent))}. Start the agent there. If the node is gone, delete"
            f" its Node; if the node is off, taint it with {OUT_OF_SERVICE}. Then the charge ends.",
        )


def _for_room(held: list[Held], leaving_out: frozenset[str]) -> Iterator[Finding]:
    if held:
        yield Finding(
            NODES_REPORTING,
            False,
            "ReportTooLarge",
            f"{_amount(held)} stays charged. {_make_room(_nodes(held, leaving_out))}",
        )


def _nodes(held: Iterable[Held], among: frozenset[str]) -> list[str]:
    return sorted(frozenset[str]().union(*(each.nodes for each in held)) & among)


def _amount(held: Collection[Held]) -> str:
    amount = ", ".join(
        f"{quantity.render(amount)} of {size.resource}"
        for size, amount in Charge.total(each.pod.charge for each in held).items()
    )
    return f"{amount} of {'an ended pod' if len(held) == 1 else f'{len(held)} ended pods'}"
