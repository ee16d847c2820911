"""Many short-lived processes that do random things to shared files on hugetlbfs.

They open, map, touch, extend, allocate, punch, truncate, unlink and rename files, unmap and
close them, fork, pass descriptors to processes of other pods, and exit. Some processes die of
SIGBUS, because others truncate the mapped files. After every hundred operations the program prints
the number of operations. The seed determines the operations of each process.
"""

# pathlib and contextlib would double the start time:
# ruff: noqa: PTH108, PTH104, PTH208, PTH110, SIM105

from __future__ import annotations

import argparse
import ctypes
import os
import random
import select
import signal
import socket
from collections.abc import Callable

PAGE = 2 << 20
#: The largest size of a file in pages, and the number of file names.
PAGES, NAMES = 8, 8
SHARED, NORESERVE = 1, 0x4000
PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
#: The least and the most operations of a process, and the largest depth of forks.
FEWEST, MOST, DEEPEST = 3, 30, 2

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
FAILED = ctypes.c_void_p(-1).value


class Churner:
    """One process, with its descriptors, mappings and random numbers."""

    def __init__(self, options: argparse.Namespace, inbox: socket.socket, count: int) -> None:
        self.options = options
        self.inbox = inbox
        self.count = count
        self.files: list[int] = []
        self.maps: list[tuple[int, int]] = []
        self.depth = 0

    def run(self, seed: str) -> None:
        """Do some operations; afterwards the process must exit."""
        self.dice = random.Random(seed)
        kinds: list[Callable[[], None]] = [
            *(self.open,) * 5,
            *(self.map,) * 6,
            *(self.touch,) * 6,
            *(self.allocate,) * 2,
            *(self.extend,) * 2,
            *(self.punch,) * 2,
            *(self.truncate,) * 2,
            *(self.close, self.unmap, self.unlink, self.rename, self.fork),
            *(self.give, self.take) * 2,
        ]
        for _ in range(self.dice.randint(FEWEST, MOST)):
            try:
                self.dice.choice(kinds)()
            except OSError:
                pass  # an error such as no memory or no such file, as in real programs
            os.write(self.count, b".")

    def path(self) -> str:
        return f"{self.options.directory}/file-{self.dice.randrange(NAMES)}"

    def file(self) -> int:
        if not self.files:
            self.open()
        return self.dice.choice(self.files)

    def range(self) -> tuple[int, int]:
        first = self.dice.randrange(PAGES)
        return first, self.dice.randint(1, PAGES - first)

    def open(self) -> None:
        self.files.append(os.open(self.path(), os.O_RDWR | os.O_CREAT, 0o666))

    def map(self) -> None:
        first, pages = self.range()
        flags = SHARED | (NORESERVE if self.dice.random() < 0.2 else 0)
        protection = 3 if self.dice.random() < 0.8 else 1
        file = self.file()
        at = libc.mmap(None, pages * PAGE, protection, flags, file, first * PAGE)
        if at != FAILED and protection == 3:
            self.maps.append((at, pages))

    def touch(self) -> None:
        if self.maps:
            at, pages = self.dice.choice(self.maps)
            ctypes.c_char.from_address(at + self.dice.randrange(pages) * PAGE).value = b"x"

    def allocate(self) -> None:
        first, pages = self.range()
        libc.fallocate(self.file(), 0, first * PAGE, pages * PAGE)

    def punch(self) -> None:
        first, pages = self.range()
        libc.fallocate(self.file(), PUNCH_HOLE, first * PAGE, pages * PAGE)

    def extend(self) -> None:
        file = self.file()
        now = os.fstat(file).st_size // PAGE
        os.ftruncate(file, self.dice.randint(min(now, PAGES), PAGES) * PAGE)

    def truncate(self) -> None:
        os.ftruncate(self.file(), self.dice.randint(0, PAGES) * PAGE)

    def unlink(self) -> None:
        os.unlink(self.path())

    def rename(self) -> None:
        os.rename(self.path(), self.path())

    def close(self) -> None:
        if self.files:
            os.close(self.files.pop(self.dice.randrange(len(self.files))))

    def unmap(self) -> None:
        if self.maps:
            at, pages = self.maps.pop(self.dice.randrange(len(self.maps)))
            libc.munmap(at, pages * PAGE)

    def fork(self) -> None:
        if self.depth < DEEPEST and os.fork() == 0:
            self.depth += 1
            self.run(f"{self.dice.random()}")
            os._exit(0)

    def give(self) -> None:
        peers = sorted(os.listdir(self.options.sockets))
        peer = f"{self.options.sockets}/{self.dice.choice(peers)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.connect(peer)
            socket.send_fds(out, [b"x"], [self.file()])

    def take(self) -> None:
        _, given, _, _ = socket.recv_fds(self.inbox, 1, 1, socket.MSG_DONTWAIT)
        self.files += given


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="random operations on files of hugetlbfs")
    parser.add_argument("--seed", required=True)
    parser.add_argument("--directory", required=True, help="on hugetlbfs")
    parser.add_argument("--sockets", required=True, help="folder with one socket for each pod")
    parser.add_argument("--inbox", required=True, help="name of this pod's socket in the folder")
    parser.add_argument("--operations", type=int, required=True, help="stop after this number")
    parser.add_argument("--at-once", type=int, default=3, help="processes, without their forks")
    return parser.parse_args()


def main() -> None:
    """Start processes until they have done enough operations."""
    options = arguments()
    inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    inbox.bind(f"{options.sockets}/{options.inbox}")
    read, write = os.pipe()
    os.set_blocking(read, False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the processes
    done = started = printed = 0
    running: set[int] = set()
    while done < options.operations:
        running = {pid for pid in running if os.path.exists(f"/proc/{pid}")}
        while len(running) < options.at_once:
            started += 1
            pid = os.fork()
            if pid == 0:
                Churner(options, inbox, write).run(f"{options.seed}-{started}")
                os._exit(0)
            running.add(pid)
        select.select([read], [], [], 0.01)
        try:
            done += len(os.read(read, 1 << 16))
        except BlockingIOError:
            continue
        if done // 100 > printed:
            printed = done // 100
            print(done, flush=True)
    print(done, flush=True)


if __name__ == "__main__":
    main()
