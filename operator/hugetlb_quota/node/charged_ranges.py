"""Which pages of a file are charged to somebody, asked of the kernel by mmap(2).

The kernel keeps, per file, the ranges that are reserved (the inode's ``resv_map``) and
shows them nowhere: not in size or blocks, SEEK_HOLE, mincore or /proc. But mmap of a
shared range charges only what is not in there yet, and does so before anything else
(mm/hugetlb.c, ``hugetlb_reserve_pages``). In a cgroup that may reserve nothing, mmap
therefore succeeds where every page of the range is charged, and fails with ENOMEM where
one is not; either way nothing changes: not the reservations, not the file's size, since
the mapping is read-only, and no page is touched.

``python -m hugetlb_quota.node.charged_ranges`` is the process that asks: whoever else is
in its cgroup must not want huge pages.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import mmap
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from hugetlb_quota.node.cgroup import read_limit
from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.page_size import PageSize

#: Asking 2^20 pages one by one takes a few seconds.
_ANSWER_SECONDS: Final = 30.0
_LONGEST_ANSWER: Final = 1 << 26
#: What the process that asks says when it is where it is to be.
_STARTED: Final = b"started\n"
#: Files named in a message; the others are counted.
_NAMED: Final = 3
_PR_SET_PDEATHSIG: Final = 1
_MAP_FAILED: Final = ctypes.c_void_p(-1).value

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class MayReserve(Exception):
    """The cgroup of the asking process may reserve pages: asking would charge them."""

    def __init__(self, cgroup: Path, size: PageSize) -> None:
        super().__init__(
            f"{cgroup} may reserve pages of {size}, so asking for what is charged in a file would"
            f" charge it; write 0 to {cgroup}/{size.cgroup}.rsvd.max."
        )
        self.cgroup = cgroup
        self.size = size


class NotAsked(Exception):
    """The process that asks gave no answer."""


class NotStarted(Exception):
    """The process that asks can't be started."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the process that asks (python -m {__name__}) ended as it was started: {why}."
        )


def charged_runs(
    is_charged: Callable[[int, int], bool], first: int, end: int
) -> Iterator[tuple[int, int]]:
    """The longest runs of charged pages from ``first`` to ``end`` (not included), in order.

    :param is_charged: whether all pages from one to another (not included) are charged.
        It is asked once for every page that is not, and for a run of n about 2 log2 n times.
    """
    at = first
    while at < end:
        if not is_charged(at, at + 1):
            at += 1
            continue
        known, step = at + 1, 1
        while known < end and is_charged(known, min(end, known + step)):
            known = min(end, known + step)
            step *= 2
        # Between known and known + step is the first page that is not.
        while step > 1 and known < end:
            step //= 2
            if is_charged(known, min(end, known + step)):
                known = min(end, known + step)
        yield at, known
        at = known + 1  # known itself was asked: it is not


class Question(NamedTuple):
    """Which pages are charged from ``first`` to ``end`` (not included) of a file.

    ``path``: of the file, relative to the superblock's root. A mapping that is read-only can
    reserve beyond the file's size, so ``end`` may be beyond it too.
    """

    superblock: Superblock
    path: str
    inode: int
    end: int
    first: int = 0

    def to_json(self) -> dict[str, Any]:
        """As the process that asks reads it."""
        return {
            "path": str(self.superblock.path / self.path),
            "device": self.superblock.device,
            "inode": self.inode,
            "page": self.superblock.size.bytes,
            "first": self.first,
            "end": self.end,
        }


#: Of one file: runs of charged pages, as (first, end not included), in order; None: the path
#: leads to another file now, or to none.
Answer = list[tuple[int, int]] | None


class ChargedRanges:
    """Asks which pages of a file are charged; an async context manager.

    :param cgroup: where the asking process shall be, with 0 in ``rsvd.max`` for every size
        that is asked for.
    """

    def __init__(self, cgroup: Path) -> None:
        self._cgroup = cgroup
        self._process: asyncio.subprocess.Process | None = None
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Start the process that asks.

        :raises NotStarted: when it ends at once, with its own words.
        """
        await self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end()

    @property
    def pid(self) -> int | None:
        """The process that asks, for those who watch openers to ignore."""
        return None if self._process is None else self._process.pid

    async def of(
        self, superblock: Superblock, path: str, inode: int, end: int, first: int = 0
    ) -> Answer:
        """The answer to one :class:`Question`, as :meth:`answers` gives it."""
        return (await self.answers([Question(superblock, path, inode, end, first)]))[0]

    async def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """The runs of charged pages of each file.

        Pages that are allocated are charged, and so are among them.

        :raises MayReserve: when asking would charge.
        :raises NotAsked: when the process ended or is slow; it is started anew.
        :raises NotStarted: when it can't be started anew.
        """
        for size in {each.superblock.size for each in questions}:
            if read_limit(self._cgroup, size, "rsvd.max") != 0:
                raise MayReserve(self._cgroup, size)
        async with self._asking:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    return await self._ask(questions)
            except BaseException as error:
                # Also when we are cancelled: a late answer is one to another question.
                await self._end()
                await self._start()
                if isinstance(error, (TimeoutError, OSError, ValueError)):
                    which = ", ".join(
                        f"{each.path} on {each.superblock.point}" for each in questions[:_NAMED]
                    )
                    raise NotAsked(
                        f"Which pages of {len(questions)} files ({which} ...) are charged could"
                        f" not be asked, and will be again: {error}"
                    ) from error
                raise

    async def _ask(self, questions: Sequence[Question]) -> list[Answer]:
        process = self._process
        assert process is not None
        assert process.stdin
        assert process.stdout
        asked = [each.to_json() for each in questions]
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        await process.stdin.drain()
        return [
            None if answer is None else [(int(first), int(end)) for first, end in answer]
            for answer in json.loads(await process.stdout.readline())
        ]

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hugetlb_quota.node.charged_ranges"),
            *("--parent", str(os.getpid()), "--cgroup", str(self._cgroup)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_ANSWER,
        )
        assert self._process.stdout
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                said = await self._process.stdout.readline()
        except BaseException as error:
            await self._end()
            if isinstance(error, TimeoutError):
                raise NotStarted(f"it did not begin within {_ANSWER_SECONDS:g} s") from error
            raise
        if said != _STARTED:
            status = await self._process.wait()
            self._process = None
            raise NotStarted(said.decode(errors="replace").strip() or f"status {status}")

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


def _answer(question: dict[str, Any]) -> Answer:
    page = int(question["page"])
    try:
        # By descriptor, and opened only as what it is: a FIFO or a device would answer.
        found = os.open(question["path"], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        state = os.fstat(found)
        wanted = (question["device"], question["inode"])
        if not stat.S_ISREG(state.st_mode) or (state.st_dev, state.st_ino) != wanted:
            return None
        file = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)

    def is_charged(first: int, end: int) -> bool:
        length = (end - first) * page
        mapped = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, file, first * page)
        if mapped == _MAP_FAILED:
            return False
        _libc.munmap(mapped, length)
        return True

    try:
        return list(charged_runs(is_charged, question["first"], question["end"]))
    finally:
        os.close(file)


def main() -> None:
    """Answer questions until the agent ends."""
    parser = argparse.ArgumentParser(description="Started by the agent.")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--cgroup", required=True)
    options = parser.parse_args()
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != options.parent:
        sys.exit("the agent is gone")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    procs = f"{options.cgroup}/cgroup.procs"
    try:
        file = os.open(procs, os.O_WRONLY | os.O_CLOEXEC)
        os.write(file, b"0")
        os.close(file)
    except OSError as error:
        sys.stdout.write(f"it can't enter its cgroup by {procs} ({error.strerror})\n")
        sys.exit(1)
    sys.stdout.write(_STARTED.decode())
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps([_answer(each) for each in json.loads(line)]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
