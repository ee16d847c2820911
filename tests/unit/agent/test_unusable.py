"""UnusableNode: the HugeTLBNode of a host where pods can't be limited, and how the agent waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from hugetlb_quota.agent import unusable
from hugetlb_quota.agent.last_report import adopt
from hugetlb_quota.agent.unusable import UnusableNode, check
from hugetlb_quota.controller.counting.nodes import project_report
from hugetlb_quota.node.host import HostRoot, HostUnreadable
from tests.kube.process import free_ports
from tests.unit.agent.fake_api import FakeApi

CGROUP2 = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
SECONDS = 20.0


class Api(FakeApi):
    """Has the condition Ready of the report."""

    @property
    def ready(self) -> tuple[str, str, str]:
        (condition,) = self.status["conditions"]
        assert condition["type"] == "Ready"
        return condition["status"], condition["reason"], condition["message"]


class Waiting:
    """An agent that waits on the host at ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.api = Api()
        self.stop = asyncio.Event()
        (self.port,) = free_ports(1)
        self.node = UnusableNode(self.api, "n", HostRoot(root), "127.0.0.1", self.port)
        self.task: asyncio.Task[bool] | None = None

    def begin(self) -> None:
        self.task = asyncio.create_task(self.node.wait(self.stop, check, 0.02))

    async def ends(self) -> bool:
        assert self.task
        async with asyncio.timeout(SECONDS):
            return await self.task

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not holds():
                assert self.task
                assert not self.task.done(), self.task.result()
                await asyncio.sleep(0.01)

    async def probe(self, path: str) -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as answer,
        ):
            return answer.status


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host without cgroup2."""
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/mountinfo").write_text(CGROUP2.replace("cgroup2", "tmpfs"))
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("this-boot\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    return tmp_path


@pytest.fixture
async def waiting(root: Path) -> AsyncIterator[Waiting]:
    waiting = Waiting(root)
    yield waiting
    waiting.stop.set()
    if waiting.task:
        await waiting.ends()


def give_cgroup2(root: Path, controllers: str) -> None:
    (root / "sys/fs/cgroup/cgroup.controllers").write_text(controllers)
    (root / "proc/1/mountinfo").write_text(CGROUP2)


async def test_reports_what_the_host_lacks_until_it_lacks_nothing(
    waiting: Waiting,
) -> None:
    waiting.begin()
    await waiting.until(lambda: waiting.api.writes)
    status, reason, message = waiting.api.ready
    assert (status, reason) == ("False", "NoCgroup2")
    assert "No pod of this node is limited" in message
    assert "systemd.unified_cgroup_hierarchy=1" in message
    assert await waiting.probe("/healthz") == 200
    assert await waiting.probe("/readyz") == 200

    give_cgroup2(waiting.root, "cpu memory\n")
    await waiting.until(lambda: waiting.api.ready[1] == "NoHugetlbController")
    assert "CONFIG_CGROUP_HUGETLB=y" in waiting.api.ready[2]
    give_cgroup2(waiting.root, "cpu hugetlb\n")
    assert await waiting.ends()


async def test_does_not_wait_on_a_host_that_lacks_nothing(waiting: Waiting) -> None:
    give_cgroup2(waiting.root, "hugetlb\n")
    waiting.begin()
    assert await waiting.ends()
    assert waiting.api.report is None


async def test_stops_waiting_at_a_signal(waiting: Waiting) -> None:
    waiting.begin()
    await waiting.until(lambda: waiting.api.writes)
    waiting.stop.set()
    assert not await waiting.ends()


async def test_the_controller_sees_a_node_without_an_agent(waiting: Waiting) -> None:
    """So the controller charges the node's pods until they end, and no longer."""
    waiting.api.remember(bootID="boot-before", podsResourceVersion="7", pods=[], retained=[])
    waiting.begin()
    await waiting.until(lambda: waiting.api.writes)
    assert waiting.api.report is not None
    assert project_report({**waiting.api.report, "metadata": {"name": "n"}}) is None


async def test_keeps_the_names_of_pods_during_a_boot_without_limits(waiting: Waiting) -> None:
    pod = {"uid": "uid", "namespace": "ns", "name": "pod", "labels": {"a": "b"}, "live": True}
    nameless = {"uid": "other", "live": False, "charged": {"hugepages-2Mi": "8Mi"}}
    charged = pod | {"charged": {"hugepages-2Mi": "8Mi"}}
    waiting.api.remember(bootID="boot-before", pods=[charged, nameless])
    waiting.begin()
    # The second write starts from the first.
    await waiting.until(lambda: waiting.api.writes >= 2)
    assert "bootID" not in waiting.api.status
    (row,) = waiting.api.status["pods"]
    assert (row["live"], row.get("charged", {})) == (False, {})
    entry = adopt(waiting.api.status, "boot-after").entries["uid"]
    assert (entry.namespace, entry.name, entry.labels) == ("ns", "pod", {"a": "b"})


async def test_keeps_the_report_of_this_boot(waiting: Waiting) -> None:
    retained = [{"quotas": ["ns/q"], "charge": {"hugepages-2Mi": "8Mi"}}]
    waiting.api.remember(bootID="this-boot", podsResourceVersion="7", retained=retained)
    waiting.begin()
    await waiting.until(lambda: waiting.api.writes)
    kept = {name: waiting.api.status[name] for name in ("bootID", "podsResourceVersion")}
    assert kept == {"bootID": "this-boot", "podsResourceVersion": "7"}
    assert waiting.api.status["retained"] == retained
    assert waiting.api.ready[0] == "False"


async def test_is_not_ready_before_the_first_report(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unusable, "FIRST_BACKOFF", 0.01)
    waiting.api.down = True
    waiting.begin()
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                assert await waiting.probe("/readyz") == 503
                break
            except aiohttp.ClientError:
                await asyncio.sleep(0.01)
    assert await waiting.probe("/healthz") == 200
    waiting.api.down = False
    await waiting.until(lambda: waiting.api.writes)
    assert await waiting.probe("/readyz") == 200


async def test_raises_an_error_if_the_root_is_not_a_host(waiting: Waiting) -> None:
    (waiting.root / "proc/1/mountinfo").unlink()
    with pytest.raises(HostUnreadable):
        await waiting.node.wait(waiting.stop)
