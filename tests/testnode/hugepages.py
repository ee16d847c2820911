"""The host's huge page pools: their sizes, and pages borrowed for a test."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POOLS = Path("/sys/kernel/mm/hugepages")
# All processes on this kernel share this lock, to read, change and write nr_hugepages.
LOCK = Path("/tmp/hugetlb-quota-pages.lock")


def page_sizes() -> list[int]:
    """The huge page sizes of this kernel, in bytes, smallest first."""
    pools = POOLS.glob("hugepages-*kB") if POOLS.is_dir() else ()
    return sorted(
        int(pool.name.removeprefix("hugepages-").removesuffix("kB")) * 1024 for pool in pools
    )


def _pool(page_bytes: int) -> Path:
    return POOLS / f"hugepages-{page_bytes // 1024}kB"


def total_pages(page_bytes: int) -> int:
    """The number of pages in the pool of this size, in use or free."""
    return int((_pool(page_bytes) / "nr_hugepages").read_text())


@contextmanager
def _locked() -> Iterator[None]:
    with LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _change(page_bytes: int, by: int) -> int:
    """Grow or shrink the pool; return the change in pages."""
    with _locked():
        before = total_pages(page_bytes)
        (_pool(page_bytes) / "nr_hugepages").write_text(str(max(0, before + by)))
        return total_pages(page_bytes) - before


@contextmanager
def reserved_pages(size_bytes: int, count: int) -> Iterator[None]:
    """Add ``count`` pages of ``size_bytes`` to the host's pool, and remove them at the end.

    The pages come on top of the pool's pages, so that concurrent tests do not share pages.
    Raises RuntimeError if the kernel has no such size or too little memory.
    """
    if size_bytes not in page_sizes():
        raise RuntimeError(
            f"the kernel has no huge pages of {size_bytes} bytes: it offers {page_sizes()}"
        )
    gained = _change(size_bytes, count)
    try:
        if gained < count:
            raise RuntimeError(
                f"requested {count} more huge pages of {size_bytes >> 10} KiB, and the kernel gave "
                f"{gained}: free memory is too small or too fragmented; free some and try again"
            )
        yield
    finally:
        _change(size_bytes, -gained)
