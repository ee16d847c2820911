"""For tests of the reader: a charge list, and what the kernel's counters say of a subtree."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

from hugetlb_quota.node.charge_list import ChargeList, File
from hugetlb_quota.node.charge_reader import PROGRAM, ChargeReader
from hugetlb_quota.page_size import PageSize
from tests.tracking import SMALL, pages_of

READS = 200
"""At most, until nobody changed the subtree during one."""


def build() -> Path:
    """The reader's program, made if need be. Raises AssertionError with the compiler's words."""
    with (PROGRAM.parent / "Makefile").open() as held:
        # Another process of this run may be making it.
        fcntl.flock(held, fcntl.LOCK_EX)
        made = subprocess.run(
            ["make", "-s", "-C", str(PROGRAM.parent)], capture_output=True, text=True, check=False
        )
    assert made.returncode == 0, made.stderr
    return PROGRAM


async def equal(
    reader: ChargeReader, subtree: Path, size: PageSize = SMALL, unlisted: int = 0
) -> ChargeList:
    """A list read while ``subtree``'s counter stood still: it is the counter.

    ``unlisted`` are the pages by which the counter passes it.
    """
    for _ in range(READS):
        before = pages_of(subtree, size)[0]
        charges = await reader.read()
        if pages_of(subtree, size)[0] == before:
            assert listed(charges, subtree, size) == before - unlisted
            return charges
    raise AssertionError(f"{subtree} changed during each of {READS} reads")


def listed(charges: ChargeList, cgroup: Path | int, size: PageSize = SMALL) -> int:
    """Pages charged to a cgroup, by its directory or its ID, and to all below it."""
    id_ = cgroup if isinstance(cgroup, int) else cgroup.stat().st_ino
    return charges.below(id_).get(size, 0)


def file_of(charges: ChargeList, path: Path) -> File:
    """The file that ``path`` leads to."""
    status = path.stat()
    return file_at(charges, status.st_dev, status.st_ino)


def file_at(charges: ChargeList, device: int, inode: int) -> File:
    found = [f for f in charges.files if (f.superblock.device, f.inode) == (device, inode)]
    assert len(found) == 1, [f.path for f in charges.files]
    return found[0]


def regions(file: File) -> list[tuple[int, int, str]]:
    """Start, end, and the name of the cgroup."""
    return [(r.start, r.end, r.cgroup.path.rpartition("/")[2]) for r in file.regions]
