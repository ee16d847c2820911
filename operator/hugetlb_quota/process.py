"""Settings of a server's own process: open files, and few garbage collections."""

from __future__ import annotations

import gc
import resource
from typing import Final

#: The number of new objects that starts a garbage collection; Python's own is 700.
_GARBAGE_THRESHOLD: Final = 20_000


def allow_open_files(number: int) -> None:
    """Raise the limit of open files to ``number``, or as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = number if hard == resource.RLIM_INFINITY else min(number, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def collect_garbage_rarely() -> None:
    """Keep collections few and short; call this function after the imports.

    Imported objects are never garbage, and a collection takes 20 ms to walk them.
    """
    gc.freeze()
    gc.set_threshold(_GARBAGE_THRESHOLD)
