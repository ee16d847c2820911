"""Type in docs/tutorial.md and adopting.md, and compare the output with the pages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.code_blocks import Step, steps, words
from tests.kube.cluster import Cluster

DOCS = Path(__file__).resolve().parents[2] / "docs"
REFUSED = (" is refused", " asks for ")


@pytest.fixture(scope="module")
def installed(assets: Path) -> Iterator[Cluster]:
    """A cluster for this module alone, because the pages show all quotas."""
    with Cluster(assets=assets) as running:
        yield running


def type_in(cluster: Cluster, step: Step) -> subprocess.CompletedProcess[str]:
    plane = cluster.control_plane
    return subprocess.run(
        ("bash", "-euo", "pipefail", "-c", step.commands),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        env={
            "KUBECONFIG": str(plane.admin_kubeconfig),
            "HOME": str(plane.directory),
            # kubectl finds kubectl-hugetlb on PATH.
            "PATH": os.pathsep.join(
                (str(plane.assets), str(Path(sys.executable).parent), os.environ.get("PATH", ""))
            ),
            "PYTHONUTF8": "1",
            "COLUMNS": "80",
        },
    )


@pytest.mark.parametrize("page", ["tutorial.md", "adopting.md"])
def test_every_block_prints_the_output_on_the_page(page: str, installed: Cluster) -> None:
    wanted = [step for step in steps((DOCS / page).read_text()) if not step.needs_real_cluster]
    assert wanted
    for step in wanted:
        done = type_in(installed, step)
        refused = any(word in words(step.printed) for word in REFUSED)
        context = f"docs/{page}:{step.line}\n{done.stdout}"
        assert (done.returncode != 0) == refused, context
        assert words(step.printed) in words(done.stdout), context
