"""When and how a report is written."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.agent import report
from hugetlb_quota.agent.conditions import ready_condition
from hugetlb_quota.agent.governance import Governance
from hugetlb_quota.agent.ledger import Ledger
from hugetlb_quota.agent.memory import Memory
from hugetlb_quota.agent.observe import Observer, Snapshot
from hugetlb_quota.agent.report import Reporter
from hugetlb_quota.agent.track import Tracker
from hugetlb_quota.api.node import HugeTLBNodeStatus
from hugetlb_quota.kube.errors import AlreadyExists, ApiUnreachable, Conflict, NotFound
from hugetlb_quota.kube.resources import NODES, Resource
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.pools import Pool
from hugetlb_quota.page_size import PageSize

Json = dict[str, Any]
POOL = Pool(PageSize(2 << 20), None, 8, 8, 0, 0)
OF_NODE = Pool(PageSize(2 << 20), 0, 8, 8, None, 0)


def entry(uid: str) -> Json:
    return {
        "uid": uid,
        "namespace": "ns",
        "name": uid,
        "quotas": ["ns/q"],
        "charge": {"hugepages-2Mi": "8Mi"},
        "inUse": {},
    }


class Api:
    """The two objects a reporter deals with, with the API server's manners."""

    def __init__(self) -> None:
        self.node: Json | None = {"metadata": {"name": "n", "uid": "node-uid"}}
        self.report: Json | None = None
        self.version = 10
        self.calls: list[str] = []
        self.down = False

    async def get(self, resource: Resource, name: str) -> Json:
        self._call("get", resource)
        found = self.node if resource == NODES else self.report
        if found is None:
            raise NotFound(404, "NotFound", f"{resource} {name} not found")
        return found

    async def create(self, resource: Resource, body: Json) -> Json:
        self._call("create", resource)
        if self.report is not None:
            raise AlreadyExists(409, "AlreadyExists", "there is one")
        assert "status" not in body
        return self._store({**body, "metadata": {**body["metadata"], "uid": "report-uid"}})

    async def replace(
        self, resource: Resource, name: str, body: Json, *, subresource: str | None = None
    ) -> Json:
        self._call("replace", resource)
        assert subresource == "status"
        if self.report is None:
            raise NotFound(404, "NotFound", "gone")
        for field in ("resourceVersion", "uid"):
            if body["metadata"][field] != self.report["metadata"][field]:
                raise Conflict(409, "Conflict", "it changed")
        HugeTLBNodeStatus.model_validate(body["status"])  # the CRD's own model
        return self._store({**self.report, "status": body["status"]})

    def touch(self) -> None:
        """Somebody else writes the report."""
        assert self.report is not None
        self._store(self.report)

    @property
    def status(self) -> Json:
        assert self.report is not None
        status: Json = self.report.get("status", {})
        return status

    @property
    def writes(self) -> int:
        return sum(call.startswith("replace") for call in self.calls)

    def _store(self, body: Json) -> Json:
        self.version += 1
        self.report = {
            **body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}
        }  # fmt: skip
        return self.report

    def _call(self, verb: str, resource: Resource) -> None:
        self.calls.append(f"{verb} {resource.plural}")
        if self.down:
            raise ApiUnreachable("The API server can't be reached.")


class Scripted(Observer):
    """An observer that sees what it is told to."""

    def __init__(self) -> None:
        host = HostRoot(Path("/nowhere"))
        memory = Memory(sqlite3.connect(":memory:"), None, None)
        tracker = Tracker((), (), Ledger(memory))
        super().__init__(
            *(host, host.path, tracker, Governance()),
            seen_since=lambda: 0,
            seen_up_to=lambda: 0,
        )
        self.sees = Snapshot(2, 5, 0, (), (POOL, OF_NODE))
        self.fails: Exception | None = None
        self.carried: list[Any] = []

    def snapshot(self) -> Snapshot:
        if self.fails:
            raise self.fails
        return self.sees

    def carry_over(self, last: Any) -> None:
        self.carried.append(last)


class Running:
    def __init__(self) -> None:
        self.api, self.observer, self.ready = Api(), Scripted(), asyncio.Event()
        self.reporter = Reporter(self.api, "n", "boot", self.observer)

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.002)

    def see(self, **changes: Any) -> None:
        self.observer.sees = self.observer.sees.__class__(
            **{**{f: getattr(self.observer.sees, f) for f in Snapshot.__slots__}, **changes}
        )
        self.reporter.nudge()


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(report, "COALESCE", 0.02)
    monkeypatch.setattr(report, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(report, "LONGEST_BACKOFF", 0.02)
    running = Running()
    task = asyncio.create_task(running.reporter.run(running.ready))
    yield running
    assert not task.done(), task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_nothing_is_written_before_pods_and_quotas_are_known(running: Running) -> None:
    await asyncio.sleep(0.1)
    assert running.api.calls == []


async def test_the_object_is_made_when_it_is_missing_and_owned_by_its_node(
    running: Running,
) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes)
    assert running.api.report is not None
    (owner,) = running.api.report["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "node-uid"}
    status = running.api.status
    assert (status["bootID"], status["podsResourceVersion"]) == ("boot", "5")
    assert (status["podsSince"], status["settled"]) == ("2", [])
    assert [pool.get("numaNode") for pool in status["pools"]] == [None, 0]
    assert status["conditions"][0]["status"] == "True"


async def test_it_goes_on_from_the_last_report_and_writes_over_it(running: Running) -> None:
    metadata = {"name": "n", "uid": "report-uid", "resourceVersion": "3"}
    old = {"bootID": "boot", "pods": [entry("a")]}
    running.api.report = {"metadata": metadata, "status": old}
    running.ready.set()
    await running.until(lambda: running.api.writes)
    assert running.observer.carried == [old]
    assert "create hugetlbnodes" not in running.api.calls


async def test_the_last_report_must_be_read_before_the_first_is_written(running: Running) -> None:
    running.api.down = True
    running.ready.set()
    await running.until(lambda: len(running.api.calls) > 3)
    assert set(running.api.calls) == {"get hugetlbnodes"}
    running.api.down = False
    await running.until(lambda: running.api.writes)
    assert running.observer.carried == [None]


async def test_a_change_is_written_and_the_same_is_not(running: Running) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    for _ in range(5):
        running.see(pods_resource_version=9)  # alone it is no news
        await asyncio.sleep(0.03)
    assert running.api.writes == 1
    running.see(pods=(entry("a"),))
    await running.until(lambda: running.api.writes == 2)
    assert running.api.status["pods"] == [entry("a")]
    assert running.api.status["podsResourceVersion"] == "9"


async def test_an_end_is_written_even_if_it_changes_nothing_else(running: Running) -> None:
    """Its charge waits for the version, also of a pod that was never listed."""
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.see(pods_resource_version=12, ends=1)
    await running.until(lambda: running.api.writes == 2)
    assert running.api.status["podsResourceVersion"] == "12"


async def test_a_burst_is_one_write(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "COALESCE", 0.2)
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    for number in range(20):
        running.see(pods=(entry(f"pod-{number}"),))
        await asyncio.sleep(0.002)
    await running.until(lambda: running.api.status["pods"] == [entry("pod-19")])
    assert running.api.writes == 2


async def test_it_is_written_now_and_then_to_show_that_the_agent_lives(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "SAMPLE", 0.01)
    monkeypatch.setattr(report, "HEARTBEAT", 0.1)
    running.ready.set()
    await running.until(lambda: running.api.writes == 3)


async def test_one_that_was_written_past_it_is_read_anew(running: Running) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.api.touch()
    running.see(pods=(entry("a"),))
    await running.until(lambda: running.api.status["pods"] == [entry("a")])


async def test_one_that_was_deleted_is_made_anew_for_the_node_of_now(running: Running) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.api.report, running.api.node = None, {"metadata": {"name": "n", "uid": "new-uid"}}
    running.see(pods=(entry("a"),))
    await running.until(lambda: running.api.report and "status" in running.api.report)
    assert running.api.report is not None
    assert running.api.report["metadata"]["ownerReferences"][0]["uid"] == "new-uid"


async def test_without_its_node_it_waits(running: Running) -> None:
    running.api.node = None
    running.ready.set()
    await running.until(lambda: len(running.api.calls) > 4)
    assert running.api.report is None
    running.api.node = {"metadata": {"name": "n", "uid": "node-uid"}}
    await running.until(lambda: running.api.writes)


async def test_what_was_not_written_is_written_when_the_api_is_back(running: Running) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.api.down = True
    running.see(pods_resource_version=12, ends=1)
    await running.until(lambda: running.api.writes > 3)
    assert running.api.status["podsResourceVersion"] == "5"
    running.api.down = False
    await running.until(lambda: running.api.status["podsResourceVersion"] == "12")


async def test_a_host_that_cannot_be_read_is_not_reported(running: Running) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.observer.fails = OSError("input/output error")
    running.reporter.nudge()
    await asyncio.sleep(0.1)
    assert running.api.writes == 1
    running.observer.fails = None
    running.see(pods=(entry("a"),))
    await running.until(lambda: running.api.writes == 2)


def test_ready_keeps_the_time_of_its_last_transition() -> None:
    first = ready_condition((), {}, "T1")
    assert first["lastTransitionTime"] == "T1"
    assert ready_condition((), first, "T2") == first
    broken = ready_condition(("One.", "Two."), first, "T3")
    assert (broken["status"], broken["message"]) == ("False", "One. Two.")
    assert ready_condition(("One.",), broken, "T4")["lastTransitionTime"] == "T3"
    assert ready_condition((), broken, "T5")["lastTransitionTime"] == "T5"


def test_many_problems_are_counted() -> None:
    message = ready_condition(tuple(f"P{n}." for n in range(8)), {}, "T")["message"]
    assert message == "P0. P1. P2. P3. P4. And 3 more."
