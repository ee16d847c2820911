"""Every value has a description and a default, and unknown values are errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tools import chart_readme
from tools.chart_readme import CHART, CHART_YAML, README, resolved, rows

SCHEMA = chart_readme.schema()
VALUES = chart_readme.values()


def parts(part: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All parts of the schema with their paths, also inside lists and maps."""
    part = resolved(part, SCHEMA)
    yield path, part
    for name, value in part.get("properties", {}).items():
        yield from parts(value, f"{path}.{name}" if path else name)
    if "items" in part:
        yield from parts(part["items"], f"{path}[]")


def is_open(path: str) -> bool:
    """Whether the object at ``path`` may have any key.

    The globals of a parent chart are for all its charts. Other open objects go to Kubernetes.
    """
    return path == "global" or path.endswith(".valueFrom") or ".affinity." in path


def test_the_readme_is_up_to_date() -> None:
    page = README.read_text()
    assert chart_readme.made(page) == page, "run `make chart-docs`"


def test_the_templates_have_the_same_defaults_as_the_values() -> None:
    assert chart_readme.DEFAULTS.read_text() == chart_readme.defaults(), "run `make chart-docs`"


def test_every_template_begins_by_setting_absent_values() -> None:
    first = '{{- include "hugetlb-quota.defaults" . }}\n'
    templates = [each for each in CHART.glob("templates/*") if each.name != "_names.tpl"]
    assert len(templates) > 10
    assert [each.name for each in templates if not each.read_text().startswith(first)] == []


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = CHART_YAML.read_text()
    assert chart_readme.versioned(chart) == chart, "run `make chart-docs`"


def test_no_page_names_the_version_of_an_image() -> None:
    version = yaml.safe_load(CHART_YAML.read_text())["appVersion"]
    root = CHART.parents[1]
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), README]
    named = [page.name for page in pages if f":{version}" in page.read_text()]
    assert named == []


def test_every_value_has_a_description_that_is_a_sentence() -> None:
    described = list(rows(SCHEMA, VALUES))
    assert len(described) > 80
    assert [path for path, _, text in described if not text.endswith(".")] == []


def test_every_default_is_in_the_schema_and_every_value_has_a_default() -> None:
    def names(values: Any, part: Mapping[str, Any], path: str = "") -> Iterator[str]:
        """The paths that only the values or only the schema has."""
        described = part.get("properties", {})
        for name in described.keys() ^ values.keys() if described else ():
            yield f"{path}{name}"
        for name in described.keys() & values.keys():
            if isinstance(values[name], dict):
                yield from names(values[name], described[name], f"{path}{name}.")

    # maxSurge and maxUnavailable exclude each other, so one of them has no default.
    assert set(names(VALUES, SCHEMA)) == {"agent.updateStrategy.rollingUpdate.maxSurge"}


def test_an_unknown_value_is_an_error_everywhere() -> None:
    objects = [(path, part) for path, part in parts(SCHEMA) if part.get("type") == "object"]
    assert len(objects) > 40
    lax = [path for path, part in objects if part.get("additionalProperties", True) is True]
    assert [path for path in lax if not is_open(path)] == []
    assert any(is_open(path) for path in lax)
