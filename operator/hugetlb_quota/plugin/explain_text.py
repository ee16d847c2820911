"""Shows the result of ``explain``, as text for a terminal or as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from hugetlb_quota.plugin.explain import Explanation, Remedy
from hugetlb_quota.plugin.table import (
    BOLD,
    GREEN,
    RED,
    Cell,
    Content,
    Screen,
    amounts,
    listed,
    number,
    room,
    table,
)
from hugetlb_quota.plural import number_of
from hugetlb_quota.quantity import render

#: The number of pods and of files that a remedy names.
_MOST_NAMES: Final = 3


def document(explanation: Explanation) -> dict[str, Any]:
    """The explanation as plain data."""
    largest = explanation.largest_demand()
    return {
        "origin": explanation.candidate.origin,
        "namespace": explanation.namespace,
        "asks": explanation.asks.to_resources(),
        "replicas": explanation.candidate.replicas,
        "fitting": explanation.fitting,
        "refused": explanation.refused,
        "decidedBy": "quotas" if explanation.accepted is None else "dry run",
        "message": explanation.message,
        "hidden": list(explanation.hidden),
        "broken": list(explanation.broken),
        "quotas": [
            {
                "quota": str(quota.key),
                "pageSize": size.resource,
                "hard": render(quota.counter.hard[size]),
                "used": render(quota.counter.used.of(size)),
                "short": render(explanation.missing(quota, size)),
            }
            for quota, size in explanation.limits()
        ],
        "fitsAt": {size.resource: render(amount) for size, amount in largest.items()},
        "remedies": [
            {
                "quota": str(remedy.quota),
                "pageSize": remedy.size.resource,
                "raiseTo": render(remedy.raised),
                "raiseFirst": list(remedy.above),
                "free": render(remedy.short),
                "holders": [{"kind": each.kind, "pod": each.pod} for each in remedy.holders],
            }
            for remedy in explanation.remedies
        ],
    }


def picture(explanation: Explanation, screen: Screen) -> str:
    """The explanation as text for a terminal."""
    parts = [_heading(explanation)]
    if explanation.asks and explanation.chain:
        parts.append(_quotas(explanation, screen))
    if explanation.asks or explanation.broken:
        parts.append(_verdict(explanation, screen))
    if explanation.remedies:
        parts.append(_advice(explanation))
    return "\n\n".join(parts)


def _heading(explanation: Explanation) -> str:
    pod = f"{explanation.candidate.origin} in namespace {explanation.namespace}"
    replicas = explanation.candidate.replicas
    if explanation.candidate.origin.startswith("Pod "):
        asks = "asks for"
    elif replicas is None:
        asks = "asks on each of its nodes for"
    elif replicas == 1:
        asks = "asks for its pod for"
    else:
        asks = f"asks for each of its {replicas} pods for"
    if not explanation.asks:
        return f"{pod} asks for no huge pages, so no quota limits it."
    heading = f"{pod} {asks} {amounts(explanation.asks.to_resources())}."
    if not explanation.chain and not explanation.broken:
        heading += " No quota governs it, so no quota limits it."
    if explanation.candidate.stored:
        heading += " It is admitted; whether another pod like it would be admitted:"
    return heading


def _quotas(explanation: Explanation, screen: Screen) -> str:
    rows: list[list[Content]] = []
    for quota, size in explanation.limits():
        hard, used = quota.counter.hard[size], quota.counter.used.of(size)
        missing = explanation.missing(quota, size)
        verdict = f"{render(missing)} is missing" if missing else "fits"
        rows.append(
            [
                str(quota.key),
                str(size),
                number(render(used)),
                number(render(hard)),
                number(room(hard - used)),
                Cell(verdict, (RED if missing else GREEN,)),
            ]
        )
    return table(["QUOTA", "SIZE", "USED", "HARD", "ROOM", "THIS POD"], rows, screen)


def _verdict(explanation: Explanation, screen: Screen) -> str:
    by = _decided_by(explanation)
    room_for = _room_for(explanation)
    if not explanation.refused:
        admitted = screen.paint("It would be admitted", GREEN, BOLD)
        return f"{admitted}, {by}.{room_for}"
    refused = screen.paint("It would be refused", RED, BOLD)
    why = "" if explanation.accepted is None else f"\n{explanation.message}"
    broken = "".join(
        f"\n{reason}" for reason in explanation.broken if reason not in explanation.message
    )
    return f"{refused}, {by}.{room_for}{why}{broken}"


def _decided_by(explanation: Explanation) -> str:
    if explanation.accepted is not None:
        return "by a dry run of the API server"
    reason = f" (no dry run: {explanation.message})" if explanation.message else ""
    by = f"by the current quotas{reason}"
    if explanation.hidden:
        by += f"; you may not see {listed(explanation.hidden)} and the quotas above"
    return by


def _room_for(explanation: Explanation) -> str:
    if explanation.fitting is None or not explanation.asks or explanation.broken:
        return ""
    replicas, fitting = explanation.candidate.replicas, explanation.fitting
    if not fitting:
        return " There is room for none."
    too_few = f", not for {replicas}" if replicas is not None and fitting < replicas else ""
    return f" There is room for {number_of(fitting, 'such pod')}{too_few}."


def _advice(explanation: Explanation) -> str:
    largest = explanation.largest_demand()
    advice = "make room in each quota that refuses:"
    if all(largest.values()):
        less = " and ".join(f"{render(room)} of {size.resource}" for size, room in largest.items())
        advice = f"ask for {less} or less, or {advice}"
    remedies = [f"- {_in_words(remedy)}" for remedy in explanation.remedies]
    return "\n".join([f"To make it fit, {advice}", *remedies])


def _in_words(remedy: Remedy) -> str:
    size = remedy.size
    files = [
        f"{holder.files[0].path if holder.files else 'files'} on {holder.node}"
        f" ({render(holder.holds.of(size))} by {holder.pod})"
        for holder in remedy.holders
        if holder.kind == "retained"
    ]
    pods = [
        f"{holder.pod} ({render(holder.holds.of(size))})"
        for holder in remedy.holders
        if holder.kind == "pod"
    ]
    ways = []
    if files:
        ways.append(f"remove {_some_of(files)}")
    if pods:
        ways.append(f"stop {_some_of(pods)}")
    above = f" (and first that of {listed(remedy.above)})" if remedy.above else ""
    how = f": {', or '.join(ways)}" if ways else ""
    return (
        f"{remedy.quota}: raise its limit of {size.resource} to {render(remedy.raised)}{above},"
        f" or free {render(remedy.short)}{how}"
    )


def _some_of(names: Sequence[str]) -> str:
    """The names; of several, not all need to go."""
    return f"{'one or more of: ' if len(names) > 1 else ''}{listed(names, _MOST_NAMES)}"
