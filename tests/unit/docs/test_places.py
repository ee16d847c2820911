"""The files and names that architecture.md, walks.md, glossary.md and CONTRIBUTING.md use exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CODE = ROOT / "operator" / "hugetlb_quota"
#: A path of this tree, or one below the code's folder or below node/reader.
PATH = re.compile(r"`((?:\.\./|[\w.-]+/)+[\w.-]+\.(?:py|c|h|md|yaml|json|pml))`(?:\s+`(\w+)`)?")
PAGES = ("CONTRIBUTING.md", "docs/architecture.md", "docs/walks.md")
GLOSSARY = "docs/glossary.md"
#: A path in the glossary, and the names behind the path: ``Class``, ``Class.field``, ``function``.
PLACE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|c|h|yaml))`((?:,?\s`[A-Za-z_]\w*(?:\.\w+)?`)*)")


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


def glossary() -> list[tuple[str, str, list[str]]]:
    """Each place in the glossary: the line, the path, and the names behind the path."""
    return [
        (line, path, re.findall(r"`([\w.]+)`", names))
        for line in (ROOT / GLOSSARY).read_text().splitlines()
        for path, names in PLACE.findall(line)
    ]


def rows() -> list[list[str]]:
    """The cells of each row of the glossary's tables of terms."""
    text = (ROOT / GLOSSARY).read_text().split("## Words with two meanings")[0]
    lines = (line for line in text.splitlines() if line.startswith("| "))
    cells = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return [row for row in cells if row[0] != "term"]


def defined(file: Path) -> set[str]:
    """The names that ``file`` defines; members of a class as ``Class.member``."""
    text = file.read_text()
    if file.suffix != ".py":
        return set(re.findall(r"^\s*(?:(?:struct|enum) )?(\w+)(?::| \{)", text, re.MULTILINE))
    found = set()
    for node in ast.parse(text).body:
        for name in names_of(node):
            found.add(name)
            if isinstance(node, ast.ClassDef):
                found |= {f"{name}.{member}" for part in node.body for member in names_of(part)}
    return found


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return [node.name]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def test_each_term_of_the_glossary_has_a_place() -> None:
    assert len(rows()) > 80
    assert [cells[0] for cells in rows() if len(cells) != 4 or not PLACE.search(cells[-1])] == []


def test_no_term_is_in_the_glossary_twice() -> None:
    terms = [cells[0] for cells in rows()]
    assert sorted(term for term in terms if terms.count(term) > 1) == []


def test_each_place_in_the_glossary_exists() -> None:
    places = glossary()
    assert len(places) > 100
    assert [(path, line) for line, path, _ in places if file_of(path) is None] == []


def test_each_name_in_the_glossary_is_in_its_file() -> None:
    missing = []
    for _, path, names in glossary():
        file = file_of(path)
        if file is not None:
            missing += [(path, name) for name in names if name not in defined(file)]
    assert missing == []
