"""The findings of ``check``, and how ``check`` shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from hugetlb_quota.plugin.problem import Exit
from hugetlb_quota.plugin.table import GREEN, RED, YELLOW, Screen
from hugetlb_quota.plural import number_of

#: The number of names that a finding lists before "and N more".
MOST_NAMES: Final = 5


class Level(IntEnum):
    """How bad a finding is."""

    OK = 0
    #: Not checked, because a right is missing.
    UNSEEN = 1
    WARNING = 2
    ERROR = 3


_EXITS: Final = {
    Level.OK: Exit.DONE,
    Level.UNSEEN: Exit.FORBIDDEN,
    Level.WARNING: Exit.WARNING,
    Level.ERROR: Exit.REFUSED,
}
_COLOURS: Final = {
    Level.OK: GREEN,
    Level.UNSEEN: YELLOW,
    Level.WARNING: YELLOW,
    Level.ERROR: RED,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: ``topic`` is a word, ``message`` and ``remedy`` are sentences."""

    level: Level
    topic: str
    message: str
    remedy: str = ""


def unseen(topic: str, what: str) -> Finding:
    """The finding that ``what`` could not be checked."""
    return Finding(Level.UNSEEN, topic, f"Not checked: {what}.")


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level of the findings."""
    return max((finding.level for finding in findings), default=Level.OK)


def exit_code(findings: Iterable[Finding]) -> Exit:
    """The exit code of ``check``: the worst finding decides."""
    return _EXITS[worst(findings)]


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as plain data."""
    return {
        "worst": worst(findings).name,
        "findings": [
            {
                "level": finding.level.name,
                "topic": finding.topic,
                "message": finding.message,
                "remedy": finding.remedy or None,
            }
            for finding in findings
        ],
    }


def picture(findings: Sequence[Finding], screen: Screen) -> str:
    """The findings for a terminal: one line each with the remedy below, then the sums."""
    width = max(len(finding.topic) for finding in findings)
    arrow = "->" if screen.plain else "→"
    lines = []
    for finding in findings:
        level = screen.paint(f"{finding.level.name:<7}", _COLOURS[finding.level])
        lines.append(f"{level}  {finding.topic:<{width}}  {finding.message}")
        if finding.remedy:
            lines.append(f"{' ' * (width + 11)}{arrow} {finding.remedy}")
    return "\n".join([*lines, "", _sums(findings)])


def _sums(findings: Sequence[Finding]) -> str:
    sums = [
        number_of(number, word)
        for level, word in ((Level.ERROR, "error"), (Level.WARNING, "warning"))
        if (number := sum(finding.level == level for finding in findings))
    ]
    advice = ""
    if not_checked := sum(finding.level == Level.UNSEEN for finding in findings):
        sums.append(f"{not_checked} not checked")
        advice = " Let an administrator, who may read everything, run this command."
    return f"{', '.join(sums) or 'All is well'}.{advice}"
