"""Collect objects, events, logs and the pods' cgroup files after a failure."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests.e2e import operator
from tests.e2e.host import Host
from tests.e2e.kubectl import CommandFailed, kubectl

DESCRIBE = (
    "hugetlbquotas,hugetlbnodes",
    "pods,deployments,daemonsets",
    "events",
    "validatingwebhookconfigurations",
    "nodes",
)


def folder() -> Path:
    """The folder for all scenes: $E2E_ARTIFACTS, or else a temporary folder."""
    named = os.environ.get("E2E_ARTIFACTS")
    path = Path(named) if named else Path(tempfile.gettempdir(), "hugetlb-quota-e2e")
    path.mkdir(parents=True, exist_ok=True)
    return path


def collect(scene: str, host: Host | None) -> Path:
    """Write all files into a folder with the scene's name; return the folder."""
    into = folder() / scene
    into.mkdir(parents=True, exist_ok=True)
    for kinds in DESCRIBE:
        _keep(into / f"{kinds.split(',')[0]}.yaml", "get", kinds, "-A", "-o", "yaml")
    _keep(into / "events.txt", "get", "events", "-A", "--sort-by=.lastTimestamp")
    for component in ("admission", "controller", "agent"):
        selector = f"app.kubernetes.io/component={component}"
        for when in ("", "--previous"):
            words = ["logs", "-n", operator.NAMESPACE, "-l", selector, "--tail=2000", "--prefix"]
            _keep(into / f"{component}{when}.log", *words, *([when] if when else []))
    if host is not None:
        try:
            text = host.run(
                "grep -rs . /sys/fs/cgroup --include='hugetlb.*' | grep pod; dmesg | tail -50"
            )
        except CommandFailed as error:
            text = str(error)
        (into / "cgroups.txt").write_text(text)
    return into


def _keep(file: Path, *words: str) -> None:
    try:
        text = kubectl(*words, timeout=60)
    except CommandFailed as error:
        text = str(error)
    file.write_text(text)
