"""Seeds of random tests."""

from __future__ import annotations

import os
import random


def seed(variable: str = "SEED") -> int:
    """Print and return the seed in this environment variable.

    Without the variable the seed is random. With REQUIRE_LAYERS=1 the seed is always 1, because the
    verdict on a change must not depend on luck.
    """
    if given := os.environ.get(variable):
        chosen = int(given)
    elif os.environ.get("REQUIRE_LAYERS") == "1":
        chosen = 1
    else:
        chosen = random.randrange(2**32)
    print(f"{variable}={chosen}")
    return chosen
