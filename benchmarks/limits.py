"""Measure the time from the mkdir of a pod's cgroup to its limit, for ``benchmarks.agent``.

``python -m benchmarks.limits BYTES PAUSE DIRECTORY...`` makes each directory ``PAUSE`` seconds
after the previous one, and prints two lists of seconds as JSON: the time of each mkdir, and the
time from its return to the limit of ``BYTES`` in hugetlb.2MB.rsvd.max. This is a separate process,
so that the rest of the benchmark does not delay it. inotify reports each write.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_EVENT = struct.Struct("iIII")
_MODIFY = 0x2
_FILE = "hugetlb.2MB.rsvd.max"
#: The seconds to wait for the limits.
_PATIENCE = 20.0

_libc = ctypes.CDLL(None, use_errno=True)


class Limits:
    """The times at which the limits of cgroups were written."""

    def __init__(self, limit: int, count: int) -> None:
        self._limit = str(limit)
        self._inotify = _libc.inotify_init1(os.O_CLOEXEC)
        self._of_watch: dict[int, int] = {}
        self._count = count
        self._written: dict[int, float] = {}
        self._turn = threading.Lock()
        self._all = threading.Event()
        threading.Thread(target=self._read_events, daemon=True).start()

    def watch(self, number: int, directory: Path) -> None:
        """Watch the cgroup ``directory`` for its limit."""
        with self._turn:
            watch = _libc.inotify_add_watch(self._inotify, bytes(directory), _MODIFY)
            assert watch >= 0, directory
            self._of_watch[watch] = number
        # The limit may have been written before the watch.
        if (directory / _FILE).read_text().strip() == self._limit:
            self._note(number, time.perf_counter())

    def wait(self) -> dict[int, float]:
        """Wait for all limits; return the time of each, by ``time.perf_counter``."""
        assert self._all.wait(_PATIENCE), f"{len(self._written)} of {self._count} are limited"
        return self._written

    def _read_events(self) -> None:
        while True:
            buffer, now = os.read(self._inotify, 1 << 16), time.perf_counter()
            at = 0
            while at < len(buffer):
                watch, _, _, length = _EVENT.unpack_from(buffer, at)
                name = buffer[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                if name == _FILE.encode():
                    with self._turn:
                        number = self._of_watch[watch]
                    self._note(number, now)

    def _note(self, number: int, now: float) -> None:
        self._written.setdefault(number, now)
        if len(self._written) == self._count:
            self._all.set()


def measure(
    limit: int, pause: float, directories: Sequence[Path]
) -> tuple[list[float], list[float]]:
    """The seconds of each mkdir, and the seconds from each mkdir to its limit."""
    limits = Limits(limit, len(directories))
    made_at, took = [], []
    for number, directory in enumerate(directories):
        begun = time.perf_counter()
        directory.mkdir()
        made_at.append(time.perf_counter())
        took.append(made_at[-1] - begun)
        limits.watch(number, directory)
        if pause:
            time.sleep(pause)
    written = limits.wait()
    return took, [written[number] - at for number, at in enumerate(made_at)]


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), float(sys.argv[2]), [*map(Path, sys.argv[3:])])))
