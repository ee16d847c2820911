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
        lane.answered(len(lane.take()))
        fill(lane, ["a/4", "a/5"])
        task = await gathering(lane)
        assert not await is_done_soon(task)
        fill(lane, ["a/6"])
        assert await is_done_soon(task)

    asyncio.run(scene())


def test_two_halves_become_one_batch() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1", "a/2"])
        lane.take()
        fill(lane, ["a/3", "a/4"])  # while the first two are written
        lane.answered(2)
        task = await gathering(lane)
        assert not await is_done_soon(task)
        fill(lane, ["a/1", "a/2"])
        assert await is_done_soon(task)

    asyncio.run(scene())


def test_clients_that_do_not_come_again_are_waited_for_no_more() -> None:
    async def scene() -> None:
        lane = Lane()
        for number in range(4):
            fill(lane, [f"{number}/1", f"{number}/2", f"{number}/3"])
            lane.take()
            lane.answered(3)
        # None of them came between the answer and this.
        for _ in range(3):
            lane.answered(3)
        fill(lane, ["a/1"])
        assert await is_done_soon(await gathering(lane))

    asyncio.run(scene())


def test_few_that_are_late_hold_up_nobody() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, (f"a/{number}" for number in range(16)))
        lane.answered(len(lane.take()))
        fill(lane, (f"b/{number}" for number in range(14)))
        assert await is_done_soon(await gathering(lane))

    asyncio.run(scene())


def test_an_idle_lane_answers_at_once() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1"])
        batch = lane.take()
        lane.batch_seconds = 9.0
        assert lane.wait_for("a") == 18.0
        lane.answered(len(batch))
        assert lane.wait_for("a") == 0.0

    asyncio.run(scene())


def test_a_single_client_waits_for_nobody() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1"])
        lane.answered(len(lane.take()))
        fill(lane, ["a/2"])
        assert await is_done_soon(await gathering(lane))

    asyncio.run(scene())


def test_a_batch_waits_no_longer_than_a_batch_takes() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1", "a/2", "a/3"])
        lane.answered(len(lane.take()))
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


def test_after_a_conflict_requests_are_gathered_longer_while_there_are_several() -> None:
    async def scene() -> None:
        lane = Lane()
        for _ in range(6):
            lane.answered(2, conflict=True)
        longest = lane.gathering
        lane.answered(2, conflict=True)
        assert lane.gathering == longest > 0
        for _ in range(6):
            lane.answered(2)
        assert lane.gathering == 0

    asyncio.run(scene())


def test_a_single_client_waits_for_nobody_after_a_conflict() -> None:
    async def scene() -> None:
        lane = Lane()
        lane.answered(1, conflict=True)
        assert lane.gathering == 0

    asyncio.run(scene())
