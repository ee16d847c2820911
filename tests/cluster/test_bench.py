"""A short `make bench`: every suite runs, and its section, figures and charts are complete."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as bench
from tests import preflight

pytestmark = pytest.mark.skipif(
    shutil.which("nft") is None or os.geteuid() != 0,
    reason="the benchmarks' balancer needs root and nft (apt-get install nftables)",
)


@pytest.mark.timeout(420)
@pytest.mark.parametrize("suite", bench.SUITES, ids=lambda suite: suite.name)
def test_a_suite_writes_its_section(suite: bench.Suite, assets: Path, tmp_path: Path) -> None:
    lacking = [
        why for why in (preflight._cgroup2(), preflight._pages(), preflight._reader()) if why
    ]
    if suite.name == "agent" and lacking:
        pytest.skip(lacking[0])
    page = tmp_path / "performance.md"
    page.write_text("# Performance\n\nBy hand.\n")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", suite.name]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=bench.TREE,
        env={**os.environ, "KUBEBUILDER_ASSETS": str(assets)},
    )
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "By hand." in text
    assert f"## {suite.title}" in text
    assert re.search(r"revision \S+, Kubernetes v\d", text)
    assert re.search(r"^(\| --- \||\|---\||```text)", text, re.MULTILINE)
    figures = json.loads((tmp_path / "performance" / f"{suite.name}.json").read_text())
    for file in re.findall(r"!\[.*?\]\((performance/.*?\.svg)\)", text):
        assert ElementTree.parse(tmp_path / file).getroot().tag.endswith("svg")
    charts = figures.get("charts", ()) if isinstance(figures, dict) else ()
    assert [each["file"] for each in charts] == re.findall(
        r"!\[.*?\]\(performance/(.*?)\.svg\)", text
    )
    if suite.name == "admission":
        assert_measured_beside_a_baseline(figures)


def assert_measured_beside_a_baseline(document: dict[str, Any]) -> None:
    (figures,) = document["rounds"]
    subjects = [(each["subject"], each["replicas"], each["turns"]) for each in figures]
    assert list(dict.fromkeys(subjects)) == [
        ("native", 0, False),
        ("plain, no operator", 0, False),
        ("plain, operator", 0, False),
        ("chain of 1", 1, False),
        ("chain of 2", 1, False),
        ("chain of 1", 2, True),
        ("chain of 2", 2, True),
        ("watched", 0, False),
    ]
    for each in figures:
        assert each["done"]["refused"] == 0, each["done"]["why"]
        assert each["done"]["pods_per_second"] > 0
        assert each["done"]["p99"] >= each["done"]["p50"] > 0
    assert [each["watches"] for each in figures[-2:]] == [2, 6]
