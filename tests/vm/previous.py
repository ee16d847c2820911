"""The release before this one: what `helm upgrade` comes from.

That is the commit before the last one that changed the product.
"""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from image.build import TREE
from tests.vm import image
from tests.vm.steps import StepFailed, run, say

PRODUCT = ("operator", "charts", "crds", "Dockerfile", "image", "requirements.lock")
NAME = "hugetlb-quota:previous"


@dataclass(frozen=True)
class Release:
    """A chart's folder and the image that belongs to it."""

    chart: Path
    image: image.Image

    def environment(self) -> dict[str, str]:
        """Return what tells tests/e2e of it."""
        return {"E2E_PREVIOUS_CHART": str(self.chart), "E2E_PREVIOUS_IMAGE": self.image.name}


def release(scratch: Path) -> Release | None:
    """Return the previous release, its tree unpacked in `scratch`; None where history ends."""
    try:
        last = _git("rev-list", "-1", "HEAD", "--", *PRODUCT)
        before = _git("rev-parse", "--verify", "--quiet", f"{last}^")
    except StepFailed:
        say("there is no commit before this one: nothing to upgrade from")
        return None
    archive = scratch / "tree.tar"
    with archive.open("wb") as file:
        subprocess.run(["git", "archive", before], cwd=TREE, stdout=file, check=True, timeout=60)
    tree = scratch / "tree"
    with tarfile.open(archive) as tar:
        tar.extractall(tree, filter="tar")
    if not (tree / "image" / "build.py").exists():
        say(f"commit {before[:12]} can't build an image: nothing to upgrade from")
        return None
    return Release(tree / "charts" / "hugetlb-quota", image.built(tree, NAME))


def _git(*words: str) -> str:
    return run(["git", *words], cwd=TREE).strip()
