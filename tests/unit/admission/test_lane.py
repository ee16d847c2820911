"""The lane of a tree: who waits, in which order they are taken, and how long a batch gathers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

from hugetlb_quota.accounting.charge import NOTHING
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.lane import Lane, Wanted

LATER = datetime(2030, 1, 1, tzinfo=UTC)


def wanted(pod: str) -> Wanted:
    """A request for ``pod`` (namespace/name)."""
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    return Wanted((), Reservation(pod, pod, NOTHING, LATER, pod), Deadline.after(10.0), done)


def fill(lane: Lane, pods: Iterable[str]) -> None:
    for pod in pods:
        lane.add(wanted(pod))


async def is_done_soon(task: asyncio.Task[None]) -> bool:
    for _ in range(5):  # turns of the loop; no time passes
        await asyncio.sleep(0)
    return task.done()


async def gathering(lane: Lane) -> asyncio.Task[None]:
    lane.batch_seconds = 1000.0
    return asyncio.create_task(lane.gather())


def test_a_batch_waits_for_those_that_the_last_one_answered() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1", "a/2", "a/3"])
        lane.take()
        fill(lane, ["a/4"])
        task = await gathering(lane)
        assert not await is_done_soon(task)
        fill(lane, ["a/5"])
        assert await is_done_soon(task)

    asyncio.run(scene())


def test_a_single_client_waits_for_nobody() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1"])
        lane.take()
        fill(lane, ["a/2"])
        assert await is_done_soon(await gathering(lane))

    asyncio.run(scene())


def test_a_batch_waits_no_longer_than_a_batch_takes() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1", "a/2", "a/3"])
        lane.take()
        fill(lane, ["a/4"])
        lane.batch_seconds = 0.001
        await lane.gather()
        assert [each.reservation.pod for each in lane.take()] == ["a/4"]

    asyncio.run(scene())


def test_namespaces_take_turns() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1", "a/2", "a/3", "b/1"])
        assert [each.reservation.pod for each in lane.take()] == ["a/1", "b/1", "a/2", "a/3"]

    asyncio.run(scene())
