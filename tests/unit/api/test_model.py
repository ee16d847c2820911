"""Models: names in JSON, unknown fields, and the fields that a newer release may add."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field, ValidationError

from hugetlb_quota.api.model import (
    LabelSelector,
    Model,
    ObjectMeta,
    read_leniently,
    transition_time,
)


class Inner(Model):
    amount: int = 0


class Sample(Model):
    page_size: str
    boot_id: str | None = Field(default=None, alias="bootID")
    inner_part: Inner = Inner()


def test_json_has_camel_case_names_and_no_field_that_is_none() -> None:
    read = Sample(page_size="2Mi", inner_part=Inner(amount=3))
    assert read.to_json() == {"pageSize": "2Mi", "innerPart": {"amount": 3}}
    named = Sample.model_validate({"pageSize": "2Mi", "bootID": "boot"})
    assert named.boot_id == "boot"
    assert named.to_json()["bootID"] == "boot"


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="newField"):
        Sample.model_validate({"pageSize": "2Mi", "newField": 1})


def test_the_fields_of_a_model_can_not_be_set() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sample(page_size="2Mi").page_size = "1Gi"  # type: ignore[misc]


def test_a_lenient_read_ignores_what_a_newer_release_added() -> None:
    raw = {"pageSize": "2Mi", "bootID": "boot", "newField": 1}
    assert read_leniently(Sample, raw) == Sample.model_validate(
        {"pageSize": "2Mi", "bootID": "boot"}
    )


@pytest.mark.parametrize(
    "raw",
    [None, [], "text", {}, {"pageSize": 7}, {"pageSize": "2Mi", "innerPart": {"newField": 1}}],
)
def test_a_lenient_read_refuses_every_other_difference(raw: Any) -> None:
    with pytest.raises(ValueError, match=r"not an object|validation error"):
        read_leniently(Sample, raw)


def test_a_selector_has_only_the_operators_of_kubernetes() -> None:
    row = {"key": "a", "operator": "Exists"}
    (read,) = LabelSelector.model_validate({"matchExpressions": [row]}).match_expressions
    assert (read.key, read.values) == ("a", [])
    with pytest.raises(ValidationError):
        LabelSelector.model_validate({"matchExpressions": [{**row, "operator": "Equals"}]})


def test_metadata_ignores_the_fields_that_the_programs_do_not_read() -> None:
    raw = {"name": "q", "resourceVersion": "7", "managedFields": [{}]}
    read = ObjectMeta.model_validate(raw)
    assert (read.name, read.resource_version, read.namespace) == ("q", "7", "")


def test_a_condition_has_the_time_of_its_last_change_of_status() -> None:
    assert transition_time("True", 2, before=None, changed_at=None) == 2
    assert transition_time("True", 2, before="True", changed_at=1) == 1
    assert transition_time("True", 2, before="False", changed_at=1) == 2
    assert transition_time("True", 2, before="True", changed_at=None) == 2
