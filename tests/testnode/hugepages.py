"""The host's huge page pools: what sizes there are, and pages borrowed for a test."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POOLS = Path("/sys/kernel/mm/hugepages")
# One lock for everybody on this kernel: nr_hugepages is read, changed and written back.
LOCK = Path("/tmp/hugetlb-quota-pages.lock")


def page_sizes() -> list[int]:
    """Huge page sizes this kernel offers, in bytes, smallest first."""
    pools = POOLS.glob("hugepages-*kB") if POOLS.is_dir() else ()
    return sorted(
        int(pool.name.removeprefix("hugepages-").removesuffix("kB")) * 1024 for pool in pools
    )


def _pool(page_bytes: int) -> Path:
    return POOLS / f"hugepages-{page_bytes // 1024}kB"


def total_pages(page_bytes: int) -> int:
    """Pages in the pool of this size, in use or not."""
    return int((_pool(page_bytes) / "nr_hugepages").read_text())


@contextmanager
def _locked() -> Iterator[None]:
    with LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _change(page_bytes: int, by: int) -> int:
    """Grow or shrink the pool; the pages by which it did."""
    with _locked():
        before = total_pages(page_bytes)
        (_pool(page_bytes) / "nr_hugepages").write_text(str(max(0, before + by)))
        return total_pages(page_bytes) - before


@contextmanager
def reserved_pages(size_bytes: int, count: int) -> Iterator[None]:
    """``count`` more pages of ``size_bytes`` in the host's pool, given back at the end.

    Adds to what is there, so tests that run at once don't take each other's pages.
    Raises RuntimeError when the kernel has no such size or finds too little memory for it.
    """
    if size_bytes not in page_sizes():
        raise RuntimeError(
            f"the kernel has no huge pages of {size_bytes} bytes: it offers {page_sizes()}"
        )
    gained = _change(size_bytes, count)
    try:
        if gained < count:
            raise RuntimeError(
                f"asked the kernel for {count} more huge pages of {size_bytes >> 10} KiB and got "
                f"{gained}: free memory is too small or too fragmented; free some and try again"
            )
        yield
    finally:
        _change(size_bytes, -gained)
