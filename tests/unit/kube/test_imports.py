"""What every node and every replica pays for at each start: modules that are imported."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("program", ["admission", "agent"])
def test_the_kubernetes_package_is_not_imported_at_the_start(program: str) -> None:
    """It is a third of the start, and 12 MiB; in a pod neither needs it."""
    code = (
        f"import sys, hugetlb_quota.{program}.__main__\n"
        "print(sorted({'kubernetes', 'kopf', 'yaml', 'requests'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
