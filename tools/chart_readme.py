"""Write the derived files of the chart: README.md, files/defaults.yaml and Chart.yaml's version.

Run `make chart-docs`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from tools.page import put, table

ROOT: Final = Path(__file__).resolve().parents[1]
CHART: Final = ROOT / "charts" / "hugetlb-quota"
README: Final = CHART / "README.md"
CHART_YAML: Final = CHART / "Chart.yaml"
#: The templates take the defaults of absent values from here: they can't read values.yaml.
DEFAULTS: Final = CHART / "files" / "defaults.yaml"
Json = Mapping[str, Any]


def schema() -> dict[str, Any]:
    """The schema of the values. :func:`resolved` resolves its references."""
    raw: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return raw


def values() -> dict[str, Any]:
    """The default values."""
    raw: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return raw


def defaults() -> str:
    """The content of files/defaults.yaml."""
    return "# values.yaml, for the templates; made by `make chart-docs`.\n" + yaml.safe_dump(
        values(), sort_keys=False, width=100
    )


def resolved(part: Json, whole: Json) -> dict[str, Any]:
    """``part`` with the content of its reference into ``whole``. Keys of ``part`` win."""
    reference = part.get("$ref", "")
    target = whole["$defs"][reference.rpartition("/")[2]] if reference else {}
    return {**target, **{key: value for key, value in part.items() if key != "$ref"}}


def rows(part: Json, values: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, default and description of every value that the schema describes, in its order."""
    for name, value in part.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        default = (values or {}).get(name)
        below = list(rows(value, default, here))
        # The row of a group has no default; the rows of its members have.
        yield f"`{here}`", "" if below else f"`{_short(default)}`", value["description"]
        yield from below


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def made(page: str) -> str:
    """The README with a new table of values."""
    headers = ("value", "default", "what it is")
    return put(page, "values", table(headers, rows(schema(), values())))


def versioned(chart: str) -> str:
    """``Chart.yaml`` with the version of pyproject.toml."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = re.sub(r"^version: .*$", f"version: {version}", chart, flags=re.MULTILINE)
    return re.sub(r"^appVersion: .*$", f'appVersion: "{version}"', chart, flags=re.MULTILINE)


def main() -> None:
    """Write all derived files."""
    DEFAULTS.write_text(defaults())
    README.write_text(made(README.read_text()))
    CHART_YAML.write_text(versioned(CHART_YAML.read_text()))


if __name__ == "__main__":
    main()
