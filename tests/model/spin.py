"""Runs spin on a scene of protocol.pml, with all guards or without one guard.

``python -m tests.model.spin GUARD`` prints in words how the protocol fails without GUARD.
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
#: By name, the number of the scene, and the property of the long run that spin checks, or "".
SCENES: Final = {
    "race": (1, ""),
    "fence": (2, ""),
    "count": (3, ""),
    "release": (4, ""),
    "restart": (5, ""),
    "emptied": (6, "emptied"),
    "at rest": (6, "at_rest"),
}
#: By guard, the scene that fails without the guard.
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
    "SEEN_BY_UID": "count",
    "SNAPSHOT_FIRST": "count",
    "SNAPSHOT_OF_A_LOST_LEASE": "count",
    "TAKE_BACK_ANY": "count",
    "ANY_OTHER_BOOT": "release",
    "BOOT_ENDS_ALL": "release",
    "CGROUPS_BEFORE_PODS": "release",
    "CHARGES_BEFORE_CGROUPS": "release",
    "LIST_SHOWS_NODE": "release",
    "RELEASE_WITHOUT_VERSION": "release",
    "SILENT_AGENT": "release",
    "EXPIRED_LEAVES_NO_LINE": "restart",
    "NO_IDENTITY": "restart",
    "BELIEVE_EXPIRES": "emptied",
    "NO_WITNESS": "emptied",
    "WRITE_THE_SAME": "at rest",
}
#: The largest memory of a search, in MiB.
MEMORY: Final = 2000
#: The longest time of a search, in seconds.
PATIENCE: Final = 550


#: The starts of the lines that spin adds to a story.
_OF_SPIN: Final = ("ltl ", "Never claim", "MSC:")


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search.

    ``errors``, ``states``: their number. ``whole``: whether the search reached its end.
    ``story``: the steps to the first error, in words.
    """

    errors: int
    states: int
    whole: bool
    story: str


def search(scene: str, guard: str | None = None) -> Found:
    """Search ``scene`` to its end or to its first error; ``guard``: remove this guard first."""
    number, property_ = SCENES[scene]
    chosen = [f"-DSCENE={number}", *([f"-D{guard}"] if guard else [])]
    # In the long run, each process that can continue does at last continue: weak fairness (-f).
    kind, run = ("-DNFAIR=5", ("-a", "-f", "-N", property_)) if property_ else ("-DSAFETY", ())
    with tempfile.TemporaryDirectory() as folder:
        _run(folder, "spin", *chosen, "-a", str(MODEL))
        # Without a guard, spin finds an error soon, and the compilation takes most of the time.
        # The users and the node are the last processes. With the last process first (-DREVERSE),
        # spin finds the error soonest.
        effort = ("-O1", *(() if property_ else ("-DREVERSE",))) if guard else ("-O2",)
        options = (kind, "-DCOLLAPSE", f"-DMEMLIM={MEMORY}", "-DVECTORSZ=512")
        _run(folder, "gcc", *effort, "-w", *options, "-o", "pan", "pan.c")
        output = _run(folder, "./pan", *run, "-m5000", "-w24")
        errors, states = (
            re.search(pattern, output) for pattern in (r"errors: (\d+)", r"(\d+) states, stored")
        )
        assert errors, output
        assert states, output
        # The search had enough memory and enough depth.
        whole = "Search not completed" not in output and "max search depth too small" not in output
        story = ""
        if int(errors[1]):
            trail = f"{MODEL.name}.trail"
            story = _run(folder, "spin", *chosen, "-k", trail, str(MODEL))
            lines = map(str.strip, story.partition("spin:")[0].splitlines())
            story = "\n".join(line for line in lines if line and not line.startswith(_OF_SPIN))
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
