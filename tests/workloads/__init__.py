"""Programs of pods in tests and the demo: small, unprivileged, only the standard library."""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_SYSTEM_PYTHON = Path("/usr/bin/python3")
# Every user can read the system's interpreter; that of a version manager may be unreadable.
PYTHON = str(_SYSTEM_PYTHON if _SYSTEM_PYTHON.exists() else Path(sys.executable).resolve())


def command(program: str, *arguments: str) -> list[str]:
    """The command of a container that runs a program, as ``command("map_pages", "64Mi")``."""
    path = _HERE / f"{program}.py"
    if not path.exists():
        raise ValueError(f"there is no workload {program!r} in {_HERE}")
    # Pass the program's text: the pod's user may be unable to read this repository.
    return [PYTHON, "-I", "-S", "-c", path.read_text(), *arguments]
