"""docs/walks.md names files and functions that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CODE = ROOT / "operator" / "hugetlb_quota"
ROW = re.compile(r"^\| \d+ \| (?P<where>[^|]+) \|", re.MULTILINE)


def places() -> list[tuple[str, str]]:
    """Path and function (or "") of each place that a row names."""
    found = []
    for where in ROW.findall((ROOT / "docs" / "walks.md").read_text()):
        for place in where.split(", "):
            names = re.findall(r"`([^`]+)`", place)
            if names:
                found.append((names[0], names[1] if len(names) > 1 else ""))
    return found


@pytest.mark.parametrize(("path", "function"), places())
def test_a_place_exists(path: str, function: str) -> None:
    file = CODE / path
    assert file.exists(), f"docs/walks.md names {path}, which is not there"
    if function:
        defined = re.compile(rf"^ *(async )?def {function}\(|^class {function}\b", re.MULTILINE)
        assert defined.search(file.read_text()), f"docs/walks.md: {path} has no {function}"


def test_there_are_three_walks() -> None:
    assert len(places()) > 25
