"""The CRDs that ship are the ones the models make."""

from pathlib import Path

import pytest

from hugetlb_quota.api import crd

CRDS = Path(__file__).parents[3] / "crds"
DEFINITIONS = {crd.file_name(each): each for each in (crd.quota_crd(), crd.node_crd())}


def test_no_file_is_missing_or_left_over() -> None:
    assert {path.name for path in CRDS.iterdir()} == set(DEFINITIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_file_is_what_the_models_make(name: str) -> None:
    written = (CRDS / name).read_text()
    assert written.endswith(crd.render(DEFINITIONS[name])), "run: make crds"


def test_the_schema_is_structural() -> None:
    for definition in DEFINITIONS.values():
        text = crd.render(definition)
        for forbidden in ("$ref", "$defs", "additionalProperties: false", "type: 'null'"):
            assert forbidden not in text
