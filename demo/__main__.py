"""``python -m demo``: runs the scenes; DEMO_JSON=path saves the results as JSON."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from demo import scenes
from demo.stage import Stage
from demo.story import Story, Unexpected
from tests import mount_namespace


def main() -> int:
    """Return 0 if every scene was as expected or was skipped."""
    mount_namespace.enter()
    story = Story()
    started = time.monotonic()
    print("hugetlb-quota: hierarchical huge page quotas, on a real API server, real cgroups and")
    print("real huge pages. The nodes do to cgroups what kubelet up to 1.28 and containerd do.")
    try:
        with suppress(Unexpected):
            scenes.play(story, Stage(story.progress))
    finally:
        if path := os.environ.get("DEMO_JSON"):
            story.save(Path(path))
    is_good = all(scene.outcome != "unexpected" for scene in story.scenes)
    seconds = time.monotonic() - started
    print(f"\n{_summary(story)}\n{'All' if is_good else 'Not all'} as expected; {seconds:.0f} s.")
    return 0 if is_good else 1


def _summary(story: Story) -> str:
    width = max(len(scene.name) for scene in story.scenes)
    return "\n".join(
        f"{number}. {scene.name:<{width}}  {scene.outcome:<12} {scene.seconds:6.1f} s"
        for number, scene in enumerate(story.scenes, 1)
    )


if __name__ == "__main__":
    sys.exit(main())
