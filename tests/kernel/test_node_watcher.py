"""The watcher on real cgroups: it reports new and removed cgroups, and written limits."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hugetlb_quota.node import kubepods
from hugetlb_quota.node.kubepods import Parents, PodCgroup, Qos
from hugetlb_quota.node.watcher import (
    CgroupEvent,
    Changed,
    Created,
    KubepodsWatcher,
    Overflowed,
    Populated,
    Removed,
)
from tests.testnode import cgroup_tree, naming

SECONDS = 60.0
ID = "1f" * 32
#: A few more than fs.inotify.max_queued_events.
TOO_MANY = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) + 100


class Node:
    """A subtree with kubepods, named as one cgroup driver names it."""

    def __init__(self, parent: Path, driver: naming.Driver) -> None:
        self.parent = parent
        self.driver = driver

    def make_kubepods(self) -> None:
        for qos in ("Guaranteed", "Burstable", "BestEffort"):
            path = self.parent / naming.qos_level(self.driver, qos)
            cgroup_tree.make(self.parent, path)

    def make_pod(self, uid: str, qos: str = "Burstable") -> Path:
        path = self.parent / naming.pod_level(self.driver, qos, uid)
        path.mkdir()
        return path

    def make_container(self, pod: Path, container: str = ID) -> Path:
        cgroup_tree.write(pod / "cgroup.subtree_control", "+hugetlb")
        path = pod / naming.container_name(self.driver, container)
        path.mkdir()
        return path


@pytest.fixture(params=naming.DRIVERS)
def node(request: pytest.FixtureRequest, cgroup_subtree: Path) -> Node:
    return Node(cgroup_subtree, request.param)


class Watch:
    """A running watcher, and all events so far."""

    def __init__(self, node: Node, watcher: KubepodsWatcher | None = None) -> None:
        self.watcher = watcher or KubepodsWatcher(Parents(lambda: (node.parent,)))
        self.events: list[CgroupEvent] = []

    async def follow(self) -> None:
        async for event in self.watcher:
            self.events.append(event)

    async def until(self, event: CgroupEvent) -> None:
        async with asyncio.timeout(SECONDS):
            while event not in self.events:
                await asyncio.sleep(0.005)


@pytest.fixture
async def watch(node: Node) -> AsyncIterator[Watch]:
    watch = Watch(node)
    with watch.watcher:
        watch.events += watch.watcher.scan()
        following = asyncio.create_task(watch.follow())
        yield watch
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_reports_a_pod_that_comes_and_goes(node: Node, watch: Watch) -> None:
    node.make_kubepods()
    for qos, level in (("Burstable", Qos.BURSTABLE), ("Guaranteed", Qos.GUARANTEED)):
        path = node.make_pod("aa-bb", qos)
        pod = PodCgroup("aa-bb", level, path)
        await watch.until(Changed(pod))
        assert list(watch.watcher.pods) == [pod]
        path.rmdir()
        await watch.until(Removed(pod))
        assert list(watch.watcher.pods) == []


async def test_the_scan_reports_existing_pods(node: Node) -> None:
    node.make_kubepods()
    path = node.make_pod("before")
    node.make_container(path)
    with KubepodsWatcher(Parents(lambda: (node.parent,))) as watcher:
        assert watcher.scan() == [Changed(PodCgroup("before", Qos.BURSTABLE, path))]


async def test_sees_a_whole_tree_that_is_created_at_once(node: Node, watch: Watch) -> None:
    """The tree grows faster than the watcher adds watches; the listings find the rest."""
    node.make_kubepods()
    paths = {f"pod-{n}": node.make_pod(f"pod-{n}") for n in range(50)}
    for path in paths.values():
        node.make_container(path)
    for uid, path in paths.items():
        await watch.until(Changed(PodCgroup(uid, Qos.BURSTABLE, path)))


@pytest.mark.parametrize("file", ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"])
async def test_reports_a_written_limit(node: Node, watch: Watch, file: str) -> None:
    node.make_kubepods()
    path = node.make_pod("p")
    container = node.make_container(path)
    pod = PodCgroup("p", Qos.BURSTABLE, path)
    await watch.until(Changed(pod))
    for cgroup in (path, container):
        await asyncio.sleep(0.05)
        watch.events.clear()
        cgroup_tree.write(cgroup / file, "0")
        await watch.until(Changed(pod))


async def test_reports_no_other_write(node: Node, watch: Watch) -> None:
    node.make_kubepods()
    path = node.make_pod("p")
    await watch.until(Changed(PodCgroup("p", Qos.BURSTABLE, path)))
    await asyncio.sleep(0.05)
    watch.events.clear()
    cgroup_tree.write(path / "cgroup.max.depth", "5")
    cgroup_tree.write(path / "cgroup.kill", "1")
    later = PodCgroup("later", Qos.BURSTABLE, node.make_pod("later"))
    await watch.until(Changed(later))
    assert watch.events == [Created(later), Changed(later)]


async def test_reports_all_new_pods_before_it_handles_the_first(node: Node, watch: Watch) -> None:
    node.make_kubepods()
    await watch.until(Changed(PodCgroup("p", Qos.BURSTABLE, node.make_pod("p"))))
    await asyncio.sleep(0.05)
    watch.events.clear()
    # No await here, so that the watcher gets no turn.
    pods = [PodCgroup(f"{n}", Qos.BURSTABLE, node.make_pod(f"{n}")) for n in range(100)]
    await watch.until(Changed(pods[-1]))
    assert watch.events == [*map(Created, pods), *map(Changed, pods)]


async def test_reports_a_container_and_the_inner_cgroup_of_crun(node: Node, watch: Watch) -> None:
    node.make_kubepods()
    path = node.make_pod("p")
    pod = PodCgroup("p", Qos.BURSTABLE, path)
    await watch.until(Changed(pod))
    await asyncio.sleep(0.05)
    watch.events.clear()
    container = node.make_container(path)
    await watch.until(Changed(pod))
    await asyncio.sleep(0.05)
    watch.events.clear()
    (container / "container").mkdir()
    await watch.until(Changed(pod))


async def test_reports_processes_that_come_and_go(node: Node, watch: Watch) -> None:
    node.make_kubepods()
    path = node.make_pod("p")
    container = node.make_container(path)
    pod = PodCgroup("p", Qos.BURSTABLE, path)
    await watch.until(Changed(pod))
    await asyncio.sleep(0.05)
    watch.events.clear()
    process = subprocess.Popen(
        ["sleep", "600"],
        preexec_fn=lambda: cgroup_tree.write(container / "cgroup.procs", "0"),
    )
    await watch.until(Populated(pod))
    await asyncio.sleep(0.05)
    watch.events.clear()
    process.kill()
    process.communicate()
    await watch.until(Populated(pod))
    await asyncio.sleep(0.05)
    watch.events.clear()
    container.rmdir()
    await watch.until(Populated(pod))


async def test_scans_again_after_lost_events(node: Node, watch: Watch) -> None:
    node.make_kubepods()
    gone, stays = node.make_pod("gone"), node.make_pod("stays")
    await watch.until(Changed(PodCgroup("stays", Qos.BURSTABLE, stays)))
    # No await here, so that the watcher gets no turn. The kernel merges equal events in a row.
    for turn in range(TOO_MANY):
        file = "hugetlb.2MB.max" if turn % 2 else "hugetlb.2MB.rsvd.max"
        cgroup_tree.write(stays / file, "max")
    gone.rmdir()
    new = node.make_pod("new")
    await watch.until(Overflowed())
    assert Removed(PodCgroup("gone", Qos.BURSTABLE, gone)) in watch.events
    assert Changed(PodCgroup("new", Qos.BURSTABLE, new)) in watch.events


async def test_follows_kubepods_that_is_created_again(node: Node, watch: Watch) -> None:
    node.make_kubepods()
    cgroup_tree.remove(node.parent / naming.kubepods(node.driver))
    node.make_kubepods()
    path = node.make_pod("p")
    await watch.until(Changed(PodCgroup("p", Qos.BURSTABLE, path)))


async def test_follows_a_cgroup_root_that_comes_later(cgroup_subtree: Path) -> None:
    watch = Watch(later := Node(cgroup_subtree / "later", "systemd"))
    with watch.watcher:
        assert watch.watcher.scan() == []
        following = asyncio.create_task(watch.follow())
        cgroup_tree.make(cgroup_subtree, later.parent)
        later.make_kubepods()
        path = later.make_pod("p")
        await watch.until(Changed(PodCgroup("p", Qos.BURSTABLE, path)))
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
async def test_follows_kubepods_in_a_slice_that_comes_later(
    cgroup_subtree: Path, at_once: bool
) -> None:
    """For example container.slice: systemd creates a slice for the first unit in it."""
    watcher = KubepodsWatcher(Parents(lambda: kubepods.parents(cgroup_subtree, None)))
    watch = Watch(later := Node(cgroup_subtree / "a.slice/a-b.slice", "systemd"), watcher)
    with watcher:
        assert watcher.scan() == []
        following = asyncio.create_task(watch.follow())
        for directory in (later.parent.parent, later.parent):
            cgroup_tree.make(cgroup_subtree, directory)
            await asyncio.sleep(0 if at_once else 0.1)
        later.make_kubepods()
        path = later.make_pod("p")
        await watch.until(Changed(PodCgroup("p", Qos.BURSTABLE, path)))
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_the_scan_finds_a_slice_without_an_event(cgroup_subtree: Path) -> None:
    later = Node(cgroup_subtree / "a.slice", "systemd")
    with KubepodsWatcher(Parents(lambda: kubepods.parents(cgroup_subtree, None))) as watcher:
        watcher.scan()
        cgroup_tree.make(cgroup_subtree, later.parent)
        later.make_kubepods()
        path = later.make_pod("p")
        assert watcher.scan() == [Changed(PodCgroup("p", Qos.BURSTABLE, path))]
