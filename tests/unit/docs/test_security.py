"""Each line of docs/security.md names existing tests, or says that it is open."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)))


def functions_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_named_test_exists() -> None:
    assert len(NAMED) > 30
    missing = [
        f"{path}::{name}"
        for path, name in NAMED
        if not (ROOT / path).exists() or name not in functions_in(path)
    ]
    assert missing == []


def test_every_line_names_a_test_or_says_that_it_is_open() -> None:
    rows = [line for line in TEXT.splitlines() if re.match(r"\| (?!tries|gets|---)", line)]
    assert len(rows) > 25
    bare = [line for line in rows if "::test_" not in line and "**Open**" not in line]
    assert [line for line in bare if not line.startswith("|---")] == []
