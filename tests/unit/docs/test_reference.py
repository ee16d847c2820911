"""docs/reference.md matches the models, the command lines and the reasons in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import reference
from tools.page import put, table

SOURCE = Path(__file__).resolve().parents[3] / "operator" / "hugetlb_quota"
#: The places in the code that name a reason of a condition or of an Event.
REASONS = (
    r'\breason ?= ?"([A-Z]\w+)"',
    r'\bREASON: Final = "(\w+)"',
    r'Finding\(\s*\w+,\s*(?:True|False),\s*"(\w+)"',
    r'_condition\("\w+", \("(\w+)", ',
    r'_condition\("\w+", \("\w+", "(\w+)"\)',
    r'_publish\(quota, "\w+", "(\w+)"',
)
#: The reason of a class that is never raised itself.
ABSTRACT = {"Detached"}


def test_the_reference_is_up_to_date() -> None:
    page = reference.PAGE.read_text()
    assert reference.made(page) == page, "run `make reference`"


def test_the_reference_names_every_reason_in_the_code() -> None:
    source = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    found = {reason for pattern in REASONS for reason in re.findall(pattern, source)} - ABSTRACT
    assert {"OverLimit", "AgentSilent", "PodRefused", "NobodyPays", "TooLarge"} <= found
    page = reference.PAGE.read_text()
    assert sorted(reason for reason in found if f"`{reason}`" not in page) == []


def test_a_field_of_a_list_has_brackets_and_conditions_have_no_fields() -> None:
    row = {"type": "object", "properties": {"type": {"type": "string"}}}
    listed = {"type": "array", "items": row}
    schema = {"properties": {"status": {"properties": {"rows": listed, "conditions": listed}}}}
    assert [path for path, _, _ in reference.fields(schema)] == [
        "status.rows",
        "status.rows[].type",
        "status.conditions",
    ]


def test_a_part_is_replaced_and_a_page_without_the_part_is_an_error() -> None:
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb"
    assert put(page, "x", "new\\1") == "a\n<!-- begin x -->\nnew\\1\n<!-- end x -->\nb"
    with pytest.raises(ValueError, match="begin y"):
        put(page, "y", "new")


def test_the_text_of_a_cell_is_escaped() -> None:
    assert table(("h",), [("a|b\n`<c>` <d>",)]) == "| h |\n|---|\n| a\\|b `<c>` \\<d> |"
