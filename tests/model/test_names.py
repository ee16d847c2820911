"""The source has every function and class that the comments of the model name."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.model.spin import MODEL

SOURCE = Path(__file__).parents[2] / "operator" / "hugetlb_quota"
NAMES = sorted(set(re.findall(r"\b([a-z_]+(?:\.[a-z_]+)+):([A-Za-z_.]+\w)", MODEL.read_text())))


@cache
def defined(module: str) -> frozenset[str]:
    """Classes, functions and methods of ``module``, as Class.method."""
    tree = ast.parse((SOURCE / f"{module.replace('.', '/')}.py").read_text())
    names: set[str] = set()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, kinds)}
    return frozenset(names)


def test_the_model_names_many_places_of_the_source() -> None:
    assert len(NAMES) >= 20


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[":".join(each) for each in NAMES])
def test_the_source_has_each_named_place(module: str, name: str) -> None:
    assert name in defined(module)
