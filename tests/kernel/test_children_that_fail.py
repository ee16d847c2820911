"""Processes of the agent that can't start, or end at once: told, and tried ever more slowly."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.agent import track_files
from hugetlb_quota.agent.file_book import FileBook
from hugetlb_quota.agent.memory import Memory
from hugetlb_quota.agent.track_files import FileTracker
from hugetlb_quota.agent.verify_files import FileVerifier
from hugetlb_quota.node import charged_ranges, openers
from hugetlb_quota.node.file_changes import FileChanges
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.hugetlbfs import Superblock, scan
from hugetlb_quota.node.openers import Openers, ResponderEnded
from tests.kernel.agent_process import Agent, Api, until
from tests.testnode import cgroup_tree
from tests.tracking import SMALL, Actor, hugetlbfs, path_of

HOST = HostRoot()


class Waits:
    """Waits of a second and more: noted, and over at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[float] = []
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        monkeypatch.setattr(asyncio, "sleep", self._noted)

    async def _noted(self, seconds: float, *_: Any) -> None:
        if seconds >= 1:
            self.seen.append(seconds)
            seconds = 0
        await self._sleep(seconds)


@pytest.fixture
def mounted(tmp_path: Path, kernel: None) -> Iterator[Superblock]:
    with hugetlbfs(tmp_path / "huge") as superblock:
        yield superblock


@pytest.fixture
def cannot_start(tmp_path: Path) -> str:
    """A Python that says nothing and ends."""
    return "/bin/false"


async def ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_responder_that_can_not_start_again(
    mounted: Superblock, monkeypatch: pytest.MonkeyPatch, cannot_start: str
) -> None:
    told: list[str] = []
    async with Openers(HOST, tell=told.append) as watched:
        assert await watched.watch(mounted)
        waits = Waits(monkeypatch)
        python = openers.sys.executable  # type: ignore[attr-defined]
        monkeypatch.setattr(openers.sys, "executable", cannot_start)  # type: ignore[attr-defined]
        assert watched.pid
        os.kill(watched.pid, signal.SIGKILL)
        await until(lambda: len(waits.seen) >= 5)
        assert waits.seen[:5] == [1, 2, 4, 8, 16]
        assert "ended with status -9" in told[0]
        assert "ended as it was started" in told[1]
        assert "" not in told
        monkeypatch.setattr(openers.sys, "executable", python)  # type: ignore[attr-defined]
        await until(lambda: told[-1] == "")
        assert watched.pid


async def test_a_responder_that_starts_and_ends_at_once(
    mounted: Superblock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Waits(monkeypatch)
    async with Openers(HOST) as watched:
        killed = set[int]()
        while len(waits.seen) < 4:
            pid = watched.pid
            if pid is not None and pid not in killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)
    assert waits.seen[:4] == [1, 2, 4, 8]


async def test_a_responder_that_does_not_start_at_first_is_there_later(
    mounted: Superblock, cgroup_subtree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    class Late(Openers):
        async def __aenter__(self) -> Openers:  # type: ignore[override]
            attempts.append(1)
            if len(attempts) <= 3:
                raise ResponderEnded
            return await super().__aenter__()

    opened: list[str | None] = []
    monkeypatch.setattr(track_files, "Openers", Late)
    monkeypatch.setattr(FileTracker, "_opened", lambda *told: opened.append(told[-1]))
    waits = Waits(monkeypatch)
    memory = Memory.open(tmp_path / "state", HOST.boot_id())
    files = FileTracker(HOST, cgroup_tree.cgroup2_mount(), (cgroup_subtree,), memory)
    pod = cgroup_subtree / "pod"
    pod.mkdir()
    with FileChanges() as changes:
        running = asyncio.create_task(files.run(changes))
        await until(lambda: any("Who opens files" in each for each in files.problems))
        await until(lambda: not any("Who opens files" in each for each in files.problems))
        assert waits.seen[:3] == [1, 2, 4]
        # What was mounted before is watched too.
        assert files._openers is not None
        await until(lambda: mounted.device in files._openers._watched)  # type: ignore[union-attr]
        with Actor(pod) as actor:
            actor.do(f"fd = create({str(mounted.path / 'file')!r})")
            await until(lambda: path_of(pod) in opened)
        await ended(running)
    memory.close()


@pytest.fixture
def asking(cgroup_subtree: Path) -> Iterator[Path]:
    """The cgroup of the process that asks, which no process can enter: it has children."""
    path = cgroup_subtree / "hugetlb-quota-asking"
    path.mkdir()
    cgroup_tree.write(path / "cgroup.subtree_control", "+hugetlb")
    yield path
    if path.exists():
        path.rmdir()


async def test_an_asking_process_that_can_not_start(
    asking: Path, mounted: Superblock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: dict[str, str] = {}
    memory = Memory.open(tmp_path / "state", HOST.boot_id())
    verifier = FileVerifier(FileBook(memory.files), asking, (SMALL,), hidden.__setitem__)
    waits = Waits(monkeypatch)
    running = asyncio.create_task(verifier.run())
    await until(lambda: len(waits.seen) >= 5)
    assert waits.seen[:5] == [1, 2, 4, 8, 16]
    assert "can't enter its cgroup by" in hidden["ranges"]
    assert "(Device or resource busy)" in hidden["ranges"]
    await ended(running)
    memory.close()


async def test_an_asking_process_that_ends_at_each_question(
    cgroup_subtree: Path, mounted: Superblock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: dict[str, str] = {}
    memory = Memory.open(tmp_path / "state", HOST.boot_id())
    book = FileBook(memory.files)
    (mounted.path / "file").touch()
    book.follow(mounted)
    verifier = FileVerifier(book, cgroup_subtree / "asking", (SMALL,), hidden.__setitem__)
    for state in scan(mounted):
        book.found(mounted, state)
    waits = Waits(monkeypatch)
    ask = charged_ranges.ChargedRanges._ask
    kill = True

    async def killed(self: charged_ranges.ChargedRanges, questions: Any) -> Any:
        if kill:
            assert self.pid
            os.kill(self.pid, signal.SIGKILL)
        return await ask(self, questions)

    monkeypatch.setattr(charged_ranges.ChargedRanges, "_ask", killed)
    # Later is now: these are waits too.
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda _, call, *args: loop.call_soon(call, *args))
    running = asyncio.create_task(verifier.run())
    await until(lambda: len(waits.seen) >= 4)
    assert waits.seen[:4] == [1, 2, 4, 8]
    assert "are charged could not be asked" in hidden["ranges"]
    kill = False
    await until(lambda: hidden["ranges"] == "")
    await ended(running)
    memory.close()


async def test_what_is_not_known_is_in_the_condition_exact_until_it_is(
    asking: Path, agent: Agent, api: Api
) -> None:
    await agent.start()
    await agent.ready()
    await until(lambda: api.status)
    await until(lambda: api.exact()["status"] == "False")
    assert "Which pages of files are charged can't be asked" in api.exact()["message"]
    cgroup_tree.write(asking / "cgroup.subtree_control", "-hugetlb")
    await until(lambda: api.exact()["status"] == "True")
