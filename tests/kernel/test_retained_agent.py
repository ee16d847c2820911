"""What pods leave in shared files: reported to the byte with their end, and through any kill."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.agent_process import (
    MIB,
    SECONDS,
    SOON,
    Agent,
    Api,
    Pod,
    bind,
    make_cgroup,
    retained,
    until,
)
from tests.testnode import naming

QUOTA = "ns/q"


async def test_what_a_pod_left_is_in_the_report_in_which_it_is_missing(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    pages(8)
    await agent.start()
    await agent.ready()
    shared = pod("aa-bb")
    await shared.start()
    await until(lambda: api.listed() == ["aa-bb"])
    await shared.maps("6Mi", f"--file={hugetlbfs / 'shared'}")
    await shared.maps("2Mi")  # its own, which goes with it
    await until(lambda: api.status["pods"][0]["inUse"] == {"hugepages-2Mi": "8Mi"})
    assert api.retained() == {}
    shared.end()
    await shared.delete()
    await until(lambda: api.listed() == [])
    # At every moment it was listed, or what it left was.
    since = next(n for n, report in enumerate(api.reports) if report.get("pods"))
    for report in api.reports[since:]:
        assert bool(report.get("pods")) != bool(retained(report))
    assert api.retained() == {QUOTA: 6}
    assert api.exact()["status"] == "True"
    (hugetlbfs / "shared").unlink()
    await until(lambda: api.retained() == {}, 2 * SOON)
    assert api.exact()["status"] == "True"


async def test_a_pod_that_no_quota_governs_leaves_it_to_none(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    pages(4)
    await agent.start()
    await agent.ready()
    free, governed = pod("free"), pod("governed")
    await free.start(namespace="elsewhere")
    await governed.start()
    await free.maps("4Mi", f"--file={hugetlbfs / 'free'}")
    await governed.maps("2Mi", f"--file={hugetlbfs / 'governed'}")
    free.end()
    await until(lambda: api.retained() == {"": 4})
    governed.end()
    await governed.delete()
    await until(lambda: api.retained() == {"": 4, QUOTA: 2})


@pytest.mark.parametrize("while_down", ["it ends", "it ends and is deleted", "it comes and goes"])
async def test_an_end_that_no_agent_saw(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
    while_down: str,
) -> None:
    pages(4)
    await agent.start()
    await agent.ready()
    await until(lambda: api.reports)
    missed = pod("missed")
    if while_down != "it comes and goes":
        await missed.start()
        await until(lambda: api.listed() == ["missed"])
    await agent.end(signal.SIGKILL)
    if while_down == "it comes and goes":
        await missed.start()
    await missed.maps("4Mi", f"--file={hugetlbfs / 'file'}")
    missed.end()
    if while_down == "it ends and is deleted":
        await missed.delete()
    else:
        await api.set("pods", "ns", "missed", status={"phase": "Succeeded"})
    await agent.start()
    await until(lambda: api.retained() == {QUOTA: 4})
    assert api.listed() == []
    assert api.exact()["status"] == "True"


@pytest.mark.parametrize("told", ["before it starts", "when it has reported"])
async def test_a_pod_that_came_and_went_and_was_deleted_while_no_agent_ran(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
    told: str,
) -> None:
    pages(4)
    await agent.start()
    await agent.ready()
    await until(lambda: api.reports)
    await agent.end(signal.SIGKILL)
    missed = pod("missed")
    await missed.start()
    await missed.maps("4Mi", f"--file={hugetlbfs / 'file'}")
    missed.end()
    end = await missed.delete()
    entry = {
        "uid": "missed",
        "pod": "ns/missed",
        "node": "n",
        "charge": {"hugepages-2Mi": "8Mi"},
        "quotas": [QUOTA],
        "cgroup": "missed",
    }
    if told == "when it has reported":
        await agent.start()
        await until(lambda: api.retained() == {"": 4})
        assert api.status["settled"] == []
        assert int(api.status["podsSince"]) >= end
    await api.set("hugetlbquotas", "ns", "q", status={"unreported": [entry]})
    if told == "before it starts":
        await agent.start()
    await until(lambda: api.retained() == {QUOTA: 4})
    # The report that claims it is settled is the one that has it.
    first = next(each for each in api.reports if each.get("settled"))
    assert (first["settled"], retained(first)) == (["missed"], {QUOTA: 4})
    assert "ns/missed" in api.exact()["message"]
    await agent.end(signal.SIGKILL)
    await agent.start()
    await until(lambda: len(api.reports) > api.reports.index(first) + 1)
    assert (api.status["settled"], api.retained()) == (["missed"], {QUOTA: 4})
    await api.set("hugetlbquotas", "ns", "q", status={})
    await until(lambda: api.status["settled"] == [])
    assert api.retained() == {QUOTA: 4}
    (hugetlbfs / "file").unlink()
    await until(lambda: api.retained() == {}, 2 * SOON)
    assert api.exact()["status"] == "True"


async def test_a_forgetful_agent_begins_with_its_last_report(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    pages(8)
    await agent.start()
    await agent.ready()
    first, second = pod("first"), pod("second")
    for each, size in ((first, "4Mi"), (second, "2Mi")):
        await each.start()
        await each.maps(size, f"--file={hugetlbfs / each.uid}")
    first.end()
    await first.delete()
    await until(lambda: api.retained() == {QUOTA: 4} and api.listed() == ["second"])
    await until(lambda: api.status["pods"][0]["inUse"] == {"hugepages-2Mi": "2Mi"})
    await agent.end(signal.SIGKILL)
    second.end()
    await second.delete()
    (database,) = agent.state.glob("agent.sqlite")
    for file in agent.state.iterdir():
        file.write_bytes(b"damaged" * 1000)
    await agent.start()
    await until(lambda: api.retained() == {QUOTA: 6})
    condition = api.exact()
    assert condition["status"] == "False"
    assert f"set aside as {database}.damaged-" in condition["message"]


async def test_kill_9_at_any_moment_changes_nothing(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    pages(12)
    await agent.start()
    await agent.ready()
    stopping = asyncio.Event()

    async def kill_and_start() -> None:
        while not stopping.is_set():
            # It takes about a second to start.
            await asyncio.sleep(dice.uniform(0.0, 3.0))
            await agent.end(signal.SIGKILL)
            await asyncio.sleep(dice.uniform(0.0, 0.3))
            await agent.start()
            if dice.random() < 0.5:
                # On a busy machine it may never come that far otherwise.
                await agent.ready()

    killer = asyncio.create_task(kill_and_start())
    left: dict[str, int] = {}
    try:
        for number in range(5):
            each = pod(f"pod-{number}")
            await each.start()
            size = dice.choice([2, 4])
            # Of a pod whose whole life no agent saw, nobody could know.
            await until(lambda uid=each.uid: uid in api.listed())  # type: ignore[misc]
            await asyncio.sleep(dice.uniform(0, 0.5))
            await each.maps(f"{size}Mi", f"--file={hugetlbfs / each.uid}")
            left[each.uid] = size
            await asyncio.sleep(dice.uniform(0, 0.5))
            each.end()
            await each.delete()
            if dice.random() < 0.3:
                gone = dice.choice(sorted(left))
                (hugetlbfs / gone).unlink()
                del left[gone]
    finally:
        stopping.set()
        await killer
    async with asyncio.timeout(SECONDS):
        await agent.ready()
    await until(lambda: api.listed() == [])
    expected = {QUOTA: sum(left.values())} if left else {}
    await until(lambda: api.retained() == expected, SOON)
    # And it holds for what is reported after, too.
    before = len(api.reports)
    make_cgroup(agent, "other")
    await bind(api, "other")
    await until(lambda: len(api.reports) > before)
    assert api.retained() == expected
    kubepods = agent.subtree / naming.kubepods("systemd")
    assert int((kubepods / "hugetlb.2MB.rsvd.current").read_text()) == sum(left.values()) * MIB
