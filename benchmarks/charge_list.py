"""How fast and how large the charge list is: ``python -m benchmarks.charge_list``.

One row for each operation, on the layouts that hurt:

- *pages in random order*: a file of 2^20 pages (2 TiB of 2 MiB pages), charged one page at a
  time by four owners, as if they touched it together. Ends with about 780,000 ranges.
- *owners alternate*: 2^20 ranges of one page, the most a file of that size can have; then two
  pages at a time are punched in its midst and charged to two others, which takes a boundary
  away and inserts one where there are most.
- *one range*: the same file charged at once, by one owner. What most large files look like.
- *files of one page*: 100,000 of them, as DPDK lays out its memory.

Columns: ``units`` are pages, files or calls, as the row says; ``seconds`` are of wall time
with the collector on; ``units/s`` their quotient. ``MiB`` is what the list holds when the row
is done, by tracemalloc in a run of its own (tracing slows everything down), file keys and owners
included. Nothing is asserted: compare with the figures in docs, on the same machine.

All of it takes some minutes, nearly all of them for the memory: ``--no-memory`` leaves it out.
``--scale 0.01`` makes everything a hundredth, to try it. ``--seed`` orders the random pages.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hugetlb_quota.accounting.charge_list import ChargeList, FileKey
from hugetlb_quota.accounting.ranges import PageRange
from hugetlb_quota.page_size import PageSize

TWO_MIB = PageSize(2 * 1024**2)


@dataclass(frozen=True, slots=True)
class Owner:
    """As the agent's: a pod and the quotas that it was charged to."""

    uid: str
    quotas: tuple[str, ...]


Charges = ChargeList[Owner]
OWNERS = [Owner(f"pod-{number}", (f"team/{number}", "acme/tenant")) for number in range(4)]
HEIR = Owner("pod-4", ("team/4", "acme/tenant"))
BIG = FileKey(25, 7_000_001)


@dataclass(frozen=True, slots=True)
class Step:
    """An operation on the list that the steps before it left; ``unit`` is what it counts."""

    name: str
    units: int
    unit: str
    run: Callable[[Charges], object]


def random_pages(pages: int, seed: int) -> Iterator[Step]:
    """A file charged page by page, then read and taken apart."""
    draw = random.Random(seed)
    order = list(range(pages))
    draw.shuffle(order)
    owners = [draw.choice(OWNERS) for _ in order]

    def charge(charges: Charges) -> None:
        for page, owner in zip(order, owners, strict=True):
            charges.charge(BIG, TWO_MIB, PageRange(page, page + 1), owner)

    def scan(charges: Charges) -> int:
        return sum(1 for _ in charges.held(BIG))

    def punch(charges: Charges) -> None:
        for page in order[: pages // 2]:
            charges.punch(BIG, PageRange(page, page + 1))

    yield Step("charge pages in random order, 4 owners", pages, "pages", charge)
    yield Step("would_charge the whole file", pages, "pages", _would_charge(pages))
    yield Step("iterate its ranges", pages, "pages", scan)
    yield Step("rows, and the list from them", pages, "pages", _restart)
    yield Step("move an owner", pages // 4, "pages", _move)
    yield Step("release half by count", pages // 8, "pages", _release(pages // 8))
    yield Step("punch every other page, random order", pages // 2, "pages", punch)
    yield Step("charge every hole at once", pages, "pages", _charge_range(pages))
    yield Step("truncate to 0", pages, "pages", lambda charges: charges.truncate(BIG, 0))


def alternating(pages: int, seed: int) -> Iterator[Step]:
    """The most ranges that a file can have, and changes in their midst."""
    draw = random.Random(seed)
    sample = [draw.randrange(pages) for _ in range(pages // 8)]

    def charge(charges: Charges) -> None:
        owners = itertools.cycle(OWNERS[:2])
        for page, owner in zip(range(pages), owners, strict=False):
            charges.charge(BIG, TWO_MIB, PageRange(page, page + 1), owner)

    def churn(charges: Charges) -> None:
        for page in sample:
            charges.punch(BIG, PageRange(page, page + 2))
            charges.charge(BIG, TWO_MIB, PageRange(page, page + 1), OWNERS[2])
            charges.charge(BIG, TWO_MIB, PageRange(page + 1, page + 2), OWNERS[3])

    yield Step("charge in order, owners alternate", pages, "pages", charge)
    yield Step("punch 2 pages, charge them to others", 2 * len(sample), "pages", churn)
    yield Step("move an owner", pages // 2, "pages", _move)


def one_range(pages: int, _: int) -> Iterator[Step]:
    """What most large files look like."""
    again = _charge_range(pages)

    def rescan(charges: Charges) -> None:
        for _ in range(1000):
            again(charges)

    def halve(charges: Charges) -> None:
        length = pages
        while length:
            length //= 2
            charges.truncate(BIG, length)

    yield Step("charge one range", 1, "calls", again)
    yield Step("charge it again", 1000, "calls", rescan)
    yield Step("halve it until nothing is left", pages.bit_length(), "calls", halve)


def single_pages(files: int, seed: int) -> Iterator[Step]:
    """Many files of one page."""
    inodes = range(7_000_000, 7_000_000 + files)
    shuffled = list(inodes)
    random.Random(seed).shuffle(shuffled)

    def charge(charges: Charges) -> None:
        for inode, owner in zip(inodes, itertools.cycle(OWNERS), strict=False):
            charges.charge(FileKey(25, inode), TWO_MIB, PageRange(0, 1), owner)

    def again(charges: Charges) -> None:
        for inode in inodes:
            charges.charge(FileKey(25, inode), TWO_MIB, PageRange(0, 1), OWNERS[0])

    def drop(charges: Charges) -> None:
        for inode in shuffled:
            charges.drop(FileKey(25, inode))

    yield Step("charge files of one page, 4 owners", files, "files", charge)
    yield Step("charge them again", files, "files", again)
    yield Step("the 20 largest", files, "files", lambda charges: charges.largest(20))
    yield Step("rows, and the list from them", files, "files", _restart)
    yield Step("move an owner", files // 4, "files", _move)
    yield Step(
        "reparent all owners", files, "files", lambda charges: charges.reparent(lambda _: HEIR)
    )
    yield Step("drop in random order", files, "files", drop)


def _would_charge(pages: int) -> Callable[[Charges], object]:
    return lambda charges: charges.would_charge(BIG, PageRange(0, pages))


def _charge_range(pages: int) -> Callable[[Charges], object]:
    return lambda charges: charges.charge(BIG, TWO_MIB, PageRange(0, pages), OWNERS[3])


def _release(count: int) -> Callable[[Charges], object]:
    return lambda charges: charges.release(BIG, count, OWNERS[1])


def _move(charges: Charges) -> object:
    return charges.move(OWNERS[0], HEIR)


def _restart(charges: Charges) -> object:
    return ChargeList.from_rows(charges.rows())


SCENARIOS: list[tuple[str, int, Callable[[int, int], Iterator[Step]]]] = [
    ("a file of {:,} pages in random order", 2**20, random_pages),
    ("a file of {:,} pages, owners alternate", 2**20, alternating),
    ("a file of {:,} pages in one range", 2**20, one_range),
    ("{:,} files of one page", 100_000, single_pages),
]


def seconds(steps: Iterator[Step]) -> list[tuple[Step, float]]:
    """Each step and the wall time it took."""
    charges: Charges = ChargeList()
    timed = []
    for step in steps:
        gc.collect()
        begin = time.perf_counter()
        step.run(charges)
        timed.append((step, time.perf_counter() - begin))
    return timed


def bytes_held(steps: Iterator[Step]) -> list[int]:
    """How much more is allocated after each step than before the first."""
    held = []
    first = next(steps)  # Its pages are drawn now, and do not count.
    tracemalloc.start()
    try:
        charges: Charges = ChargeList()
        for step in itertools.chain((first,), steps):
            step.run(charges)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return held


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.charge_list",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", type=float, default=1.0, help="part of the sizes (default 1)")
    parser.add_argument("--seed", type=int, default=1, help="of the random orders (default 1)")
    parser.add_argument("--no-memory", action="store_true", help="leave the last column out")
    options = parser.parse_args()
    write = sys.stdout.write
    for title, full_size, steps_of in SCENARIOS:
        size = max(8, int(full_size * options.scale))
        write(f"\n{title.format(size)}\n")
        write(f"{'operation':<40}{'units':>22}{'seconds':>10}{'units/s':>18}{'MiB':>8}\n")
        timed = seconds(steps_of(size, options.seed))
        held = [] if options.no_memory else bytes_held(steps_of(size, options.seed))
        for (step, took), traced in itertools.zip_longest(timed, held):
            units = f"{step.units:,} {step.unit}"
            speed = f"{step.units / max(took, 1e-9):,.0f}"
            memory = "" if traced is None else f"{traced / 2**20:.1f}"
            write(f"{step.name:<40}{units:>22}{took:>10.3f}{speed:>18}{memory:>8}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
