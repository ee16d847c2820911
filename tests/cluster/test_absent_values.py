"""Absent values render as their defaults, after `helm upgrade --reuse-values` and with null."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube import chart as charts
from tests.kube.control_plane import ControlPlane
from tools import chart_readme


def groups(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all maps that are not empty."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield (*path, name)
            yield from groups(value, (*path, name))


def without(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, with null for each value that is not a group of values."""
    return {
        name: without(value) if isinstance(value, dict) and value else None
        for name, value in values.items()
    }


def whole(values: dict[str, Any]) -> dict[str, Any]:
    """The same, with null for a whole group, because {limits: null} would remove the limits."""
    kept = ("nodeSelector", "resources", "updateStrategy", "labels")
    return {
        name: None if name in kept else whole(value) if isinstance(value, dict) else value
        for name, value in values.items()
    }


def test_without_any_value_renders_the_defaults(helm: Path) -> None:
    nothing = dict.fromkeys(chart_readme.values()) | {"image": charts.IMAGE}
    assert charts.render(helm, values=nothing) == charts.render(helm)


def test_without_one_value_renders_the_defaults(helm: Path) -> None:
    nothing = whole(without(chart_readme.values()))
    assert nothing["admission"]["tls"]["certManager"] == {"enabled": None}
    nothing["image"] |= charts.IMAGE
    assert charts.render(helm, values=nothing) == charts.render(helm)


def test_without_one_group_renders_the_defaults(helm: Path) -> None:
    expected = charts.render(helm)
    for path in groups(chart_readme.values()):
        if path[0] == "image" or {"nodeSelector", "resources", "updateStrategy"} & set(path[:-1]):
            continue
        values: Any = None
        for name in reversed(path):
            values = {name: values}
        assert charts.render(helm, values=values) == expected, path


def test_false_and_empty_values_stay(helm: Path) -> None:
    values = {
        "uninstall": {"removeFinalizers": False},
        "admission": {"drainSeconds": 0, "topologySpreadConstraints": []},
        "agent": {"tolerations": [], "resources": {"limits": None}},
    }
    chart = charts.render(helm, values=values)
    assert chart.of_kind("Job") == []
    admission, _ = sorted(chart.of_kind("Deployment"), key=lambda each: each["metadata"]["name"])
    pod = admission["spec"]["template"]["spec"]
    assert "topologySpreadConstraints" not in pod
    assert "--drain-seconds=0" in pod["containers"][0]["args"]
    (agent,) = chart.of_kind("DaemonSet")
    pod = agent["spec"]["template"]["spec"]
    assert "tolerations" not in pod
    assert set(pod["containers"][0]["resources"]) == {"requests"}


@pytest.mark.timeout(300)
def test_the_values_of_an_older_chart_are_enough(
    control_plane: ControlPlane, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """Install a chart with few values, and upgrade the release with --reuse-values."""
    older = tmp_path / "older"
    (older / "templates").mkdir(parents=True)
    (older / "Chart.yaml").write_text("{apiVersion: v2, name: hugetlb-quota, version: 0.0.1}")
    had = {"image": {"repository": "", "tag": ""}, "admission": {"replicas": 3, "tls": {}}}
    (older / "values.yaml").write_text(yaml.safe_dump(had))
    name = unique("reused")

    def helm(*words: str) -> str:
        return control_plane.helm(*words, f"--namespace={name}").stdout

    of = f"--set=image.repository={charts.IMAGE['repository']}"
    helm("install", name, str(older), "--create-namespace", of)
    helm("upgrade", name, str(charts.CHART), "--reuse-values", "--take-ownership")
    manifest = list(yaml.safe_load_all(helm("get", "manifest", name)))
    helm("uninstall", name, "--no-hooks")
    rendered = charts.render(
        control_plane.assets / "helm",
        namespace=name,
        release=name,
        values={"admission": {"replicas": 3}},
    )
    # The manifest has no hooks, and existing CRDs keep their owner.
    left_out = {"Job", charts.CRD}

    def compared(objects: list[Any]) -> list[Any]:
        return [each for each in objects if each and each["kind"] not in left_out]

    assert compared(manifest) == compared(rendered.objects)
