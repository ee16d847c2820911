"""Who opens what is told, none is lost, and no program ever waits for long.

Whatever happens to the agent or to its responder: killed, stopped, slow.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hugetlb_quota.node import responder
from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.node.openers import Closed, Happening, Modified, Opened, Openers, Overflow
from tests.testnode import cgroup_tree
from tests.tracking import HOST, Actor, hugetlbfs, inode, path_of, unmount
from tests.workloads import PYTHON

SECONDS = 20.0
#: The watchdog's looks, its kill, and a machine that is busy.
BOUND = 5.0


@pytest.fixture
def mounted(tmp_path: Path, kernel: None) -> Iterator[Superblock]:
    with hugetlbfs(tmp_path / "huge") as superblock:
        yield superblock


class Watch:
    """Openers that are followed, and all they told."""

    def __init__(self, openers: Openers) -> None:
        self.openers = openers
        self.told: list[Happening] = []

    async def follow(self) -> None:
        async for happening in self.openers:
            self.told.append(happening)

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not holds():
                await asyncio.sleep(0.005)

    async def until_told(self, happening: Happening) -> None:
        await self.until(lambda: happening in self.told)


@asynccontextmanager
async def watching(*superblocks: Superblock, permission: bool = True) -> AsyncIterator[Watch]:
    async with Openers(HOST, permission=permission) as openers:
        for superblock in superblocks:
            assert await openers.watch(superblock)
        watch = Watch(openers)
        following = asyncio.create_task(watch.follow())
        yield watch
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


@pytest.fixture
async def watch(mounted: Superblock) -> AsyncIterator[Watch]:
    async with watching(mounted) as watch:
        yield watch


async def opened_in_time(path: Path, limit: float = BOUND) -> float:
    """Seconds that another process' open(2) of ``path`` takes; fails above ``limit``."""
    with Actor() as actor:
        actor.do("import time")
        actor.tell(
            f"t = time.monotonic(); os.close(create({str(path)!r})); result = time.monotonic() - t"
        )
        async with asyncio.timeout(limit):
            return float(await asyncio.to_thread(actor.hear))


async def test_an_opener_is_told_of_with_its_cgroup(
    mounted: Superblock, watch: Watch, cgroup_subtree: Path
) -> None:
    pod = cgroup_subtree / "pod"
    pod.mkdir()
    path = mounted.path / "file"
    with Actor(pod) as actor:
        actor.do(f"fd = create({str(path)!r})")
        file = (mounted.device, inode(path), actor.pid)
        await watch.until_told(Opened(*file, path_of(pod)))
        actor.do("a = map_pages(1, SHARED | NORESERVE, fd); os.close(fd)")
        await asyncio.sleep(0.05)
        assert Closed(*file) not in watch.told
        actor.do("unmap(a, 1)")
        await watch.until_told(Closed(*file))
    assert len(watch.told) == 2


async def test_who_allocates_is_told_of(
    mounted: Superblock, watch: Watch, pages: Callable[[int], None]
) -> None:
    pages(1)
    path = mounted.path / "file"
    with Actor() as actor:
        actor.do(f"fd = create({str(path)!r}); fallocate(fd, 0, 1)")
        await watch.until_told(Modified(mounted.device, inode(path), actor.pid, "/"))


async def test_the_agents_own_opens_are_not_told_of(mounted: Superblock, watch: Watch) -> None:
    path = mounted.path / "file"
    await asyncio.to_thread(path.touch)
    path.touch()
    with Actor() as actor:
        actor.do(f"create({str(path)!r})")
        await watch.until(lambda: watch.told)
        assert watch.told == [Opened(mounted.device, inode(path), actor.pid, "/")]


async def test_a_file_system_that_is_not_hugetlbfs_any_more_is_not_watched(
    mounted: Superblock, watch: Watch
) -> None:
    unmount(mounted.path)
    assert not await watch.openers.watch(mounted)


async def test_watching_keeps_nothing_from_being_unmounted(
    mounted: Superblock, watch: Watch
) -> None:
    with Actor() as actor:
        actor.do(f"fd = create({str(mounted.path / 'file')!r})")
        await watch.until(lambda: watch.told)
        with pytest.raises(OSError, match="busy"):
            unmount(mounted.path)
        actor.do("os.close(fd)")
        await watch.until(lambda: len(watch.told) == 2)
        unmount(mounted.path)


async def test_another_file_system_at_the_same_place_is_another(
    mounted: Superblock, watch: Watch
) -> None:
    """The device number is the same, most of the time: the mark is not."""
    unmount(mounted.path)
    with hugetlbfs(mounted.path) as new:
        assert new != mounted
        await opened_in_time(new.path / "unseen")
        watch.openers.forget(mounted)
        assert await watch.openers.watch(new)
        await opened_in_time(new.path / "seen")
        await watch.until(lambda: watch.told)
        assert {event.inode for event in watch.told if isinstance(event, Opened)} == {
            inode(new.path / "seen")
        }


async def test_a_bind_mount_in_another_namespace_is_the_same_file_system(
    mounted: Superblock, watch: Watch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "volume"
    elsewhere.mkdir()
    script = f"mount --bind {mounted.path} {elsewhere} && umount {mounted.path} && : >{elsewhere}/x"
    subprocess.run(["unshare", "-m", "sh", "-c", script], check=True, timeout=SECONDS)
    await watch.until(lambda: watch.told)
    first = watch.told[0]
    assert isinstance(first, Opened)
    assert first.inode == inode(mounted.path / "x")


IN_A_CONTAINER = """
import asyncio, os, sys
from pathlib import Path
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.openers import Openers, ResponderEnded
from tests.tracking import at

async def main():
    async with Openers(HostRoot(Path(sys.argv[2]))) as openers:
        assert await openers.watch(at(Path(sys.argv[1])))
        print("watching", flush=True)
        async for happening in openers:
            print(happening.cgroup, flush=True)
            return

try:
    asyncio.run(main())
except ResponderEnded:
    print("ended", flush=True)
"""


@pytest.mark.parametrize("may_enter", [True, False])
async def test_cgroups_are_named_from_the_root_in_a_cgroup_namespace_too(
    mounted: Superblock, cgroup_subtree: Path, tmp_path: Path, may_enter: bool
) -> None:
    """As a container has one; what stands for init is a process outside of it."""
    own, pod = cgroup_subtree / "agent", cgroup_subtree / "pod"
    own.mkdir()
    pod.mkdir()
    host = tmp_path / "host"
    (host / "proc").mkdir(parents=True)
    with Actor() as init, Actor(pod) as opener:
        if may_enter:
            (host / "proc/1").symlink_to(f"/proc/{init.pid}")
        else:
            (host / "proc/1").mkdir()
            (host / "proc/1/cgroup").write_text("0::/../..\n")
        (host / f"proc/{opener.pid}").symlink_to(f"/proc/{opener.pid}")
        agent = subprocess.Popen(
            ["unshare", "-C", sys.executable, "-c", IN_A_CONTAINER, str(mounted.path), str(host)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            preexec_fn=lambda: cgroup_tree.write(own / "cgroup.procs", "0"),
        )
        try:
            assert agent.stdout
            first = await asyncio.to_thread(agent.stdout.readline)
            assert first.strip() == ("watching" if may_enter else "ended")
            if may_enter:
                opener.do(f"create({str(mounted.path / 'file')!r})")
                told = await asyncio.to_thread(agent.stdout.readline)
                assert told.strip() == path_of(pod)
        finally:
            agent.kill()
            agent.communicate()


SWARM = """
import os, sys
directory, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(first, first + count):
    if os.fork() == 0:
        os.open(f"{directory}/{number}", os.O_RDWR | os.O_CREAT)
        os._exit(0)
for _ in range(count):
    os.wait()
"""


async def test_no_opener_is_lost_however_short_it_lives(
    mounted: Superblock, watch: Watch, cgroup_subtree: Path
) -> None:
    cgroups, each = 5, 400
    swarms = []
    for number in range(cgroups):
        cgroup = cgroup_subtree / f"pod-{number}"
        cgroup.mkdir()

        def enter(cgroup: Path = cgroup) -> None:
            cgroup_tree.write(cgroup / "cgroup.procs", "0")

        arguments = [str(mounted.path), str(number * each), str(each)]
        swarms.append(
            subprocess.Popen([PYTHON, "-S", "-E", "-c", SWARM, *arguments], preexec_fn=enter)
        )
    for swarm in swarms:
        assert await asyncio.to_thread(swarm.wait, SECONDS * 3) == 0
    await watch.until(lambda: sum(isinstance(e, Closed) for e in watch.told) == cgroups * each)
    opened = {event.inode: event.cgroup for event in watch.told if isinstance(event, Opened)}
    assert opened == {
        inode(mounted.path / str(number)): path_of(cgroup_subtree / f"pod-{number // each}")
        for number in range(cgroups * each)
    }
    assert Counter(type(event) for event in watch.told) == {
        Opened: cgroups * each,
        Closed: cgroups * each,
    }


async def test_without_permission_events_openers_do_not_wait_and_may_go_unknown(
    mounted: Superblock, cgroup_subtree: Path
) -> None:
    async with watching(mounted, permission=False) as watch:
        pid = watch.openers.pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        assert await opened_in_time(mounted.path / "gone", 0.5) < 0.2
        os.kill(pid, signal.SIGCONT)
        await watch.until(lambda: watch.told)
        (opened, *_) = watch.told
        assert isinstance(opened, Opened)
        assert opened.cgroup is None


# What follows: nobody waits for long.


async def test_a_stopped_responder_is_killed_and_started_again(
    mounted: Superblock, watch: Watch
) -> None:
    before = watch.openers.pid
    assert before
    os.kill(before, signal.SIGSTOP)
    assert await opened_in_time(mounted.path / "a") > 0.1
    await watch.until_told(Overflow())
    assert watch.openers.pid not in (None, before)
    watch.told.clear()
    await opened_in_time(mounted.path / "b")
    await watch.until(lambda: any(isinstance(event, Opened) for event in watch.told))


async def test_a_killed_responder_is_started_again(mounted: Superblock, watch: Watch) -> None:
    before = watch.openers.pid
    assert before
    with Actor() as actor:
        actor.do(f"os.chdir({str(mounted.path)!r})")
        os.kill(before, signal.SIGSTOP)
        actor.tell("create('waits')")
        await asyncio.sleep(0.1)
        os.kill(before, signal.SIGKILL)
        async with asyncio.timeout(BOUND):
            await asyncio.to_thread(actor.hear)
    await watch.until_told(Overflow())
    watch.told.clear()
    await opened_in_time(mounted.path / "b")
    await watch.until(lambda: any(isinstance(event, Opened) for event in watch.told))


async def test_watching_waits_for_a_responder_that_is_being_started_again(
    mounted: Superblock, watch: Watch, tmp_path: Path
) -> None:
    assert watch.openers.pid
    with hugetlbfs(tmp_path / "other") as other:
        os.kill(watch.openers.pid, signal.SIGKILL)
        async with asyncio.timeout(BOUND):
            assert await watch.openers.watch(other)
        await opened_in_time(other.path / "file")
        await watch.until(
            lambda: any(
                isinstance(event, Opened) and event.device == other.device for event in watch.told
            )
        )


async def test_an_opener_that_is_killed_as_it_waits_does_no_harm(
    mounted: Superblock, watch: Watch
) -> None:
    before = watch.openers.pid
    assert before
    with Actor() as actor:
        os.kill(before, signal.SIGSTOP)
        actor.tell(f"create({str(mounted.path / 'waits')!r})")
        await asyncio.sleep(0.1)
        actor.kill()
        os.kill(before, signal.SIGCONT)
    await opened_in_time(mounted.path / "b")
    await watch.until(lambda: any(isinstance(event, Opened) for event in watch.told))
    assert watch.openers.pid == before


async def test_what_the_agent_does_not_take_is_an_overflow(mounted: Superblock) -> None:
    """Nobody reads; the pipe is full; openers are answered all the same."""
    async with Openers(HOST) as openers:
        assert await openers.watch(mounted)
        pid = openers.pid
        with Actor() as actor:
            actor.do(f"os.chdir({str(mounted.path)!r}); create('a')")
            one = len(responder.Record(responder.Kind.OPENED, cgroup=b"/").encoded())
            # Each open is told of by two records, in a pipe of 1 MiB.
            opens = (1 << 20) // one
            took = actor.do(
                "t = time.monotonic()\n"
                f"for _ in range({opens}): os.close(os.open('a', os.O_RDONLY))\n"
                "result = time.monotonic() - t"
            )
            assert took < SECONDS
            told: list[Happening] = []
            async with asyncio.timeout(SECONDS):
                async for happening in openers:
                    told.append(happening)
                    if happening == Overflow():
                        break
        assert openers.pid == pid
        assert 1000 < len(told) < 2 * opens


AGENT = """
import asyncio, sys
from pathlib import Path
from hugetlb_quota.node.openers import Openers
from tests.tracking import HOST, at

async def main():
    async with Openers(HOST) as openers:
        assert await openers.watch(at(Path(sys.argv[1])))
        print(openers.pid, flush=True)
        async for happening in openers:
            print(happening, flush=True)

asyncio.run(main())
"""


@pytest.fixture
def agent(mounted: Superblock) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that uses Openers, and its responder's pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(mounted.path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


async def test_a_stopped_agent_keeps_nobody_waiting(
    mounted: Superblock, agent: tuple[subprocess.Popen[str], int]
) -> None:
    process, _ = agent
    process.send_signal(signal.SIGSTOP)
    # Longer than any alarm or watchdog.
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        assert await opened_in_time(mounted.path / "file", 1.0) < 0.5


async def test_an_agent_that_goes_on_after_a_stop_keeps_its_responder(
    mounted: Superblock, agent: tuple[subprocess.Popen[str], int]
) -> None:
    process, pid = agent
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(2.0)
    process.send_signal(signal.SIGCONT)
    await opened_in_time(mounted.path / "file")
    assert process.stdout
    assert "Opened" in await asyncio.to_thread(process.stdout.readline)
    assert alive(pid)


async def test_a_killed_agent_takes_its_responder_along(
    mounted: Superblock, agent: tuple[subprocess.Popen[str], int]
) -> None:
    process, pid = agent
    with Actor() as actor:
        # The responder can't answer nor see its agent's end: the kernel ends it.
        os.kill(pid, signal.SIGSTOP)
        actor.tell(f"create({str(mounted.path / 'waits')!r})")
        await asyncio.sleep(0.1)
        process.kill()
        async with asyncio.timeout(1.0):
            await asyncio.to_thread(actor.hear)
    async with asyncio.timeout(SECONDS):
        while alive(pid):
            await asyncio.sleep(0.01)


async def test_a_responder_whose_turn_hangs_ends_itself(
    mounted: Superblock, agent: tuple[subprocess.Popen[str], int], tmp_path: Path
) -> None:
    """With its agent stopped. What it hangs in is a FIFO where it looks for processes."""
    process, _ = agent
    process.kill()
    proc = tmp_path / "proc"
    (proc / "1").mkdir(parents=True)
    (proc / "1" / "cgroup").write_text("0::/\n")
    script = f"""
import asyncio, os, signal, sys
from pathlib import Path
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.openers import Openers
from tests.tracking import at

async def main():
    async with Openers(HostRoot(Path({str(tmp_path)!r}))) as openers:
        assert await openers.watch(at(Path({str(mounted.path)!r})))
        print(openers.pid, flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)

asyncio.run(main())
"""
    stopped = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert stopped.stdout
        pid = int(stopped.stdout.readline())
        with Actor() as actor:
            (proc / str(actor.pid)).mkdir()
            os.mkfifo(proc / str(actor.pid) / "cgroup")
            actor.tell(
                "t = time.monotonic();"
                f"create({str(mounted.path / 'waits')!r});"
                "result = time.monotonic() - t"
            )
            async with asyncio.timeout(BOUND):
                took = await asyncio.to_thread(actor.hear)
        assert 0.3 < took < 2.0
        # Its agent is stopped, so nobody else has ended it.
        async with asyncio.timeout(BOUND):
            while alive(pid):
                await asyncio.sleep(0.01)
    finally:
        stopped.kill()
        stopped.communicate()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False
