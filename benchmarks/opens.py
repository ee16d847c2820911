"""Programs that open, map and remove files on hugetlbfs, for ``benchmarks.agent``.

Each program is ``python -m benchmarks.opens WHAT FILE COUNT`` and prints one line of JSON:

- ``open``: the microseconds of ``COUNT`` calls of open(2) of ``FILE``, as p50, p99 and maximum;
- ``openers``: ``COUNT`` threads that each open ``FILE`` twice a second, until the input ends;
- ``churn``: ``COUNT`` rounds that map four pages of a new file, unmap them and remove the file; the
  number of refused mmap(2).
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

#: The seconds between two opens of one thread.
_PAUSE = 0.5
_LENGTH = 4 * (2 << 20)
_WARM_UP = 200

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_FAILED = ctypes.c_void_p(-1).value


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """The p50, p99 and maximum of ``values``."""
    order = sorted(values)
    return {
        "p50": order[len(order) // 2],
        "p99": order[min(len(order) - 1, len(order) * 99 // 100)],
        "max": order[-1],
    }


def opens(path: str, count: int) -> dict[str, float]:
    """Measure ``count`` calls of open(2), in microseconds."""
    took = []
    for _ in range(count + _WARM_UP):
        begun = time.perf_counter_ns()
        descriptor = os.open(path, os.O_RDWR)
        took.append((time.perf_counter_ns() - begun) / 1e3)
        os.close(descriptor)
    return quantiles(took[_WARM_UP:])


def openers(path: str, count: int) -> dict[str, int]:
    """Open ``path`` from ``count`` threads until the input ends; return the number of opens."""
    done = 0
    over = threading.Event()

    def one(number: int) -> None:
        nonlocal done
        over.wait(_PAUSE * number / count)
        while not over.wait(_PAUSE):
            os.close(os.open(path, os.O_RDWR))
            done += 1

    threading.stack_size(64 << 10)
    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    print("{}", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    return {"opens": done}


def churn(path: str, rounds: int) -> dict[str, float]:
    """Run ``rounds``; return the number of refused mmap(2), and the milliseconds of a round."""
    refused, begun = 0, time.perf_counter()
    for number in range(rounds):
        name = f"{path}-{number}"
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        length, offset = ctypes.c_size_t(_LENGTH), ctypes.c_long(0)
        address = _libc.mmap(None, length, protection, mmap.MAP_SHARED, descriptor, offset)
        if address == _FAILED:
            assert ctypes.get_errno() == errno.ENOMEM
            refused += 1
        else:
            _libc.munmap(ctypes.c_void_p(address), length)
        os.close(descriptor)
        os.unlink(name)  # noqa: PTH108
    return {"refused": refused, "milliseconds": (time.perf_counter() - begun) / rounds * 1e3}


if __name__ == "__main__":
    does: Any = {"open": opens, "openers": openers, "churn": churn}[sys.argv[1]]
    print(json.dumps(does(sys.argv[2], int(sys.argv[3]))), flush=True)
