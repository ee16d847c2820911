"""The previous release, from which a scene runs `helm upgrade`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests import previous
from tests.vm import image
from tests.vm.steps import say

NAME = "hugetlb-quota:previous"


@dataclass(frozen=True)
class Release:
    """The chart and the image of a release."""

    chart: Path
    image: image.Image

    def environment(self) -> dict[str, str]:
        """Return the variables that name the release for tests/e2e."""
        return {"E2E_PREVIOUS_CHART": str(self.chart), "E2E_PREVIOUS_IMAGE": self.image.name}


def release(scratch: Path) -> Release | None:
    """Return the previous release, unpacked in `scratch`; None if there is no usable commit."""
    before = previous.commit()
    if before is None:
        say("there is no commit before this one: nothing to upgrade from")
        return None
    tree = previous.unpack(before, scratch)
    if not (tree / "image" / "build.py").exists():
        say(f"commit {before[:12]} can't build an image: nothing to upgrade from")
        return None
    return Release(tree / "charts" / "hugetlb-quota", image.built(tree, NAME))
