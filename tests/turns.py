"""Count how often a task gets its turn of the event loop, beside the code under test."""

from __future__ import annotations

import asyncio


class Turns:
    """Counts the turns of the task that runs :meth:`run`."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        """Count until the task is cancelled."""
        while True:
            self.count += 1
            await asyncio.sleep(0)
