"""Findings: the worst of them, the exit code, and how they are shown."""

from __future__ import annotations

import pytest

from hugetlb_quota.plugin.findings import (
    Finding,
    Level,
    document,
    exit_code,
    picture,
    unseen,
    worst,
)
from hugetlb_quota.plugin.problem import Exit
from hugetlb_quota.plugin.table import Screen

GOOD = Finding(Level.OK, "nodes", "Fresh reports.")
WARNING = Finding(Level.WARNING, "CRDs", "Old.", "Upgrade.")
ERROR = Finding(Level.ERROR, "leader", "None.", "See the log.")
UNSEEN = unseen("nodes", "whether a node has no report")


@pytest.mark.parametrize(
    ("findings", "level", "code"),
    [
        ([], Level.OK, Exit.DONE),
        ([GOOD], Level.OK, Exit.DONE),
        ([GOOD, UNSEEN], Level.UNSEEN, Exit.FORBIDDEN),
        ([WARNING, UNSEEN], Level.WARNING, Exit.WARNING),
        ([WARNING, ERROR, UNSEEN], Level.ERROR, Exit.REFUSED),
    ],
)
def test_the_worst_finding_decides_the_exit_code(
    findings: list[Finding], level: Level, code: Exit
) -> None:
    assert (worst(findings), exit_code(findings)) == (level, code)


def test_a_remedy_stands_below_its_finding_and_the_sums_at_the_end() -> None:
    assert (
        picture([GOOD, WARNING, ERROR, ERROR], Screen())
        == """\
OK       nodes   Fresh reports.
WARNING  CRDs    Old.
                 → Upgrade.
ERROR    leader  None.
                 → See the log.
ERROR    leader  None.
                 → See the log.

2 errors, 1 warning."""
    )


def test_what_was_not_checked_needs_an_administrator() -> None:
    *_, last = picture([UNSEEN], Screen()).splitlines()
    assert last == "1 not checked. Let an administrator, who may read everything, run this command."


def test_a_plain_screen_gets_ascii_and_a_colour_screen_colours() -> None:
    assert picture([WARNING], Screen(plain=True)).isascii()
    assert "\x1b[" not in picture([WARNING], Screen())
    assert "\x1b[" in picture([WARNING], Screen(colour=True))


def test_the_data_has_the_worst_level_and_no_empty_remedy() -> None:
    data = document([GOOD, WARNING])
    assert data["worst"] == "WARNING"
    assert [each["remedy"] for each in data["findings"]] == [None, "Upgrade."]
    assert data["findings"][0] == {
        "level": "OK",
        "topic": "nodes",
        "message": "Fresh reports.",
        "remedy": None,
    }
