"""The huge page pools of the host, from sysfs (Documentation/admin-guide/mm/hugetlbpage.rst)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.page_size import PageSize, UnknownPageSize


@dataclass(frozen=True, slots=True)
class Pool:
    """The huge pages of one size on one NUMA node; ``numa_node`` None means the whole host.

    All amounts are pages. ``reserved`` pages are promised to mappings and not faulted yet. The
    kernel shows this number only for the whole host.
    """

    size: PageSize
    numa_node: int | None
    total: int
    free: int
    reserved: int | None
    surplus: int


def page_sizes(host: HostRoot) -> tuple[PageSize, ...]:
    """Return every huge page size of the host, smallest first. The sizes are fixed at boot."""
    return tuple(size for size, _ in _folders(host.at("/sys/kernel/mm/hugepages")))


def pools(host: HostRoot) -> tuple[Pool, ...]:
    """Return every pool, ordered by size; for each size the whole host, then each NUMA node."""
    found = [
        _pool(folder, size, None) for size, folder in _folders(host.at("/sys/kernel/mm/hugepages"))
    ]
    for node in host.at("/sys/devices/system/node").glob("node*"):
        if (number := re.fullmatch(r"node(\d+)", node.name)) is not None:
            found += (
                _pool(folder, size, int(number[1])) for size, folder in _folders(node / "hugepages")
            )
    return tuple(sorted(found, key=lambda p: (p.size, -1 if p.numa_node is None else p.numa_node)))


def _folders(parent: Path) -> list[tuple[PageSize, Path]]:
    found: list[tuple[PageSize, Path]] = []
    for folder in parent.glob("hugepages-*"):
        try:
            found.append((PageSize.from_sysfs(folder.name), folder))
        except UnknownPageSize:
            continue  # Kubernetes has no resource name for this size
    return sorted(found)


def _pool(folder: Path, size: PageSize, numa_node: int | None) -> Pool:
    return Pool(
        size=size,
        numa_node=numa_node,
        total=_count(folder / "nr_hugepages"),
        free=_count(folder / "free_hugepages"),
        reserved=_count(folder / "resv_hugepages") if numa_node is None else None,
        surplus=_count(folder / "surplus_hugepages"),
    )


def _count(path: Path) -> int:
    return int(path.read_text())
