"""Runs spin on protocol.pml: a scene, whole or with one of its guards removed.

``python -m tests.model.spin GUARD`` tells in words how the protocol fails without GUARD.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MODEL: Final = Path(__file__).with_name("protocol.pml")
SCENES: Final = {"race": 1, "fence": 2, "count": 3, "release": 4, "restart": 5}
#: What each guard's removal is tried in.
GUARDS: Final = {
    "DECIDE_EACH_ALONE": "race",
    "NO_COMPARE": "race",
    "NO_FENCE": "fence",
    "NO_PROOF": "fence",
    "SAME_ID_AGAIN": "fence",
    "UNCOUNTED": "fence",
    "COUNT_WITHOUT_SINCE": "count",
    "EXPIRE_EARLY": "count",
    "NO_LIVE_READ": "count",
    "NO_TERM": "count",
    "ONE_READ": "count",
    "OVERTAKEN_BY_UID": "count",
    "PICTURE_FIRST": "count",
    "PICTURE_OF_A_LOST_LEASE": "count",
    "SEEN_BY_UID": "count",
    "TAKE_BACK_ANY": "count",
    "ANY_OTHER_BOOT": "release",
    "BOOT_ENDS_ALL": "release",
    "CGROUPS_BEFORE_PODS": "release",
    "CHARGES_BEFORE_CGROUPS": "release",
    "LIST_TELLS_NODE": "release",
    "RELEASE_WITHOUT_VERSION": "release",
    "SILENT_AGENT": "release",
    "EXPIRED_LEAVES_NO_LINE": "restart",
    "NO_IDENTITY": "restart",
}
#: MiB that one search may take.
MEMORY: Final = 2000
#: Seconds that one may take.
PATIENCE: Final = 550


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: ``errors``, in how many ``states``; ``story``: the first, in words."""

    errors: int
    states: int
    whole: bool
    story: str


def search(scene: str, guard: str | None = None) -> Found:
    """Search ``scene`` to its end, or to its first error; without ``guard`` when one is named."""
    chosen = [f"-DSCENE={SCENES[scene]}", *([f"-D{guard}"] if guard else [])]
    with tempfile.TemporaryDirectory() as folder:
        _run(folder, "spin", *chosen, "-a", str(MODEL))
        # What is removed is found soon, so that compiling takes longest.
        effort = "-O1" if guard else "-O2"
        options = ("-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEMORY}", "-DVECTORSZ=512")
        _run(folder, "gcc", effort, "-w", *options, "-o", "pan", "pan.c")
        told = _run(folder, "./pan", "-m5000", "-w24")
        errors, states = (
            re.search(pattern, told) for pattern in (r"errors: (\d+)", r"(\d+) states, stored")
        )
        assert errors, told
        assert states, told
        # Neither out of memory, nor too deep.
        whole = "Search not completed" not in told and "max search depth too small" not in told
        story = ""
        if int(errors[1]):
            trail = f"{MODEL.name}.trail"
            story = _run(folder, "spin", *chosen, "-k", trail, str(MODEL))
            story = "\n".join(
                line.strip() for line in story.partition("spin:")[0].splitlines() if line.strip()
            )
        return Found(int(errors[1]), int(states[1]), whole, story)


def _run(folder: str, *command: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0 or "spin: trail ends" in output or "errors: 1" in output, output
    return output


if __name__ == "__main__":
    print(search(GUARDS[sys.argv[1]], sys.argv[1]).story)
