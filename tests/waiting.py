"""Wait for a state of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(
    holds: Callable[[], object], *, timeout: float = 60.0, hold: float = 0.0, every: float = 0.1
) -> None:
    """Wait until ``holds()`` is true, and check that it stays true for ``hold`` seconds.

    :raises AssertionError: if ``holds()`` is not true in ``timeout`` seconds, or becomes false.
    """
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not so within {timeout:g} s"
        time.sleep(every)
    until = time.monotonic() + hold
    while time.monotonic() < until:
        assert holds(), f"did not stay so for {hold:g} s"
        time.sleep(every)
