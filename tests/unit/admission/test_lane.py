"""The lane of a tree: the order of its requests, and how long a batch gathers requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

from hugetlb_quota.accounting.charge import NOTHING
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.admission.batch import ChargeRequest
from hugetlb_quota.admission.lane import Lane

LATER = datetime(2030, 1, 1, tzinfo=UTC)


def request_for(pod: str) -> ChargeRequest:
    """A request for ``pod`` (namespace/name)."""
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    return ChargeRequest((), Reservation(pod, pod, NOTHING, LATER, pod), done)


def fill(lane: Lane, pods: Iterable[str]) -> None:
    for pod in pods:
        lane.add(request_for(pod))


async def is_done_soon(task: asyncio.Task[None]) -> bool:
    for _ in range(5):  # turns of the loop; no time passes
        await asyncio.sleep(0)
    return task.done()


async def gathering(lane: Lane) -> asyncio.Task[None]:
    lane.batch_seconds = 1000.0
    return asyncio.create_task(lane.gather())


def test_a_batch_waits_for_the_clients_that_the_last_batch_answered() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1", "a/2", "a/3"])
        lane.answered(len(lane.take_batch()))
        fill(lane, ["a/4", "a/5"])
        task = await gathering(lane)
        assert not await is_done_soon(task)
        fill(lane, ["a/6"])
        assert await is_done_soon(task)

    asyncio.run(scene())


def test_two_alternating_halves_become_one_batch() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1", "a/2"])
        lane.take_batch()
        fill(lane, ["a/3", "a/4"])  # while the first two are written
        lane.answered(2)
        task = await gathering(lane)
        assert not await is_done_soon(task)
        fill(lane, ["a/1", "a/2"])
        assert await is_done_soon(task)

    asyncio.run(scene())


def test_a_batch_stops_waiting_for_clients_that_do_not_come_back() -> None:
    async def scene() -> None:
        lane = Lane()
        for number in range(4):
            fill(lane, [f"{number}/1", f"{number}/2", f"{number}/3"])
            lane.take_batch()
            lane.answered(3)
        # None of them has sent another request.
        for _ in range(3):
            lane.answered(3)
        fill(lane, ["a/1"])
        assert await is_done_soon(await gathering(lane))

    asyncio.run(scene())


def test_a_few_late_clients_do_not_delay_the_batch() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, (f"a/{number}" for number in range(16)))
        lane.answered(len(lane.take_batch()))
        fill(lane, (f"b/{number}" for number in range(14)))
        assert await is_done_soon(await gathering(lane))

    asyncio.run(scene())


def test_an_idle_lane_has_no_expected_wait() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1"])
        batch = lane.take_batch()
        lane.batch_seconds = 9.0
        assert lane.expected_wait("a") == 18.0
        lane.answered(len(batch))
        assert lane.expected_wait("a") == 0.0

    asyncio.run(scene())


def test_a_single_client_does_not_wait() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1"])
        lane.answered(len(lane.take_batch()))
        fill(lane, ["a/2"])
        assert await is_done_soon(await gathering(lane))

    asyncio.run(scene())


def test_a_batch_waits_at_most_as_long_as_a_batch_takes() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1", "a/2", "a/3"])
        lane.answered(len(lane.take_batch()))
        fill(lane, ["a/4"])
        lane.batch_seconds = 0.001
        await lane.gather()
        assert [each.reservation.pod for each in lane.take_batch()] == ["a/4"]

    asyncio.run(scene())


def test_namespaces_take_turns() -> None:
    async def scene() -> None:
        lane = Lane()
        fill(lane, ["a/1", "a/2", "a/3", "b/1"])
        assert [each.reservation.pod for each in lane.take_batch()] == ["a/1", "b/1", "a/2", "a/3"]

    asyncio.run(scene())


def test_a_batch_of_several_requests_gathers_longer_after_a_conflict() -> None:
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


def test_a_single_client_does_not_wait_after_a_conflict() -> None:
    async def scene() -> None:
        lane = Lane()
        lane.answered(1, conflict=True)
        assert lane.gathering == 0

    asyncio.run(scene())
