"""Helpers for tests of the reader: compare a charge list with the kernel's counters."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

from hugetlb_quota.node.charge_list import ChargeList, File
from hugetlb_quota.node.charge_reader import PROGRAM, ChargeReader
from hugetlb_quota.page_size import PageSize
from tests.tracking import SMALL, pages_of

READS = 200
"""The most reads until the subtree does not change during one read."""


def build(folder: Path = PROGRAM.parent) -> Path:
    """Build the reader's program in `folder` if needed; return its path.

    Raises AssertionError with the compiler's output if the build fails.
    """
    with (folder / "Makefile").open() as makefile:
        # Another process of this run may build the program at the same time.
        fcntl.flock(makefile, fcntl.LOCK_EX)
        made = subprocess.run(
            ["make", "-s", "-C", str(folder)], capture_output=True, text=True, check=False
        )
    assert made.returncode == 0, made.stderr
    return folder / PROGRAM.name


async def equal(
    reader: ChargeReader, subtree: Path, size: PageSize = SMALL, unlisted: int = 0
) -> ChargeList:
    """Return a list, after a check that it equals the counter of ``subtree``.

    The list was read while the counter did not change. ``unlisted`` is the number of pages that the
    counter has beyond the list.
    """
    for _ in range(READS):
        before = pages_of(subtree, size)[0]
        charges = await reader.read()
        if pages_of(subtree, size)[0] == before:
            assert listed(charges, subtree, size) == before - unlisted
            return charges
    raise AssertionError(f"{subtree} changed during each of {READS} reads")


def listed(charges: ChargeList, cgroup: Path | int, size: PageSize = SMALL) -> int:
    """Return the pages charged to a cgroup and all below; the cgroup is a directory or an ID."""
    id_ = cgroup if isinstance(cgroup, int) else cgroup.stat().st_ino
    return charges.below(id_).get(size, 0)


def file_of(charges: ChargeList, path: Path) -> File:
    """Return the file at ``path``."""
    status = path.stat()
    return file_at(charges, status.st_dev, status.st_ino)


def file_at(charges: ChargeList, device: int, inode: int) -> File:
    found = [f for f in charges.files if (f.superblock.device, f.inode) == (device, inode)]
    assert len(found) == 1, [f.path for f in charges.files]
    return found[0]


def regions(file: File) -> list[tuple[int, int, str]]:
    """Return start, end and the cgroup's name of each region."""
    return [(r.start, r.end, r.cgroup.path.rpartition("/")[2]) for r in file.regions]
