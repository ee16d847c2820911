"""The agent reports to the byte which pages pods leave in files, also after a kill of the agent."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.node.host import HostRoot
from tests import seeds
from tests.kernel.agent_process import (
    MIB,
    SECONDS,
    SOON,
    Agent,
    Api,
    Json,
    Pod,
    bind,
    host_with,
    left,
    limits,
    make_cgroup,
    until,
)
from tests.testnode import cgroup_tree, naming
from tests.tracking import Actor, hand_over


async def two_that_an_agent_saw(
    agent: Agent, api: Api, pod: Callable[[str], Pod]
) -> tuple[Pod, Pod]:
    """Start two pods, wait until the agent has reported both, and kill the agent."""
    await agent.start()
    await agent.ready()
    two = pod("one"), pod("two")
    for each in two:
        await each.start()
    await until(lambda: sorted(api.listed()) == ["one", "two"])
    await agent.end(signal.SIGKILL)
    return two


async def test_the_report_that_ends_a_pod_has_the_pages_that_the_pod_left(
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
    await shared.maps("2Mi")  # private memory, which goes with the pod
    await until(lambda: api.charged() == {"aa-bb": 8})
    assert api.left() == {}
    shared.end()
    await shared.delete()
    await until(lambda: api.listed() == [])
    # Each report has either the live pod or what it left.
    since = next(n for n, report in enumerate(api.reports) if report.get("pods"))
    for report in api.reports[since:]:
        assert any(each["live"] for each in report["pods"]) != bool(left(report))
    assert api.left() == {"aa-bb": 6}
    assert api.entry("aa-bb")["name"] == "aa-bb"
    ended = api.entry("aa-bb")["endedAt"]
    (hugetlbfs / "more").touch()
    (hugetlbfs / "shared").open("rb+").truncate(4 * MIB)
    await until(lambda: api.left() == {"aa-bb": 4}, SOON)
    assert api.entry("aa-bb")["endedAt"] == ended
    (hugetlbfs / "shared").unlink()
    await until(lambda: api.status["pods"] == [], SOON)


@pytest.mark.parametrize("while_down", ["ends", "ends and is deleted", "comes and goes"])
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
    if while_down != "comes and goes":
        await missed.start()
        await until(lambda: api.listed() == ["missed"])
    await agent.end(signal.SIGKILL)
    if while_down == "comes and goes":
        await missed.start()
    await missed.maps("4Mi", f"--file={hugetlbfs / 'file'}")
    missed.end()
    if while_down == "ends and is deleted":
        await missed.delete()
    else:
        await api.set("pods", "ns", "missed", status={"phase": "Succeeded"})
    await agent.start()
    await until(lambda: api.left() == {"missed": 4})
    assert api.listed() == []
    assert api.entry("missed")["name"] == "missed"


async def test_reports_a_pod_that_no_agent_saw_by_its_uid(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
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
    await agent.start()
    await until(lambda: api.left() == {"missed": 4})
    assert int(api.status["podsResourceVersion"]) >= end
    assert (api.entry("missed")["namespace"], api.entry("missed")["name"]) == ("", "")
    since = api.entry("missed")["endedAt"]
    await agent.end(signal.SIGKILL)
    reports = len(api.reports)
    await agent.start()
    await until(lambda: len(api.reports) > reports)
    assert (api.left(), api.entry("missed")["endedAt"]) == ({"missed": 4}, since)


async def test_forgets_the_charges_of_the_last_boot_and_reports_pods_since(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    """The pods ran after a boot, and ended before the agent's first report."""
    pages(6)
    gone: Json = {"uid": "before", "live": False, "charged": {"hugepages-2Mi": "8Mi"}}
    ran: Json = {"uid": "again", "namespace": "ns", "name": "again", "labels": {"a": "b"}}
    ran |= {"live": True, "charged": {"hugepages-2Mi": "8Mi"}}
    pods = [gone | {"endedAt": "2026-01-01T00:00:00Z"}, ran]
    await remember(api, bootID="another", pods=pods)
    again = pod("again")
    await again.start()
    await again.maps("2Mi", f"--file={hugetlbfs / 'other'}")
    again.end()
    await again.delete()
    early = pod("early")
    await early.start()
    await early.maps("4Mi", f"--file={hugetlbfs / 'file'}")
    early.end()
    await api.set("pods", "ns", "early", status={"phase": "Failed"})
    await agent.start()
    await until(lambda: api.left() == {"again": 2, "early": 4})
    assert api.entry("early")["name"] == "early"
    # The API no longer has the pod. Its name comes from the report of the last boot.
    assert (api.entry("again")["name"], api.entry("again")["labels"]) == ("again", {"a": "b"})
    assert [each["uid"] for each in api.status["pods"]] == ["again", "early"]


async def remember(api: Api, **status: Any) -> None:
    """Store a report of an earlier agent."""
    metadata = {"name": "n", "uid": "report-uid", "resourceVersion": "1"}
    api.report = {"metadata": metadata, "spec": {}, "status": status}


@pytest.mark.parametrize(
    "damaged",
    [
        {"pods": "none", "files": 3, "conditions": {}},
        {"pods": [None, {"uid": 7}, {"live": True}], "conditions": [[]], "mounts": [{}]},
    ],
)
async def test_replaces_a_last_report_that_cannot_be_read(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
    damaged: Json,
) -> None:
    pages(4)
    await remember(api, bootID=HostRoot().boot_id(), **damaged)
    first, second = pod("first"), pod("second")
    for each in (first, second):
        await each.start()
        await each.maps("2Mi", f"--file={hugetlbfs / each.uid}")
    first.end()
    await first.delete()
    await agent.start()
    await until(lambda: api.reports)
    await until(lambda: (api.left(), api.listed()) == ({"first": 2}, ["second"]))
    assert api.charged() == {"first": 2, "second": 2}


async def test_two_pods_end_without_an_agent_and_leave_different_sizes(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    pages(8)
    two = await two_that_an_agent_saw(agent, api, pod)
    for each, size in zip(two, ("2Mi", "6Mi"), strict=True):
        await each.maps(size, f"--file={hugetlbfs / each.uid}")
        await each.maps("2Mi")
    for each in two:
        each.end()
        await each.delete()
    await agent.start()
    await until(lambda: api.left() == {"one": 2, "two": 6})
    assert {api.entry(each.uid)["name"] for each in two} == {"one", "two"}


async def test_charges_a_cgroup_below_a_container_to_the_pod(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    """A systemd in a container makes such cgroups. One tree there has kubelet's names."""
    pages(4)
    await agent.start()
    await agent.ready()
    systemd = pod("systemd")
    await systemd.start()
    forged = naming.pod_level("systemd", "Burstable", "forged")
    container = systemd.cgroup / naming.container_name("systemd", "2e" * 32)
    for name in ("init.scope", str(forged)):
        inner = container / name
        cgroup_tree.make(systemd.cgroup, inner.parent)
        inner.mkdir()
        with Actor(inner) as actor:
            actor.do(f"map_pages(1, SHARED, create({str(hugetlbfs / inner.name)!r}))")
            await until(lambda: api.charged() == {"systemd": sum_of(hugetlbfs)})
    systemd.end()
    await systemd.delete()
    await until(lambda: api.left() == {"systemd": 4})


def sum_of(hugetlbfs: Path) -> int:
    return 2 * len(list(hugetlbfs.iterdir()))


@pytest.mark.parametrize("opener", ["the host", "another pod"])
async def test_charges_the_process_that_maps_not_the_process_that_opened(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
    tmp_path: Path,
    opener: str,
) -> None:
    pages(4)
    await agent.start()
    await agent.ready()
    taker, other = pod("taker"), pod("other")
    await taker.start()
    await other.start()
    receiver = taker.actor()
    with Actor() as host:
        giver = host if opener == "the host" else other.actor()
        giver.do(f"fd = create({str(hugetlbfs / 'file')!r})")
        hand_over(giver, receiver, tmp_path / "socket")
        receiver.do("map_pages(2, SHARED, fd)")
    await until(lambda: api.charged() == {"taker": 4})
    for each in (taker, other):
        each.end()
        await each.delete()
    await until(lambda: api.left() == {"taker": 4})


async def test_charges_overlapping_mappings_to_the_first_pod(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    """No agent runs while the pods make the mappings."""
    pages(8)
    two = await two_that_an_agent_saw(agent, api, pod)
    actors = [each.actor() for each in two]
    for actor in actors:
        actor.do(f"fd = create({str(hugetlbfs / 'file')!r})")
    actors[0].do("map_pages(2, SHARED, fd, 1)")
    actors[1].do("map_pages(5, SHARED, fd)")
    actors[0].do("map_pages(6, SHARED, fd)")
    for each in two:
        each.end()
        await each.delete()
    await agent.start()
    await until(lambda: api.left() == {"one": 6, "two": 6})


async def test_a_pod_without_the_controller_does_not_keep_other_pods_charged(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    pages(4)
    level = agent.subtree / naming.qos_level("systemd", "BestEffort")
    cgroup_tree.make(agent.subtree, level)
    cgroup_tree.write(level / "cgroup.subtree_control", "-hugetlb")
    bare = agent.subtree / naming.pod_level("systemd", "BestEffort", "bare")
    bare.mkdir()
    await bind(api, "bare")
    await agent.start()
    await agent.ready()
    fine = pod("fine")
    await fine.start()
    await fine.maps("4Mi", f"--file={hugetlbfs / 'file'}")
    await until(lambda: api.charged() == {"fine": 4})
    fine.end()
    await fine.delete()
    await until(lambda: api.left() == {"fine": 4})
    (hugetlbfs / "file").unlink()
    await until(lambda: [each["uid"] for each in api.status["pods"]] == ["bare"], SOON)
    assert "+hugetlb" in api.condition("Ready")["message"]


@pytest.mark.parametrize("limit", ["rsvd.max", "max"])
async def test_reports_a_limit_of_kubepods_below_the_demand_of_its_pods(
    agent: Agent, api: Api, limit: str
) -> None:
    kubepods = agent.subtree / naming.kubepods("systemd")
    cgroup_tree.write(kubepods / f"hugetlb.2MB.{limit}", str(4 * MIB))
    await agent.start()
    await agent.ready()
    await bind(api, "first", "4Mi")
    await until(lambda: api.condition("Ready").get("status") == "True")
    await bind(api, "second", "2Mi")
    await until(lambda: api.condition("Ready").get("status") == "False", SOON)
    assert (
        "kubepods itself is limited to 4Mi of hugepages-2Mi, and its pods ask for 6Mi"
        in (api.condition("Ready")["message"])
    )


@pytest.mark.parametrize("later", [False, True], ids=["there before", "made later"])
async def test_finds_kubepods_in_another_slice(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
    tmp_path: Path,
    later: bool,
) -> None:
    """The root of the host's cgroup2 is the test's cgroup, and the agent is in a container."""
    pages(4)
    host = host_with(agent.subtree, tmp_path / "host")
    if later:
        agent.cgroup_root = None
        await agent.start(f"--host-root={host}")
        await agent.ready()
    foreign = agent.subtree / "user.slice/app.service"
    agent.cgroup_root, agent.subtree = None, agent.subtree / "container.slice"
    for qos in ("Guaranteed", "Burstable"):
        level = agent.subtree / naming.qos_level("systemd", qos)
        cgroup_tree.make(agent.subtree.parent, level)
    # A tree of another user with the names of kubelet's tree.
    forged = foreign / naming.pod_level("systemd", "Burstable", "forged")
    cgroup_tree.make(agent.subtree.parent, forged.parent)
    forged.mkdir()
    if not later:
        await agent.start(f"--host-root={host}")
        await agent.ready()
    deep = pod("deep")
    await deep.start()
    await until(lambda: limits(deep.cgroup) == ("8", "8"))
    with Actor(forged) as actor:
        actor.do(f"map_pages(1, SHARED, create({str(hugetlbfs / 'forged')!r}))")
        await deep.maps("2Mi", f"--file={hugetlbfs / 'deep'}")
        await until(lambda: api.charged() == {"deep": 2})
    deep.end()
    await deep.delete()
    await until(lambda: api.left() == {"deep": 2})
    files = {each["path"]: each for each in api.status["files"] if each["mount"] == str(hugetlbfs)}
    assert (files["deep"]["uid"], files["forged"]["uid"]) == ("deep", "")


async def test_many_labels_do_not_make_a_report_too_large(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    pages(2)
    await agent.start()
    await agent.ready()
    much = pod("much")
    await much.start()
    labels = {f"long-{number}": "v" * 60 for number in range(4000)} | {"app": "web"}
    await api.set("pods", "ns", "much", metadata={"labels": labels})
    await much.maps("2Mi", f"--file={hugetlbfs / 'file'}")
    await until(lambda: api.entry("much").get("labelsLeftOut"))
    entry = api.entry("much")
    assert len(entry["labels"]) + entry["labelsLeftOut"] == 4001
    assert entry["labels"]["app"] == "web"
    assert len(json.dumps(entry)) < 16 << 10
    # An agent that starts with only its last report writes the same labels again.
    await agent.end(signal.SIGKILL)
    much.end()
    await much.delete()
    await agent.start()
    await until(lambda: api.left() == {"much": 2})
    assert api.entry("much")["labels"] == entry["labels"]
    assert api.entry("much")["labelsLeftOut"] == entry["labelsLeftOut"]


async def test_a_kill_at_any_moment_changes_nothing(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
) -> None:
    dice = random.Random(seeds.seed())
    pages(12)
    await agent.start()
    await agent.ready()
    stopping = asyncio.Event()

    async def kill_and_start() -> None:
        while not stopping.is_set():
            # The agent takes about a second to start.
            await asyncio.sleep(dice.uniform(0.0, 3.0))
            await agent.end(signal.SIGKILL)
            await asyncio.sleep(dice.uniform(0.0, 0.3))
            await agent.start()
            if dice.random() < 0.5:
                # Without this wait the agent may never become ready on a busy machine.
                await agent.ready()

    killer = asyncio.create_task(kill_and_start())
    expected: dict[str, int] = {}
    try:
        for number in range(5):
            each = pod(f"pod-{number}")
            await each.start()
            size = dice.choice([2, 4])
            # If no agent sees the pod, no report has its name.
            await until(lambda uid=each.uid: uid in api.listed())  # type: ignore[misc]
            await asyncio.sleep(dice.uniform(0, 0.5))
            await each.maps(f"{size}Mi", f"--file={hugetlbfs / each.uid}")
            expected[each.uid] = size
            await asyncio.sleep(dice.uniform(0, 0.5))
            each.end()
            await each.delete()
            if dice.random() < 0.3:
                gone = dice.choice(sorted(expected))
                (hugetlbfs / gone).unlink()
                del expected[gone]
    finally:
        stopping.set()
        await killer
    async with asyncio.timeout(SECONDS):
        await agent.ready()
    await until(lambda: (api.listed(), api.left()) == ([], expected))
    assert all(each["name"] == each["uid"] for each in api.status["pods"])
    # Later reports are right too.
    before = len(api.reports)
    make_cgroup(agent, "other")
    await bind(api, "other")
    await until(lambda: len(api.reports) > before)
    assert api.left() == expected
    kubepods = agent.subtree / naming.kubepods("systemd")
    held = int((kubepods / "hugetlb.2MB.rsvd.current").read_text())
    assert held == sum(expected.values()) * MIB
