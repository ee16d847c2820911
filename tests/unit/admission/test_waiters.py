"""Requests wait for a version of the watch, or share a read."""

from __future__ import annotations

import asyncio

import pytest

from hugetlb_quota.admission.waiters import SharedReads, VersionWaiters
from hugetlb_quota.kube import errors


async def turns() -> None:
    """Let every task run until the task waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_watch_wakes_those_who_wait_for_its_version_or_an_earlier_one() -> None:
    waiters = VersionWaiters()
    early, late = (asyncio.create_task(waiters.wait(version)) for version in (5, 7))
    await turns()
    waiters.advance(6, listed=False)
    await turns()
    assert early.done()
    assert not late.done()
    waiters.advance(7, listed=False)
    await late


async def test_a_list_that_is_older_raises_gone() -> None:
    waiters = VersionWaiters()
    early, late = (asyncio.create_task(waiters.wait(version)) for version in (5, 7))
    await turns()
    waiters.advance(6, listed=True)
    await early
    with pytest.raises(errors.Gone):
        await late


async def test_a_request_waits_for_a_read_that_begins_after_the_request() -> None:
    reads, begun, go_on = SharedReads(), [0], asyncio.Event()

    async def read() -> None:
        begun[0] += 1
        await go_on.wait()

    first = asyncio.create_task(reads.join("key", read))
    await turns()
    others = [asyncio.create_task(reads.join("key", read)) for _ in range(3)]
    await turns()
    assert begun == [1]
    go_on.set()
    await asyncio.gather(first, *others)
    # The three others share the second read.
    assert begun == [2]


async def test_an_error_of_the_read_is_raised_for_all_that_wait() -> None:
    reads = SharedReads()

    async def read() -> None:
        raise errors.ApiUnreachable("no answer")

    results = await asyncio.gather(
        *(reads.join("key", read) for _ in range(2)), return_exceptions=True
    )
    assert [type(each) for each in results] == [errors.ApiUnreachable] * 2
    # The next request reads again.
    await reads.join("key", turns)
