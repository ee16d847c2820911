"""Run coroutines in the background while a context lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager


@asynccontextmanager
async def in_background(**coroutines: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run each of ``coroutines`` in a task with its name; cancel the tasks at the end.

    Errors of the tasks are ignored: a coroutine that must not fail handles its own errors.
    """
    tasks = [
        asyncio.create_task(coroutine, name=name.replace("_", " "))
        for name, coroutine in coroutines.items()
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
