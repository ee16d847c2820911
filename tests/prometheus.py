"""A real Prometheus on loopback, and queries to it."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from tests.kube.process import Child, free_ports

#: The scrape interval, in seconds; a rate needs two scrapes.
INTERVAL = 1


def static(targets: Sequence[tuple[str, Mapping[str, str]]]) -> dict[str, Any]:
    """A job that scrapes each `host:port`, with the labels that a PodMonitor adds."""
    configs = [{"targets": [target], "labels": dict(labels)} for target, labels in targets]
    return {"static_configs": configs}


class Prometheus:
    """A context manager that runs Prometheus of Debian's package.

    `job`: the fields of a job of `scrape_configs` without the name, such as :func:`static`.
    """

    def __init__(self, directory: Path, job: Mapping[str, Any], rules: Path) -> None:
        (port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{port}"
        configuration = {
            "global": {"scrape_interval": f"{INTERVAL}s", "evaluation_interval": f"{INTERVAL}s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "hugetlb-quota", **job}],
        }
        file = directory / "prometheus.yaml"
        file.write_text(yaml.safe_dump(configuration))
        program = shutil.which("prometheus")
        assert program is not None
        self._child = Child(
            "prometheus",
            [
                program,
                f"--config.file={file}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            directory / "prometheus.log",
            {"PATH": "/usr/bin:/bin", "HOME": str(directory)},
        )

    def __enter__(self) -> Self:
        self._child.wait_ready(self._is_ready, 60)
        return self

    def __exit__(self, *_: object) -> None:
        self._child.stop()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query, each with `metric` and `value`."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def wait_for(self, expression: str, timeout: float = 60.0) -> list[dict[str, Any]]:
        """Wait until a query has samples; return them."""
        deadline = time.monotonic() + timeout
        while not (rows := self.query(expression)):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"waited {timeout:.0f} s for data of: {expression}")
            time.sleep(0.5)
        return rows

    def alerts(self) -> set[str]:
        """The names of pending and firing alerts."""
        return {each["labels"]["alertname"] for each in self._get("alerts")["alerts"]}

    def _get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        try:
            url = f"{self.address}/api/v1/{path}?{query}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/-/ready", timeout=5) as answer:
                return int(answer.status) == 200
        except (urllib.error.URLError, OSError):
            return False
