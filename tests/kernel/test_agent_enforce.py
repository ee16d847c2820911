"""The Enforcer on real cgroups, with real processes and real huge pages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.plan import Allowance
from hugetlb_quota.agent import enforce
from hugetlb_quota.agent.enforce import Enforcer
from hugetlb_quota.node import cgroup as cgroups
from hugetlb_quota.node.cgroup import Limit, read_limit, read_use
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.kubepods import Parents, PodCgroup, Qos
from hugetlb_quota.node.pools import page_sizes
from hugetlb_quota.node.watcher import CgroupEvent, Created, KubepodsWatcher
from hugetlb_quota.page_size import PageSize
from tests.testnode import cgroup_tree, naming
from tests.turns import Turns
from tests.workloads import command

MIB = 1 << 20
SIZE = PageSize(2 * MIB)
SECONDS = 60.0
ID = "1f" * 32
UNBOUNDED = (None, None)


def allowed(mib: int, own: int | None = None) -> Allowance:
    """Return the allowance of a pod in MiB; ``own`` is its container's own request."""
    pod = Charge({SIZE: mib * MIB})
    return Allowance(pod, {} if own is None else {ID: Charge({SIZE: own * MIB})})


class Node:
    """Makes cgroups as kubelet does, and has an enforcer for them."""

    def __init__(self, parent: Path, driver: naming.Driver, *, mirror: bool) -> None:
        self.parent = parent
        self.driver = driver
        self.allowances: dict[str, Allowance] = {}
        self.watcher = KubepodsWatcher(Parents(lambda: (parent,)))
        self.enforcer = Enforcer(
            self.watcher,
            page_sizes(HostRoot()),
            self.allowances.get,
            lambda: None,
            mirror=mirror,
        )
        for qos in ("Guaranteed", "Burstable", "BestEffort"):
            cgroup_tree.make(parent, parent / naming.qos_level(driver, qos))

    def make_pod(self, uid: str, kubelet: int | None) -> Path:
        """Make a pod's cgroup; ``kubelet`` is its ``max`` in MiB, as kubelet before 1.29 writes."""
        path = self.parent / naming.pod_level(self.driver, "Burstable", uid)
        cgroup_tree.make(self.parent, path)
        if kubelet is not None:
            cgroup_tree.write_limits(path, {SIZE.bytes: kubelet * MIB})
        return path

    def make_container(self, pod: Path) -> Path:
        path = pod / naming.container_name(self.driver, ID)
        path.mkdir()
        return path


@contextlib.asynccontextmanager
async def enforced(parent: Path, driver: naming.Driver, *, mirror: bool) -> AsyncIterator[Node]:
    node = Node(parent, driver, mirror=mirror)
    with node.watcher:
        await node.enforcer.full_pass()
        passes = node.enforcer.pass_now_and_then(asyncio.Event())
        parts = [node.enforcer.follow(), node.enforcer.retry(), passes]
        tasks = [asyncio.create_task(part) for part in parts]
        yield node
        for task in tasks:
            assert not task.done(), task  # no event may end a task
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(params=naming.DRIVERS)
async def node(request: pytest.FixtureRequest, cgroup_subtree: Path) -> AsyncIterator[Node]:
    async with enforced(cgroup_subtree, request.param, mirror=True) as node:
        yield node


def limits(cgroup: Path, size: PageSize = SIZE) -> tuple[int | None, int | None]:
    """Return ``rsvd.max`` and ``max`` in MiB."""

    def mib(limit: Limit) -> int | None:
        value = read_limit(cgroup, size, limit)
        return None if value is None else value // MIB

    return mib("rsvd.max"), mib("max")


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():
            await asyncio.sleep(0.005)


def start(cgroup: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("map_pages", *arguments),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: cgroup_tree.write(cgroup / "cgroup.procs", "0"),
    )


def result_of(process: subprocess.Popen[str]) -> dict[str, object]:
    """Return the last line that the process printed, from JSON."""
    output, _ = process.communicate(timeout=SECONDS)
    result: dict[str, object] = json.loads(output.splitlines()[-1])
    return result


async def test_a_full_pass_lets_other_tasks_run(node: Node) -> None:
    """Otherwise a new pod would wait for all pods of the pass."""
    for number in range(20):
        node.make_pod(f"p{number}", kubelet=8)
    await until(lambda: len(node.watcher.pods) == 20)
    others = Turns()
    task = asyncio.create_task(others.run())
    await node.enforcer.full_pass()
    turns = others.count
    task.cancel()
    # After each four pods, once while the pods are listed and once while they are enforced.
    assert turns >= 2 * 20 // 4


async def test_the_limit_is_in_place_before_the_first_process_maps(
    node: Node, pages: Callable[[int], None]
) -> None:
    """Make a pod, its container and its process without a pause, ten times.

    Kubelet's limit allows the whole mapping, so only the agent's limit can refuse it.
    """
    pages(16)

    def run(uid: str) -> dict[str, object]:
        pod = node.make_pod(uid, kubelet=32)
        return result_of(start(node.make_container(pod), "16Mi", "--map-first"))

    for number in range(10):
        uid = f"quick-{number}"
        node.allowances[uid] = allowed(8)
        result = await asyncio.to_thread(run, uid)
        assert (result["huge"], result["errno"]) == (0, "ENOMEM")


async def test_limits_the_pod_and_its_container_for_all_page_sizes(node: Node) -> None:
    node.allowances["p"] = allowed(8, own=6)
    pod = node.make_pod("p", kubelet=32)
    container, sandbox = (
        node.make_container(pod),
        pod / naming.container_name(node.driver, "ab" * 8),
    )
    sandbox.mkdir()
    await until(lambda: (limits(pod), limits(container)) == ((8, 8), (6, 6)))
    for size in page_sizes(HostRoot()):
        if size != SIZE:
            assert (limits(pod, size), limits(container, size)) == ((0, 0), (0, 0))
    assert limits(sandbox) == UNBOUNDED
    assert node.enforcer.failures == ()


async def test_limits_the_inner_cgroup_of_crun(node: Node) -> None:
    node.allowances["p"] = allowed(8, own=6)
    outer = node.make_container(node.make_pod("p", kubelet=32))
    cgroup_tree.write(outer / "cgroup.subtree_control", "+hugetlb")
    inner = outer / "container"
    inner.mkdir()
    await until(lambda: limits(inner) == (6, 6))


async def test_mmap_fails_beyond_kubelets_limit_for_an_unseen_pod(
    node: Node, pages: Callable[[int], None]
) -> None:
    pages(16)
    pod = node.make_pod("p", kubelet=8)
    await until(lambda: limits(pod) == (8, 8))
    container = node.make_container(pod)
    assert result_of(start(container, "8Mi", "--map-first"))["errno"] is None
    result = result_of(start(container, "16Mi", "--map-first"))
    assert (result["errno"], result["fallback"]) == ("ENOMEM", 16 * MIB)


async def test_an_unseen_pod_dies_at_the_touch_without_the_mirror(
    cgroup_subtree: Path, pages: Callable[[int], None]
) -> None:
    pages(16)
    async with enforced(cgroup_subtree, "systemd", mirror=False) as node:
        pod = node.make_pod("p", kubelet=8)
        await asyncio.sleep(0.2)
        assert limits(pod) == (None, 8)
        process = start(node.make_container(pod), "16Mi", "--map-first")
        process.communicate(timeout=SECONDS)
        assert process.returncode == -signal.SIGBUS


@pytest.mark.parametrize("file", ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"])
@pytest.mark.parametrize("value", ["0", "max", str(64 * MIB)])
async def test_corrects_a_changed_limit_at_once(node: Node, file: str, value: str) -> None:
    node.allowances["p"] = allowed(8, own=8)
    pod = node.make_pod("p", kubelet=None)
    container = node.make_container(pod)
    await until(lambda: (limits(pod), limits(container)) == ((8, 8), (8, 8)))
    for cgroup in (pod, container):
        cgroup_tree.write(cgroup / file, value)
        assert limits(cgroup) != (8, 8)
        await until(lambda: (limits(pod), limits(container)) == ((8, 8), (8, 8)))


async def test_writes_no_limit_that_is_in_place(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.allowances["p"] = allowed(8)
    pod = node.make_pod("p", kubelet=None)
    await until(lambda: limits(pod) == (8, 8))
    await asyncio.sleep(0.1)
    written: list[object] = []
    monkeypatch.setattr(cgroups, "write_limit", lambda *what: written.append(what))
    await node.enforcer.full_pass()
    assert written == []


async def test_changes_the_limits_when_the_allowance_comes_and_goes(node: Node) -> None:
    pod = node.make_pod("p", kubelet=32)
    await until(lambda: limits(pod) == (32, 32))
    node.allowances["p"] = allowed(8)
    node.enforcer.due()
    await until(lambda: limits(pod) == (8, 8))
    node.allowances["p"] = allowed(12)
    node.enforcer.pod_changed("p")
    assert limits(pod) == (12, 12)
    del node.allowances["p"]
    cgroup_tree.write_limits(pod, {SIZE.bytes: 32 * MIB})
    await until(lambda: limits(pod) == (32, 32))


async def test_a_limit_below_the_use_falls_with_the_use(
    node: Node, pages: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enforce, "RETRY", 0.05)
    pages(8)
    pod = node.make_pod("p", kubelet=16)
    container = node.make_container(pod)
    first, second = start(container, "8Mi", "--hold"), start(container, "4Mi", "--hold")
    try:
        await until(lambda: read_use(pod, SIZE).faulted == 12 * MIB)
        node.allowances["p"] = allowed(2)
        node.enforcer.due()
        await until(lambda: limits(pod) == (12, 12))
        (above,) = node.enforcer.above
        assert "Pod p uses more huge pages than it may: 12Mi of hugepages-2Mi, allowed 2Mi" in above
        assert result_of(start(container, "2Mi"))["errno"] == "ENOMEM"
        first.kill()
        await until(lambda: limits(pod) == (4, 4))
        second.kill()
        await until(lambda: limits(pod) == (2, 2))
        await until(lambda: not node.enforcer.above)
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


async def test_a_pod_that_ends_between_read_and_write_does_not_disturb_other_pods(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = cgroups.write_limit

    def too_late(cgroup: Path, *what: object) -> None:
        if "going" in cgroup.name:
            cgroup.rmdir()
        write(cgroup, *what)  # type: ignore[arg-type]

    monkeypatch.setattr(cgroups, "write_limit", too_late)
    node.allowances.update(going=allowed(8), staying=allowed(8))
    going = node.make_pod("going", kubelet=None)
    staying = node.make_pod("staying", kubelet=None)
    await until(lambda: limits(staying) == (8, 8))
    assert not going.exists()
    assert node.enforcer.failures == ()


async def test_short_lived_pods_leave_nothing_behind(node: Node) -> None:
    def hurry() -> None:
        for number in range(200):
            uid = f"h-{number % 7}"
            pod = node.make_pod(uid, kubelet=8)
            container = node.make_container(pod)
            container.rmdir()
            pod.rmdir()

    node.allowances.update({f"h-{number}": allowed(4) for number in range(4)})
    await asyncio.to_thread(hurry)
    await until(lambda: not node.watcher.pods)
    await asyncio.sleep(0.1)
    assert node.enforcer.failures == node.enforcer.above == ()
    assert node.enforcer._pods == {}


async def test_reports_a_pod_without_the_controller_and_limits_the_others(
    node: Node,
) -> None:
    level = node.parent / naming.qos_level(node.driver, "BestEffort")
    cgroup_tree.write(level / "cgroup.subtree_control", "-hugetlb")
    bare = node.parent / naming.pod_level(node.driver, "BestEffort", "bare")
    node.allowances.update(bare=allowed(8), fine=allowed(8))
    bare.mkdir()
    fine = node.make_pod("fine", kubelet=None)
    await until(lambda: limits(fine) == (8, 8))
    (failure,) = node.enforcer.failures
    assert f"+hugetlb to {level}/cgroup.subtree_control" in failure
    cgroup_tree.write(level / "cgroup.subtree_control", "+hugetlb")
    await node.enforcer.full_pass()
    assert (node.enforcer.failures, limits(bare)) == ((), (8, 8))
    bare.rmdir()


async def test_the_pods_limit_holds_a_container_without_the_controller(node: Node) -> None:
    node.allowances["p"] = allowed(8, own=6)
    pod = node.make_pod("p", kubelet=None)
    cgroup_tree.write(pod / "cgroup.subtree_control", "-hugetlb")
    node.make_container(pod)
    await until(lambda: limits(pod) == (8, 8))
    await node.enforcer.full_pass()
    assert node.enforcer.failures == ()


async def test_forgets_a_pod_that_ended_before_its_turn_in_a_pass(node: Node) -> None:
    pod = node.make_pod("p", kubelet=8)
    await until(lambda: node.watcher.pods)
    (found,) = node.watcher.pods
    pod.rmdir()
    await until(lambda: not node.watcher.pods)
    node.enforcer.enforce(found)
    assert node.enforcer._pods == {}


async def test_limits_a_new_pod_before_any_read(cgroup_subtree: Path) -> None:
    """Kubelet's ``max`` stays until the enforcer handles the pod."""
    path = cgroup_subtree / naming.pod_level("systemd", "Burstable", "new")
    cgroup_tree.make(cgroup_subtree, path)
    pod = PodCgroup("new", Qos.BURSTABLE, path)

    class Watcher:
        async def __aiter__(self) -> AsyncIterator[CgroupEvent]:
            for each in (Created(PodCgroup("gone", Qos.BURSTABLE, path / "gone")), Created(pod)):
                yield each
            await asyncio.Event().wait()

    allowance = Allowance(Charge({SIZE: 8 * MIB}), {}, frozenset())
    watcher = cast(KubepodsWatcher, Watcher())
    sizes = page_sizes(HostRoot())
    enforcer = Enforcer(watcher, sizes, lambda uid: allowance, lambda: None)
    following = asyncio.create_task(enforcer.follow())
    await until(lambda: limits(path) == (8, None))
    assert read_limit(path, sizes[-1], "rsvd.max") == 0
    assert not following.done()
    following.cancel()


async def test_makes_a_pass_after_a_listing_failed(
    cgroup_subtree: Path,
) -> None:
    class Watcher:
        async def __aiter__(self) -> AsyncIterator[CgroupEvent]:
            raise OSError("input/output error")
            yield  # makes this function a generator

    moved = asyncio.Event()
    watcher = cast(KubepodsWatcher, Watcher())
    enforcer = Enforcer(watcher, page_sizes(HostRoot()), lambda uid: None, moved.set)
    following = asyncio.create_task(enforcer.follow())
    async with asyncio.timeout(SECONDS):
        await moved.wait()
    assert not following.done()
    following.cancel()
