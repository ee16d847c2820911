"""The reader's process: its rights, its answers to wrong requests, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hugetlb_quota.node.charge_reader import ChargeListUnreadable, ChargeReader
from tests.kernel.charge_reading import equal, file_of, regions
from tests.tracking import Actor

CAP_PERFMON, CAP_BPF = 38, 39
ONLY = 1 << CAP_PERFMON | 1 << CAP_BPF
HEAD = struct.Struct("=IHHQIIQ")
READY, REST, MOVED, ERROR = 1, 2, 3, 4


@contextmanager
def started(program: Path, *through: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*through, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def answer(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Read an answer; return its status and payload."""
    assert process.stdout
    magic, protocol, status, length, *_ = HEAD.unpack(process.stdout.read(HEAD.size))
    assert (magic, protocol) == (0x4C435148, 1)
    return status, process.stdout.read(length)


def send(process: subprocess.Popen[bytes], request: bytes) -> tuple[int, bytes]:
    """Send a request; return the status and the payload of its answer."""
    assert process.stdin
    process.stdin.write(request)
    process.stdin.flush()
    return answer(process)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_keeps_two_capabilities_and_becomes_nobody(kernel: None, reader_program: Path) -> None:
    with started(reader_program) as process:
        assert answer(process) == (READY, b"")
        status = status_of(process.pid)
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {ONLY}
        assert {int(status[name], 16) for name in ("CapInh", "CapAmb")} == {0}
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65534"}
        assert (status["Groups"], status["NoNewPrivs"]) == ("", "1")
        assert send(process, b"r")[0] in (REST, MOVED)


def test_runs_as_another_user_with_only_the_two_capabilities(
    kernel: None, reader_program: Path
) -> None:
    caps = "bpf,+perfmon"
    through = [
        *("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"),
        *(
            f"--inh-caps=-all,+{caps}",
            f"--ambient-caps=-all,+{caps}",
            "--bounding-set=-all,+" + caps,
        ),
    ]
    with started(reader_program, *through) as process:
        assert answer(process) == (READY, b"")
        status = status_of(process.pid)
        assert status["Uid"].split()[0] == "12345"
        assert int(status["CapEff"], 16) == ONLY
        assert int(status["CapAmb"], 16) == 0
        assert send(process, b"r")[0] in (REST, MOVED)


@pytest.mark.parametrize("lacking", ["bpf", "perfmon"])
def test_says_that_a_capability_is_missing(
    kernel: None, reader_program: Path, lacking: str
) -> None:
    kept = "perfmon" if lacking == "bpf" else "bpf"
    through = [
        *("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"),
        *(f"--inh-caps=-all,+{kept}", f"--ambient-caps=-all,+{kept}"),
    ]
    with started(reader_program, *through) as process:
        status, sentence = answer(process)
        assert status == ERROR
        assert b"CAP_BPF and CAP_PERFMON" in sentence
        assert process.wait(10) == 1


@pytest.mark.parametrize("request_", [b"\0", b"R", b"\xff", b"\n"])
def test_refuses_unknown_requests(kernel: None, reader_program: Path, request_: bytes) -> None:
    with started(reader_program) as process:
        answer(process)
        status, sentence = send(process, request_)
        assert (status, sentence) == (
            ERROR,
            f"The reader does not understand request 0x{request_[0]:02x}.".encode(),
        )
        assert send(process, b"r")[0] in (REST, MOVED)
        # The reader answers several requests one by one.
        assert process.stdin
        process.stdin.write(b"xrx")
        process.stdin.flush()
        assert [answer(process)[0] in (REST, MOVED) for _ in range(3)] == [False, True, False]


def test_ends_when_its_input_ends(kernel: None, reader_program: Path) -> None:
    with started(reader_program) as process:
        answer(process)
        assert process.stdin
        process.stdin.close()
        assert process.wait(10) == 0


def test_ends_when_its_parent_ends(kernel: None, reader_program: Path) -> None:
    """The reader ends even if another process has the other end of its input open."""
    keep, theirs = os.pipe()
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([{str(reader_program)!r}], stdin={keep}, stdout=-1)\n"
        "child.stdout.read(32); print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, pass_fds=[keep]
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        descriptor = os.pidfd_open(child)
        parent.kill()
    # A pidfd is readable when its process has ended, also in a process that is not the parent.
    assert select.select([descriptor], [], [], 20)[0] == [descriptor]
    for each in (keep, theirs, descriptor):
        os.close(each)


async def test_a_killed_reader_is_started_again(kernel: None, reader_program: Path) -> None:
    now = 0.0
    reader = ChargeReader(reader_program, clock=lambda: now)
    await reader.read()
    first = reader.pid
    assert first
    os.kill(first, signal.SIGKILL)
    with pytest.raises(ChargeListUnreadable, match="ended before its answer"):
        await reader.read()
    assert reader.pid is None
    # The reader starts again after its pause.
    with pytest.raises(ChargeListUnreadable, match=r"again in 0\.[12]"):
        await reader.read()
    now += 0.3
    await reader.read()
    assert reader.pid not in (None, first)
    await reader.close()


async def test_a_late_reader_is_killed(kernel: None, reader_program: Path) -> None:
    reader = ChargeReader(reader_program)
    await reader.read()
    pid = reader.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    # Only now, because the start may take longer.
    reader._timeout = 0.5
    begun = time.monotonic()
    with pytest.raises(ChargeListUnreadable, match=r"did not answer within 0\.5 s"):
        await reader.read()
    assert time.monotonic() - begun >= 0.5
    # The agent kills the reader. Wait until the process is gone.
    async with asyncio.timeout(60):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.02)
    await reader.close()


async def test_a_cancelled_read_leaves_no_answer_for_the_next_read(reader: ChargeReader) -> None:
    await reader.read()
    for _ in range(20):
        reading = asyncio.create_task(reader.read())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await reader.read()


async def test_answers_many_reads_at_once(reader: ChargeReader) -> None:
    answers = await asyncio.gather(*(reader.read() for _ in range(20)))
    assert len(answers) == 20


async def test_enlarges_the_buffer_for_a_long_list(
    reader: ChargeReader,
    pages: Callable[[int], None],
    cgroup: Callable[[str], Path],
    cgroup_subtree: Path,
    hugetlbfs: Path,
) -> None:
    """The buffer of 4 MiB has room for about 40,000 files; the names of these files take more."""
    await reader.read()
    count = 30_000
    with Actor(cgroup("one")) as actor:
        actor.do(
            f"for each in range({count}): os.close(create({str(hugetlbfs)!r} + f'/{{each:0200}}'))"
        )
        pages(3)
        actor.do(f"fd = create({str(hugetlbfs / 'last')!r}); map_pages(3, SHARED, fd)")
        charges = await equal(reader, cgroup_subtree)
        # Files without pages are not in the list.
        assert len([f for f in charges.files if not f.superblock.internal]) < count
        actor.do(
            f"for each in range({count}): os.mkdir({str(hugetlbfs)!r} + f'/d{{each:0200}}')",
        )
        charges = await equal(reader, cgroup_subtree)
        assert regions(file_of(charges, hugetlbfs / "last")) == [(0, 3, "one")]
        actor.do(
            f"for name in os.listdir({str(hugetlbfs)!r}):\n"
            f" path = {str(hugetlbfs)!r} + '/' + name\n"
            " os.rmdir(path) if name[0] == 'd' else os.unlink(path)"
        )


CHURN = """
import random
dice = random.Random({seed})
def round():
    path = {folder!r} + '/' + str(dice.randrange(6))
    match dice.randrange(5):
        case 0 | 1:
            fd = create(path)
            try:
                a = map_pages(dice.randrange(1, 4), SHARED, fd, at=dice.randrange(4))
            except OSError: pass
            os.close(fd)
        case 2:
            try: os.truncate(path, dice.randrange(5) * PAGE)
            except FileNotFoundError: pass
        case 3:
            try: os.unlink(path)
            except FileNotFoundError: pass
        case 4:
            try:
                n = dice.randrange(1, 3)
                unmap(map_pages(n, PRIVATE | ANONYMOUS | HUGETLB), n)
            except OSError: pass
while not os.path.exists({over!r}): round()
"""


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_list_is_plausible_while_files_change(
    reader: ChargeReader,
    pages: Callable[[int], None],
    cgroup: Callable[[str], Path],
    cgroup_subtree: Path,
    hugetlbfs: Path,
    tmp_path: Path,
    seed: int,
) -> None:
    """Four processes map, truncate and remove files. At rest the list equals the counters."""
    pages(60)
    over = tmp_path / "over"
    actors = [Actor(cgroup(f"churn-{number}")) for number in range(4)]
    for number, actor in enumerate(actors):
        how = {"seed": seed * 10 + number, "folder": str(hugetlbfs), "over": str(over)}
        actor.start(CHURN.format(**how))
    owners = {f"churn-{number}" for number in range(4)}
    lists, began = 0, time.monotonic()
    while lists <= 100 or time.monotonic() < began + 4:
        assert time.monotonic() < began + 120, lists
        # A read fails if eight walks in a row are torn.
        with contextlib.suppress(ChargeListUnreadable):
            charges = await reader.read()
            lists += 1
            # A walk that follows a wrong link would run until its time is over.
            assert charges.seconds < 1
            mine = [f for f in charges.files if f.superblock.device == hugetlbfs.stat().st_dev]
            for start, end, owner in itertools.chain(*map(regions, mine)):
                assert 0 <= start < end <= 8
                assert owner in owners
    over.touch()
    for actor in actors:
        actor.result()
    await equal(reader, cgroup_subtree)
    for actor in actors:
        actor.kill()
    await equal(reader, cgroup_subtree)
