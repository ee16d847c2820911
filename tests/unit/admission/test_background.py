from __future__ import annotations

import asyncio

import pytest

from hugetlb_quota.admission.background import in_background


async def test_runs_while_the_context_lasts() -> None:
    events: list[str] = []

    async def run() -> None:
        task = asyncio.current_task()
        events.append(f"{task.get_name() if task else ''} began")
        try:
            await asyncio.Event().wait()
        finally:
            events.append("ended")

    async with in_background(some_name=run()):
        await asyncio.sleep(0)
        assert events == ["some name began"]
    assert events == ["some name began", "ended"]


async def test_an_error_in_the_background_does_not_hide_an_error_of_the_body() -> None:
    async def fail() -> None:
        raise RuntimeError

    async def body() -> None:
        async with in_background(failing=fail()):
            await asyncio.sleep(0)
            raise KeyError

    with pytest.raises(KeyError):
        await body()
