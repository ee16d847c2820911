"""The files and functions that architecture.md, walks.md and CONTRIBUTING.md name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CODE = ROOT / "operator" / "hugetlb_quota"
#: A path of this tree, or one below the code's folder or below node/reader.
PATH = re.compile(r"`((?:\.\./|[\w.-]+/)+[\w.-]+\.(?:py|c|h|md|yaml|json|pml))`(?:\s+`(\w+)`)?")
PAGES = ("CONTRIBUTING.md", "docs/architecture.md", "docs/walks.md")


def places(page: str) -> list[tuple[str, str]]:
    """Each path that ``page`` names, with the function behind it, or ""."""
    return sorted(set(PATH.findall((ROOT / page).read_text())))


def file_of(path: str) -> Path | None:
    """The file that ``path`` names; None if there is no such file."""
    bases = (ROOT, CODE, CODE / "node" / "reader", CODE / "controller" / "certificates")
    return next((base / path for base in bases if (base / path).is_file()), None)


@pytest.mark.parametrize("page", PAGES)
def test_each_place_exists(page: str) -> None:
    found = places(page)
    assert len(found) > 25
    assert [path for path, _ in found if file_of(path) is None] == []


@pytest.mark.parametrize("page", PAGES)
def test_each_function_is_in_its_file(page: str) -> None:
    missing = []
    for path, name in places(page):
        file = file_of(path)
        if name and file is not None:
            defined = rf"\b(?:def|class|struct) {name}\b|^{name}\b.*=|^static .*\b{name}\("
            if not re.search(defined, file.read_text(), re.MULTILINE):
                missing.append((path, name))
    assert missing == []
