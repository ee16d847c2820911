"""Helpers for tests of the node layer: hugetlbfs mounts, and processes that run statements."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.hugetlbfs import Superblock, superblocks
from hugetlb_quota.page_size import PageSize
from tests.testnode import cgroup_tree
from tests.testnode.volumes import mount, unmount_below

PAGE = 2 << 20
SMALL = PageSize(PAGE)
HOST = HostRoot()

#: The program of an actor; the statements may use its names.
_STAGE = """
import ctypes, errno, json, mmap, os, signal, socket, sys, threading, time
PAGE = 2 << 20
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.shmat.restype = ctypes.c_void_p
SHARED, PRIVATE, ANONYMOUS, NORESERVE, HUGETLB = 1, 2, 0x20, 0x4000, 0x40000
SIZE = 0  # of anonymous memory, segments and memfds: log2(PAGE) << 26; 0: the kernel's default
PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

def checked(result, what):
    if result in (-1, ctypes.c_void_p(-1).value):
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result

def create(path):
    return os.open(path, os.O_RDWR | os.O_CREAT)

def map_pages(count, flags=SHARED, fd=-1, at=0, protection=3):
    length, offset = ctypes.c_size_t(count * PAGE), ctypes.c_long(at * PAGE)
    flags |= SIZE if flags & HUGETLB else 0
    return checked(libc.mmap(None, length, protection, flags, fd, offset), "mmap")

def unmap(address, count):
    checked(libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(count * PAGE)), "munmap")

def touch(address, *pages):
    for page in pages:
        ctypes.c_char.from_address(address + page * PAGE).value = b"x"

def read(address, *pages):
    for page in pages:
        ctypes.c_char.from_address(address + page * PAGE).value

def fallocate(fd, at, count, mode=0):
    offset, length = ctypes.c_long(at * PAGE), ctypes.c_long(count * PAGE)
    checked(libc.fallocate(fd, mode, offset, length), "fallocate")

def shmget(key, count, flags=0):
    size = ctypes.c_size_t(count * PAGE)
    return checked(libc.shmget(key, size, 0o1000 | 0o4000 | 0o600 | SIZE | flags), "shmget")

def memfd():
    return checked(libc.memfd_create(b"m", 4 | SIZE), "memfd_create")

print(json.dumps({"ok": os.getpid()}), flush=True)
for line in sys.stdin:
    try:
        exec(json.loads(line))
        print(json.dumps({"ok": globals().get("result")}), flush=True)
    except OSError as error:
        print(json.dumps({"errno": error.errno, "why": str(error)}), flush=True)
"""


class Actor:
    """A process that runs Python statements on request.

    ``do`` returns the value that the statements assign to ``result``.
    """

    def __init__(self, cgroup: Path | None = None) -> None:
        def enter() -> None:
            if cgroup is not None:
                cgroup_tree.write(cgroup / "cgroup.procs", "0")

        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", _STAGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=enter,
        )
        assert self._answer() == self.pid

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, statements: str) -> None:
        """Start ``statements``; :meth:`result` waits for their end."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(statements) + "\n")
        self._process.stdin.flush()

    def result(self) -> Any:
        """Wait until the started statements end. Raises their OSError."""
        return self._answer()

    def do(self, statements: str) -> Any:
        """Run ``statements``; return ``result``. Raises the OSError of the statements."""
        self.start(statements)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        answer = json.loads(self._process.stdout.readline())
        if "errno" in answer:
            raise OSError(answer["errno"], answer["why"])
        return answer["ok"]

    def exit(self) -> None:
        """Let the process exit; wait until it is gone."""
        self._process.communicate(timeout=20)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def hand_over(giver: Actor, receiver: Actor, socket: Path) -> None:
    """Pass the descriptor ``fd`` of one actor to the other actor, by SCM_RIGHTS."""
    receiver.do(f"s = socket.socket(socket.AF_UNIX); s.bind({str(socket)!r}); s.listen()")
    giver.do(
        f"s = socket.socket(socket.AF_UNIX); s.connect({str(socket)!r});"
        "socket.send_fds(s, [b'x'], [fd])"
    )
    receiver.do("fd = socket.recv_fds(s.accept()[0], 1, 1)[1][0]")


@contextmanager
def hugetlbfs(point: Path, options: str = "", page: str = "2M") -> Iterator[Superblock]:
    """Mount a hugetlbfs at ``point``; unmount it at the end, if it is still mounted."""
    point.mkdir(exist_ok=True)
    mount("hugetlbfs", point, ",".join(filter(None, [f"pagesize={page}", options])))
    try:
        yield at(point)
    finally:
        unmount_below(point)


def at(point: Path) -> Superblock:
    """The superblock of the mount at ``point``."""
    return next(one for one in superblocks(HOST) if one.point == str(point))


def unmount(point: Path) -> None:
    """Unmount with umount(8). Raises OSError (EBUSY) while the mount is in use."""
    done = subprocess.run(["umount", str(point)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(done.stderr.strip())


def pages_of(cgroup: Path, size: PageSize = SMALL) -> tuple[int, int]:
    """The reserved and the faulted pages of ``cgroup``: rsvd.current and current."""
    reserved, faulted = (
        int((cgroup / f"{size.cgroup}.{name}").read_text()) // size.bytes
        for name in ("rsvd.current", "current")
    )
    return reserved, faulted


def path_of(cgroup: Path) -> str:
    """The cgroup's path as in /proc/PID/cgroup."""
    return f"/{cgroup.relative_to(cgroup_tree.cgroup2_mount())}"


def inode(path: str | Path) -> int:
    return Path(path).stat().st_ino
