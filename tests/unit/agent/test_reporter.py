"""Reporter: when the reporter makes passes, and when and what it writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent import fit, reporter
from hugetlb_quota.agent.conditions import ready_condition
from hugetlb_quota.agent.pods import NodePods
from hugetlb_quota.agent.reading import Reading
from hugetlb_quota.agent.reporter import Latest, Reporter
from hugetlb_quota.api.node import HugeTLBNodeStatus
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.node.pools import Pool
from hugetlb_quota.page_size import PageSize
from tests.unit.agent.fake_api import FakeApi

Json = dict[str, Any]
SMALL = PageSize(2 << 20)
POOL = Pool(SMALL, None, 8, 8, 0, 0)
OF_NODE = Pool(SMALL, 0, 8, 8, None, 0)


def entry(uid: str, charged: str = "8Mi") -> Json:
    return {
        "uid": uid,
        "namespace": "",
        "name": "",
        "labels": {},
        "cgroup": "",
        "live": True,
        "demand": {},
        "charged": {"hugepages-2Mi": charged},
    }


def charge(mib: int) -> Charge:
    return Charge({SMALL: mib << 20})


class Api(FakeApi):
    """Checks each written status against the CRD's model."""

    async def replace(
        self, resource: Resource, name: str, body: Json, *, subresource: str | None = None
    ) -> Json:
        HugeTLBNodeStatus.model_validate(body["status"])
        return await super().replace(resource, name, body, subresource=subresource)


class Running:
    """A running Reporter. The test decides what the host and the API show."""

    def __init__(self) -> None:
        self.api, self.ready, self.due = Api(), asyncio.Event(), asyncio.Event()
        self.reading = Reading(pools=(POOL, OF_NODE))
        self.fails: Exception | None = None
        self.reads = 0
        self.position, self.pods, self.latest = 5, NodePods(), Latest()
        self.problems: tuple[str, ...] = ()
        #: The pauses between passes, in seconds.
        self.pauses: list[float] = []
        #: The number of pauses in which something new comes.
        self.busy = 0
        #: A pause ends only while this is set.
        self.rested = asyncio.Event()
        self.rested.set()
        self.reporter = Reporter(
            self.api,
            "n",
            "boot",
            self,
            self.pods,
            self.latest,
            position=lambda: self.position,
            problems=lambda: self.problems,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) <= self.busy:
            self.due.set()
        await asyncio.sleep(seconds)
        await self.rested.wait()

    async def read(self, largest: int | None) -> Reading:
        self.reads += 1
        if self.fails:
            raise self.fails
        return self.reading

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.002)

    def end(self, position: int) -> None:
        """Let a pod come and go in the API, without a cgroup."""
        pod = Pod("p", "ns", "p", position, {}, demand=charge(8))
        self.pods.changed(None, pod)
        self.pods.changed(pod, None)
        self.position = position
        self.due.set()

    def see(self, *uids: str, mib: int = 8) -> None:
        """Show live cgroups of pods that the API does not have."""
        self.reading = replace(
            self.reading,
            populated=dict.fromkeys(uids, True),
            charged=dict.fromkeys(uids, charge(mib)),
        )
        self.due.set()


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(reporter, "COALESCE", 0.02)
    monkeypatch.setattr(reporter, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(reporter, "LONGEST_BACKOFF", 0.02)
    running = Running()
    task = asyncio.create_task(running.reporter.run(running.ready, running.due))
    yield running
    assert not task.done(), task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_writes_nothing_before_the_pods_are_listed(running: Running) -> None:
    await asyncio.sleep(0.1)
    assert running.api.calls == []


async def test_creates_a_missing_object_owned_by_its_node(
    running: Running,
) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes)
    assert running.api.report is not None
    (owner,) = running.api.report["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "node-uid"}
    status = running.api.status
    assert (status["bootID"], status["podsResourceVersion"]) == ("boot", "5")
    assert [pool.get("numaNode") for pool in status["pools"]] == [None, 0]
    assert status["summary"] == "2Mi: 16Mi/16Mi"
    assert {each["type"]: each["status"] for each in status["conditions"]} == {
        "Ready": "True",
        "ChargeListReadable": "True",
        "MountsHaveRoom": "True",
        "ReportComplete": "True",
    }
    assert "leftOut" not in status


async def test_continues_from_the_last_report(running: Running) -> None:
    gone = {**entry("a"), "live": False, "name": "was", "endedAt": "2026-01-01T00:00:00Z"}
    running.api.remember(bootID="boot", pods=[gone])
    running.reading = replace(running.reading, charged={"a": charge(4)})
    running.ready.set()
    await running.until(lambda: running.api.writes)
    assert running.api.status["pods"] == [{**gone, "charged": {"hugepages-2Mi": "4Mi"}}]
    assert "create hugetlbnodes" not in running.api.calls


async def test_reads_the_last_report_before_the_first_write(running: Running) -> None:
    running.api.down = True
    running.ready.set()
    await running.until(lambda: len(running.api.calls) > 3)
    assert set(running.api.calls) == {"get hugetlbnodes"}
    running.api.down = False
    await running.until(lambda: running.api.writes)


@pytest.mark.parametrize(
    "damaged",
    [
        {"pods": 7, "files": {}, "conditions": "x"},
        {"pods": [{}, None, 3, {"uid": 5}], "files": [[], {"path": "x"}], "conditions": [1, {}]},
        {"pods": [{**entry("a"), "charged": {"hugepages-2Mi": "?"}, "endedAt": "when"}]},
        {"pods": [{**entry(""), "of a newer release": 1}]},
    ],
)
async def test_replaces_a_damaged_report(running: Running, damaged: Json) -> None:
    running.api.remember(bootID="boot", **damaged)
    running.see("b")
    running.ready.set()
    await running.until(lambda: running.api.writes)
    assert running.api.status["pods"] == [entry("b")]


async def test_writes_only_changes(running: Running) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    for _ in range(5):
        running.position = 9  # a new position alone causes no write
        running.due.set()
        await asyncio.sleep(0.03)
    assert running.api.writes == 1
    running.see("a")
    await running.until(lambda: running.api.writes == 2)
    assert running.api.status["pods"] == [entry("a")]
    assert running.api.status["podsResourceVersion"] == "9"


async def test_writes_the_end_of_a_pod_even_if_nothing_else_changes(running: Running) -> None:
    """The controller waits for the version, also if the pod was never in a report."""
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.end(12)
    await running.until(lambda: running.api.writes == 2)
    assert running.api.status["podsResourceVersion"] == "12"


async def test_writes_a_burst_of_changes_once(running: Running) -> None:
    running.rested.clear()
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    for number in range(20):
        running.see(f"pod-{number}")
        await asyncio.sleep(0.002)
    running.rested.set()
    await running.until(lambda: running.api.status["pods"] == [entry("pod-19")])
    assert running.api.writes == 2


async def test_pauses_grow_while_each_pass_finds_something_new(running: Running) -> None:
    first, longest = 0.02, reporter.LONGEST_COALESCE
    running.busy = 5
    running.ready.set()
    await running.until(lambda: len(running.pauses) == 6)
    assert running.pauses == [min(first * 2**number, longest) for number in range(6)]
    await asyncio.sleep(2 * longest)  # nothing new comes
    running.see("a")
    await running.until(lambda: len(running.pauses) == 7)
    assert running.pauses[-1] == first


async def test_writes_a_heartbeat(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "HEARTBEAT", 0.1)
    running.ready.set()
    await running.until(lambda: running.api.writes == 3)


async def test_reads_the_object_again_after_another_program_wrote_the_status(
    running: Running,
) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.api.touch()
    running.see("a")
    await running.until(lambda: running.api.status["pods"] == [entry("a")])


async def test_a_changed_spec_does_not_delay_the_report(
    running: Running,
) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    reads = running.reads
    running.api.wish()
    running.see("a")
    await running.until(lambda: running.api.status["pods"] == [entry("a")])
    assert running.reads == reads + 1  # no other pass was needed
    assert running.api.report is not None
    assert running.api.report["spec"] == {"reclaim": []}


async def test_repeats_a_reading_that_is_not_whole(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "AGAIN", 0.02)
    running.reading = replace(running.reading, whole=False)
    running.ready.set()
    await running.until(lambda: running.reads > 2)


async def test_forgets_a_deleted_pod_with_its_cgroup(running: Running) -> None:
    running.see("p")
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.end(7)
    await running.until(lambda: running.api.writes == 2)
    assert running.pods.allowance("p") is not None  # a process of the pod may still run
    assert running.api.status["pods"] == [
        {**entry("p"), "namespace": "ns", "name": "p", "demand": {"hugepages-2Mi": "8Mi"}}
    ]
    running.see()
    await running.until(lambda: running.api.status["pods"] == [])
    assert running.pods.allowance("p") is None


async def test_reports_limits_of_kubepods_that_are_too_low(running: Running) -> None:
    running.pods.changed(None, Pod("p", "ns", "p", 1, {}, demand=charge(8)))
    running.reading = replace(running.reading, ceiling=charge(0))
    running.problems = ("One.",)
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    ready = running.api.status["conditions"][0]
    assert ready["status"] == "False"
    assert (
        "One. kubepods itself is limited to 0 of hugepages-2Mi, and its pods ask for 8Mi"
        in (ready["message"])
    )


async def test_creates_a_deleted_object_again_for_the_current_node(running: Running) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.api.report, running.api.node = None, {"metadata": {"name": "n", "uid": "new-uid"}}
    running.see("a")
    await running.until(lambda: running.api.report and "status" in running.api.report)
    assert running.api.report is not None
    assert running.api.report["metadata"]["ownerReferences"][0]["uid"] == "new-uid"


async def test_waits_for_its_node(running: Running) -> None:
    running.api.node = None
    running.ready.set()
    await running.until(lambda: len(running.api.calls) > 4)
    assert running.api.report is None
    running.api.node = {"metadata": {"name": "n", "uid": "node-uid"}}
    await running.until(lambda: running.api.writes)


async def test_writes_after_the_api_comes_back(running: Running) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.api.down = True
    running.end(12)
    await running.until(lambda: running.api.writes > 3)
    assert running.api.status["podsResourceVersion"] == "5"
    running.api.down = False
    await running.until(lambda: running.api.status["podsResourceVersion"] == "12")


async def test_a_report_that_leaves_out_pods_proves_no_end(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "MOST", 250)
    running.see("a", "b")
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.see(*"abcdef")
    running.end(9)
    await running.until(lambda: running.api.writes == 2)
    status = running.api.status
    assert {"a", "b"} <= {each["uid"] for each in status["pods"]}
    assert status["leftOut"] == {"files": 0, "labels": 0, "pods": 6 - len(status["pods"])}
    # A pod that is left out may have ended.
    assert status["podsResourceVersion"] == "5"
    complete = status["conditions"][-1]
    assert (complete["status"], complete["reason"]) == ("False", "TooLarge")
    assert f"Left out: {6 - len(status['pods'])} pods (" in complete["message"]
    running.see("a")
    await running.until(lambda: running.api.writes == 3)
    assert running.api.status["podsResourceVersion"] == "9"
    assert "leftOut" not in running.api.status


async def test_proves_no_more_than_the_last_report_after_a_restart(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "MOST", 250)
    pods = [entry("e"), entry("f")]
    running.api.remember(bootID="boot", podsResourceVersion="4", pods=pods)
    running.see(*"abcdef")
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    assert {"e", "f"} <= {each["uid"] for each in running.api.status["pods"]}
    assert running.api.status["podsResourceVersion"] == "4"


async def test_writes_no_report_of_an_unreadable_host(running: Running) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.fails = OSError("input/output error")
    running.due.set()
    await asyncio.sleep(0.1)
    assert running.api.writes == 1
    running.fails = None
    running.see("a")
    await running.until(lambda: running.api.writes == 2)


async def test_continues_after_an_unexpected_value(running: Running) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.fails = ValueError("no number")
    running.due.set()
    await running.until(lambda: running.reads >= 3)
    running.fails = None
    running.see("a")
    await running.until(lambda: running.api.writes == 2)


async def test_writes_again_after_the_object_is_gone(
    running: Running,
) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.reporter.write_anew()
    running.due.set()
    await running.until(lambda: running.api.writes == 2)


async def test_reports_the_lower_position_after_etcd_was_restored(
    running: Running,
) -> None:
    running.ready.set()
    await running.until(lambda: running.api.writes == 1)
    running.position = 3
    running.see("a")
    await running.until(lambda: running.api.writes == 2)
    assert running.api.status["podsResourceVersion"] == "3"


def test_a_condition_keeps_the_time_of_its_last_transition() -> None:
    first = ready_condition((), {}, "T1")
    assert first["lastTransitionTime"] == "T1"
    assert ready_condition((), first, "T2") == first
    broken = ready_condition(("One.", "Two."), first, "T3")
    assert (broken["status"], broken["message"]) == ("False", "One. Two.")
    assert ready_condition(("One.",), broken, "T4")["lastTransitionTime"] == "T3"
    assert ready_condition((), broken, "T5")["lastTransitionTime"] == "T5"


def test_counts_problems_beyond_the_first_five() -> None:
    message = ready_condition(tuple(f"P{n}." for n in range(8)), {}, "T")["message"]
    assert message == "P0. P1. P2. P3. P4. And 3 more."
