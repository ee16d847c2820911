"""The modules that the programs import at each start."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("program", ["admission", "agent"])
def test_the_kubernetes_package_is_not_imported_at_the_start(program: str) -> None:
    """The import takes a third of the start and 12 MiB, and a pod does not need the package."""
    code = (
        f"import sys, hugetlb_quota.{program}.__main__\n"
        "print(sorted({'kubernetes', 'kopf', 'yaml', 'requests'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
