"""A skipped scene fails the run on a cluster that was made for the scenes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("may", "status"), [(None, 0), ("KUBECONFIG", 0), ("no pages of 1 GiB", 1)]
)
def test_a_skipped_scene_fails_unless_its_reason_is_allowed(may: str | None, status: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    environment.pop("E2E_MAY_SKIP", None)
    if may is not None:
        environment["E2E_MAY_SKIP"] = may
    scene = "tests/e2e/test_install.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", scene],
        cwd=TREE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stdout
    assert ("must not be skipped" in done.stdout) == bool(status)
