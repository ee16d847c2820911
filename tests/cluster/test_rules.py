"""Prometheus accepts and tests the alerts, and each alert links its runbook."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube import chart

ROOT = Path(__file__).resolve().parents[2]
ALERTS = chart.CHART / "files" / "alerts.yaml"
UNIT_TESTS = Path(__file__).with_name("alerts_test.yaml")
RUNBOOKS = ROOT / "docs" / "runbooks"


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def promtool(*words: str | Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        missing = "There is no promtool: install Debian's package prometheus."
        (pytest.fail if os.environ.get("REQUIRE_LAYERS") == "1" else pytest.skip)(missing)
    done = subprocess.run(
        [program, *words], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_the_rules() -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "rules", ALERTS)


def test_each_alert_fires_in_time_and_not_before() -> None:
    promtool("test", "rules", UNIT_TESTS)
    tests = [
        each
        for group in yaml.safe_load(UNIT_TESTS.read_text())["tests"]
        for each in group["alert_rule_test"]
    ]
    fires = {each["alertname"] for each in tests if each.get("exp_alerts")}
    quiet = {each["alertname"] for each in tests if not each.get("exp_alerts")}
    names = {each["alert"] for each in alerts()}
    assert names == fires == quiet


def test_each_alert_has_one_runbook() -> None:
    linked = {each["annotations"]["runbook_url"]: each["alert"] for each in alerts()}
    assert set(linked) == {f"docs/runbooks/{page.name}" for page in RUNBOOKS.glob("*.md")}
    for page, alert in linked.items():
        text = (ROOT / page).read_text()
        assert text.startswith(f"# {alert}\n")
        for heading in ("**What it means for people.**", "**Look**", "**Do**"):
            assert heading in text or (heading == "**Do**" and "| what to do |" in text), page
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert (RUNBOOKS / link).exists(), f"{page} links {link}"


def test_the_chart_makes_monitoring_objects_only_on_request(helm: Path) -> None:
    kinds = {"PodMonitor", "PrometheusRule"}
    assert not [each for each in chart.render(helm).objects if each["kind"] in kinds]
    values = {
        "monitoring": {
            "podMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "p"}},
            "rules": {"enabled": True, "runbooks": "https://wiki.example/hugetlb/"},
            "dashboard": {"enabled": True},
        }
    }
    rendered = chart.render(helm, values=values)
    (monitor,) = rendered.of_kind("PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "p"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["interval"]) == ("health", "15s")
    workloads = rendered.of_kind("Deployment") + rendered.of_kind("DaemonSet")
    for workload in workloads:
        template = workload["spec"]["template"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= (
            template["metadata"]["labels"].items()
        )
        (container,) = template["spec"]["containers"]
        assert "health" in {port["name"] for port in container["ports"]}
    (rule,) = rendered.of_kind("PrometheusRule")
    (group,) = rule["spec"]["groups"]
    urls = [each["annotations"]["runbook_url"] for each in group["rules"]]
    assert "https://wiki.example/hugetlb/near-limit.md" in urls
    assert [each["expr"] for each in group["rules"]] == [each["expr"] for each in alerts()]
    dashboards = [m for m in rendered.of_kind("ConfigMap") if m.get("data")]
    (dashboard,) = dashboards
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    shipped = (chart.CHART / "files" / "dashboard.json").read_text()
    assert yaml.safe_load(dashboard["data"]["hugetlb-quota.json"]) == yaml.safe_load(shipped)
