"""``python -m benchmarks.openers``: what tracking costs those who open files, and a scan.

Opens per second of one process on hugetlbfs: not watched, watched by notification, and
watched by permission events (the default), where each open waits for the responder. Then
how long it takes to list 100,000 files, with what memory. Needs root, and no huge pages.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from hugetlb_quota.node.charged_ranges import ChargedRanges
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.hugetlbfs import Superblock, scan, superblocks
from hugetlb_quota.node.openers import Openers, Overflow

#: Opens and closes one file for a while, and prints how often a second.
_OPEN = """
import os, sys, time
path, seconds, count = sys.argv[1], float(sys.argv[2]), 0
start = time.perf_counter()
while (now := time.perf_counter()) < start + seconds:
    for _ in range(100):
        os.close(os.open(path, os.O_RDONLY))
    count += 100
print(count / (now - start))
"""


def opens(path: Path, seconds: float, processes: int) -> float:
    """Opens per second of ``path`` by all ``processes`` together."""
    command = [sys.executable, "-S", "-E", "-c", _OPEN, str(path), str(seconds)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(processes)]
    return sum(float(one.communicate()[0]) for one in running)


async def watched_opens(
    superblock: Superblock, path: Path, seconds: float, processes: int, *, permission: bool
) -> tuple[float, float, str]:
    """Opens per second, the share of a CPU that the responder takes, what the agent was told."""
    async with Openers(HostRoot(), permission=permission) as openers:
        if not await openers.watch(superblock):
            raise SystemExit(f"{superblock.point} can't be watched")
        told = lost = 0

        async def follow() -> None:
            nonlocal told, lost
            async for happening in openers:
                told += 1
                lost += happening == Overflow()

        following = asyncio.create_task(follow())
        pid = openers.pid
        before, start = cpu_seconds(pid), time.perf_counter()
        rate = await asyncio.to_thread(opens, path, seconds, processes)
        busy = (cpu_seconds(pid) - before) / (time.perf_counter() - start)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        return rate, busy, f"{told:,} events, {lost} overflows"


def cpu_seconds(pid: int | None) -> float:
    """CPU time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def resident_kib(pid: int) -> int:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def timed(work: Callable[[], object]) -> float:
    """Seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


async def measure(superblock: Superblock, seconds: float, files: int) -> None:
    """Print the table."""
    path = superblock.path / "file"
    path.touch()
    print(f"{'opens a second':28}{'1 process':>12}{'2 processes':>14}  responder, and the agent")
    bare = [opens(path, seconds, processes) for processes in (1, 2)]
    print(f"{'not watched':28}{bare[0]:12,.0f}{bare[1]:14,.0f}")
    for label, permission in (("by notification", False), ("by permission", True)):
        row = [
            await watched_opens(superblock, path, seconds, processes, permission=permission)
            for processes in (1, 2)
        ]
        busy = " and ".join(f"{one[1]:.0%}" for one in row)
        print(f"{label:28}{row[0][0]:12,.0f}{row[1][0]:14,.0f}  {busy} of a CPU; {row[0][2]}")
    async with Openers(HostRoot()) as openers:
        assert openers.pid
        await openers.watch(superblock)
        before = cpu_seconds(openers.pid)
        await asyncio.sleep(seconds * 3)
        idle = (cpu_seconds(openers.pid) - before) / (seconds * 3)
        print(f"responder: {resident_kib(openers.pid):,} KiB resident, {idle:.1%} of a CPU idle")

    for number in range(files):
        (superblock.path / str(number)).touch()
    took = timed(lambda: sum(1 for _ in scan(superblock)))
    tracemalloc.start()
    sum(1 for _ in scan(superblock))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
        f"scan of {files:,} files in one directory: {took:.2f} s ({files / took:,.0f} files a"
        f" second), {peak / 2**20:.1f} MiB at most"
    )
    await measure_charged(superblock)
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:,} KiB")


async def measure_charged(superblock: Superblock) -> None:
    """Print how long it takes to find out what is charged in a file, at worst."""
    cgroup = HostRoot().cgroup2() / f"hq-benchmark-{os.getpid()}"
    cgroup.mkdir()
    try:
        (cgroup / f"{superblock.size.cgroup}.rsvd.max").write_text("0")
        async with ChargedRanges(cgroup) as charged:
            inode = (superblock.path / "file").stat().st_ino
            await charged.of(superblock, "file", inode, 1)
            start = time.perf_counter()
            await charged.of(superblock, "file", inode, 1 << 20)
            took = time.perf_counter() - start
    finally:
        cgroup.rmdir()
    print(f"charged ranges of a file of 2^20 pages, none of them charged: {took:.2f} s")


def main() -> None:
    """Mount a hugetlbfs and measure."""
    parser = argparse.ArgumentParser(description="what tracking costs")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--files", type=int, default=100_000, help="files to scan")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        point = Path(folder)
        subprocess.run(["mount", "-t", "hugetlbfs", "none", point], check=True)
        try:
            superblock = next(one for one in superblocks(HostRoot()) if one.path == point)
            asyncio.run(measure(superblock, options.seconds, options.files))
        finally:
            subprocess.run(["umount", point], check=True)


if __name__ == "__main__":
    main()
