"""Seeds of tests that draw lots."""

from __future__ import annotations

import os
import random


def seed(variable: str = "SEED") -> int:
    """The number that this environment variable has, and print it.

    Without, any; with REQUIRE_LAYERS=1, always the same: what keeps a change from landing is
    not to depend on luck.
    """
    if given := os.environ.get(variable):
        chosen = int(given)
    elif os.environ.get("REQUIRE_LAYERS") == "1":
        chosen = 1
    else:
        chosen = random.randrange(2**32)
    print(f"{variable}={chosen}")
    return chosen
