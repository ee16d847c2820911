"""Programs that pods run in tests and demo: tiny, unprivileged, standard library only."""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_SYSTEM_PYTHON = Path("/usr/bin/python3")
# The system's interpreter is readable for every user; a version manager's may not be.
PYTHON = str(_SYSTEM_PYTHON if _SYSTEM_PYTHON.exists() else Path(sys.executable).resolve())


def command(program: str, *arguments: str) -> list[str]:
    """A container's command for one of these programs, e.g. ``command("map_pages", "64Mi")``."""
    path = _HERE / f"{program}.py"
    if not path.exists():
        raise ValueError(f"there is no workload {program!r} in {_HERE}")
    # Its text, not its path: a pod's user may not be let into where this repository is.
    return [PYTHON, "-I", "-S", "-c", path.read_text(), *arguments]
