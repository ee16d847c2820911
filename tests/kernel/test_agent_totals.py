"""The agent without the charge list: counters may give too much, but never too little."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hugetlb_quota.agent.read import HostReader
from hugetlb_quota.node.charge_reader import ChargeReader
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.pools import page_sizes
from tests.kernel.agent_process import SOON, Agent, Api, Pod, until
from tests.testnode import cgroup_tree
from tests.tracking import SMALL

TOTALS = "--charge-list=totals"


async def test_a_gone_pods_charge_is_within_the_charge_of_all_gone_pods(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    pages(12)
    await agent.start(TOTALS)
    await agent.ready()
    two = pod("one"), pod("two")
    for each, size in zip(two, ("4Mi", "6Mi"), strict=True):
        await each.start()
        await each.maps(size, f"--file={hugetlbfs / each.uid}")
        await each.maps("2Mi")  # private memory
    await until(lambda: api.charged() == {"one": 6, "two": 8})
    condition = api.condition("ChargeListReadable")
    assert (condition["status"], condition["reason"]) == ("False", "Unreadable")
    assert "--charge-list=totals" in condition["message"]
    assert api.condition("Ready")["status"] == "True"
    # First the private memory of each pod is freed, and the agent reports the change.
    for each in two:
        cgroup_tree.kill(each.cgroup)
    await until(lambda: api.charged() == {"one": 4, "two": 6}, SOON)
    for each in two:
        each.end()
        await each.delete()
    await until(lambda: api.left() == {"one": 4, "two": 6}, SOON)
    # No counter shows which pod was charged for a removed file. No pod is charged more than the
    # pages that all gone pods still hold together.
    (hugetlbfs / "two").unlink()
    await until(lambda: api.left() == {"one": 4, "two": 4}, SOON)
    await agent.end(signal.SIGKILL)
    reports = len(api.reports)
    await agent.start(TOTALS)
    await until(lambda: len(api.reports) > reports)
    assert api.left() == {"one": 4, "two": 4}
    (hugetlbfs / "one").unlink()
    await until(lambda: api.status["pods"] == [], SOON)


async def test_an_unseen_end_leaves_at_least_the_pages_of_the_pod_charged(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    pages(6)
    await agent.start(TOTALS)
    await agent.ready()
    seen, unseen = pod("seen"), pod("unseen")
    await seen.start()
    await seen.maps("4Mi", f"--file={hugetlbfs / 'seen'}")
    await until(lambda: api.charged() == {"seen": 4})
    await agent.end(signal.SIGKILL)
    await unseen.start()
    await unseen.maps("2Mi", f"--file={hugetlbfs / 'unseen'}")
    for each in (seen, unseen):
        each.end()
        await each.delete()
    await agent.start(TOTALS)
    # The seen pod may have reserved the 2 MiB too, so the agent charges the 2 MiB to this pod.
    await until(lambda: api.left() == {"seen": 6})
    assert api.status["unlisted"] == {}
    # The charge list shows which pod has the 2 MiB.
    await agent.end(signal.SIGKILL)
    await agent.start()
    await until(lambda: api.left() == {"seen": 4, "unseen": 2})
    assert api.condition("ChargeListReadable")["status"] == "True"
    assert api.status["unlisted"] == {}


@pytest.fixture
def one_pod(cgroup_subtree: Path) -> Path:
    level = cgroup_subtree / "kubepods.slice/kubepods-burstable.slice"
    pod = level / "kubepods-burstable-podaa.slice"
    cgroup_tree.make(cgroup_subtree, pod)
    return pod


async def test_uses_totals_if_the_reader_cannot_start_and_gives_the_reason(
    one_pod: Path, cgroup_subtree: Path, tmp_path: Path
) -> None:
    host, reader = HostRoot(), ChargeReader(tmp_path / "none")
    parents, sizes = (cgroup_subtree,), page_sizes(HostRoot())
    reading = await HostReader(host, host.cgroup2(), parents, sizes, reader).read(None)
    assert "can't be started (No such file or directory)" in reading.unreadable
    assert reading.bound is not None
    assert (reading.bound.of(SMALL), reading.populated) == (0, {"aa": False})


async def test_does_not_use_totals_after_one_kill_of_the_reader(
    one_pod: Path, cgroup_subtree: Path, reader: ChargeReader
) -> None:
    host = HostRoot()
    parents, sizes = (cgroup_subtree,), page_sizes(host)
    reading = HostReader(host, host.cgroup2(), parents, sizes, reader)
    assert (await reading.read(None)).unreadable == ""
    assert reader.pid
    os.kill(reader.pid, signal.SIGKILL)
    await asyncio.sleep(0.05)
    assert (await reading.read(None)).unreadable == ""
