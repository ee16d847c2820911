"""Measure reads of the kernel's charge list: ``python -m benchmarks.charge_reader``, as root.

The benchmark mounts its own hugetlbfs and borrows pages for these rows:

- *empty files*: inodes without pages, which the reader skips;
- *directories*: each directory is a row of the list, because paths are made of directories;
- *mappings*: VMAs of one file, which the reader searches for private mappings;
- *charged pages*: ``--pages`` pages, each the only page of a file.

Columns: ``kernel`` is the read alone; ``request`` is the whole request from Python, with the
decoding; both are the median of ``--reads``. ``MiB`` is the resident memory of the reader without
its buffer. The last rows decode a synthetic answer with ``--files`` charged files. The benchmark
asserts nothing: compare results of the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hugetlb_quota.node.charge_reader import ChargeReader
from hugetlb_quota.node.charge_rows import decode
from tests.testnode.hugepages import reserved_pages
from tests.tracking import PAGE, Actor, hugetlbfs


async def measure(reader: ChargeReader, title: str, count: int, reads: int) -> None:
    """Read several times, and print a row."""
    kernel, request = [], []
    for _ in range(reads):
        begun = time.perf_counter()
        charges = await reader.read()
        request.append(time.perf_counter() - begun)
        kernel.append(charges.seconds / charges.reads)
    status = Path(f"/proc/{reader.pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    _row(f"{count:,} {title}", statistics.median(kernel), statistics.median(request), resident)


def _row(title: str, kernel: float | None, request: float, resident: float | None) -> None:
    first = "" if kernel is None else f"{kernel * 1e3:.3f}"
    last = "" if resident is None else f"{resident:.1f}"
    sys.stdout.write(f"{title:<40}{first:>12}{request * 1e3:>12.3f}{last:>8}\n")
    sys.stdout.flush()


def synthetic(files: int) -> bytes:
    """An answer with ``files`` files of one page, in one directory, of 100 pods."""
    sections = [bytearray() for _ in range(9)]
    names = sections[8]

    def add_name(name: bytes) -> int:
        names.extend(name)
        return len(names) - len(name)

    sections[0] += struct.pack("=4xIQqq", 0, PAGE, files, files)
    sections[1] += struct.pack("=4xIIIII", 0, 21, 0, 0, 0)
    sections[6] += struct.pack("=4xIQQQ", 0, 1, 0, 0)
    for pod in range(100):
        name = b"kubepods-pod%d.slice" % pod
        sections[6] += struct.pack("=4xIQQQ", len(name), 2 + pod, 1, add_name(name))
    sections[2] += struct.pack("=4xIQQQqIHHQ", 0, 1, 1, 0, 0, 2, 1, 1, add_name(b"/"))
    for number in range(2, files + 2):
        name = b"rtemap_%d" % number
        at = add_name(name)
        sections[2] += struct.pack("=4xIQQQqIHHQ", 0, number, number, 1, PAGE, 1, 0, len(name), at)
        sections[3] += struct.pack("=4xIQqqQ", 0, number, 0, 1, 2 + number % 100)
    return struct.pack("=9Q", *map(len, sections)) + b"".join(sections)


def measure_decoder(files: int, largest: int | None) -> None:
    """Decode a synthetic answer, and print a row."""
    payload = synthetic(files)
    begun = time.perf_counter()
    charges = decode(payload, at_rest=True, largest=largest)
    took = time.perf_counter() - begun
    assert len(charges.files) == (largest or files)
    kept = f"the {largest} largest kept" if largest else "all kept"
    _row(f"{files:,} charged files, {kept}", None, took, None)


async def on_hugetlbfs(options: argparse.Namespace, folder: Path) -> None:
    """Make, measure and remove each layout."""
    reader = ChargeReader()
    await reader.read()
    await measure(reader, "of nothing", 0, options.reads)

    async def each(title: str, count: int, make: Callable[[Path], object]) -> None:
        paths = [folder / f"{title.split()[0]}-{number}" for number in range(count)]
        for path in paths:
            make(path)
        await measure(reader, title, count, options.reads)
        for path in paths:
            path.rmdir() if path.is_dir() else path.unlink()

    await each("empty files", options.files, lambda path: os.close(os.open(path, os.O_CREAT)))
    await each("directories", options.files // 10, Path.mkdir)
    with Actor() as actor:
        actor.do(f"fd = create({str(folder / 'mapped')!r}); os.ftruncate(fd, PAGE)")
        # Two protections in turn, so that the kernel does not merge neighbours.
        actor.do(
            f"for n in range({options.mappings}):\n"
            " a = map_pages(1, SHARED | NORESERVE, fd, protection=1 + 2 * (n & 1))"
        )
        await measure(reader, "mappings of one file", options.mappings, options.reads)
        actor.do(
            f"for n in range({options.pages}):\n"
            f" map_pages(1, SHARED, create({str(folder)!r} + f'/page-{{n}}'))"
        )
        await measure(reader, "charged pages", options.pages, options.reads)
    await reader.close()


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.charge_reader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--files", type=int, default=100_000, help="default 100000")
    parser.add_argument("--mappings", type=int, default=60_000, help="default 60000")
    parser.add_argument("--pages", type=int, default=500, help="of 2 MiB (default 500)")
    parser.add_argument("--reads", type=int, default=20, help="for each median (default 20)")
    options = parser.parse_args()
    sys.stdout.write(f"{'':<40}{'kernel ms':>12}{'request ms':>12}{'MiB':>8}\n")
    with (
        tempfile.TemporaryDirectory() as folder,
        reserved_pages(PAGE, options.pages),
        hugetlbfs(Path(folder) / "huge") as superblock,
    ):
        asyncio.run(on_hugetlbfs(options, superblock.path))
        for path in superblock.path.iterdir():
            path.unlink()
    measure_decoder(options.files, None)
    measure_decoder(options.files, 20)


if __name__ == "__main__":
    main()
