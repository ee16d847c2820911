"""The shipped CRDs are those that the models generate."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.api import crd

CRDS = Path(__file__).parents[3] / "crds"
DEFINITIONS = {crd.file_name(each): each for each in (crd.quota_crd(), crd.node_crd())}


def test_no_file_is_missing_or_left_over() -> None:
    assert {path.name for path in CRDS.iterdir()} == set(DEFINITIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_file_matches_the_models(name: str) -> None:
    written = (CRDS / name).read_text()
    assert written.endswith(crd.render(DEFINITIONS[name])), "run: make crds"


def test_the_schema_is_structural() -> None:
    for definition in DEFINITIONS.values():
        text = crd.render(definition)
        for forbidden in ("$ref", "$defs", "additionalProperties: false", "type: 'null'"):
            assert forbidden not in text


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_field_has_a_description(name: str) -> None:
    def silent(schema: dict[str, Any], path: str = "") -> Iterator[str]:
        for field, part in schema.get("properties", {}).items():
            here = f"{path}.{field}"
            # The API server describes metadata.
            if len(part.get("description", "")) < 8 and here != ".metadata":
                yield here
            yield from silent(part, here)
        if isinstance(items := schema.get("items"), dict):
            yield from silent(items, f"{path}[]")

    (version,) = DEFINITIONS[name]["spec"]["versions"]
    assert list(silent(version["schema"]["openAPIV3Schema"])) == []


@pytest.mark.parametrize("name", DEFINITIONS)
def test_every_column_shows_an_existing_field(name: str) -> None:
    (version,) = DEFINITIONS[name]["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    for column in version["additionalPrinterColumns"]:
        part = schema
        for field in column["jsonPath"].partition("[")[0].strip(".").split("."):
            if field == "metadata":
                break
            assert field in part["properties"], column
            part = part["properties"][field]
