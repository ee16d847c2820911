"""The Grafana dashboard sets the options for which Grafana would otherwise use a default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

CHART = Path(__file__).resolve().parents[3] / "charts" / "hugetlb-quota"
PANELS = json.loads((CHART / "files" / "dashboard.json").read_text())["panels"]
STATS = [each for each in PANELS if each["type"] == "stat"]


def with_overrides(panel: dict[str, Any], series: str) -> dict[str, Any]:
    """The field configuration of one series."""
    config = dict(panel["fieldConfig"]["defaults"])
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"] == {"id": "byName", "options": series}:
            config |= {each["id"]: each["value"] for each in override["properties"]}
    return config


@pytest.mark.parametrize("panel", STATS, ids=lambda panel: str(panel["title"]))
def test_a_number_has_thresholds_because_grafana_shows_80_and_more_in_red(
    panel: dict[str, Any],
) -> None:
    for target in panel["targets"]:
        assert "thresholds" in with_overrides(panel, target["legendFormat"])


def test_each_override_is_for_a_series_that_the_panel_has() -> None:
    for panel in PANELS:
        names = {target["legendFormat"] for target in panel.get("targets", ())}
        for override in panel.get("fieldConfig", {}).get("overrides", ()):
            assert override["matcher"]["id"] == "byName"
            assert override["matcher"]["options"] in names
