"""Reads the pools of huge pages from sysfs."""

from pathlib import Path

from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.pools import Pool, page_sizes, pools
from hugetlb_quota.page_size import PageSize

TWO_MIB, ONE_GIB = PageSize(2 << 20), PageSize(1 << 30)


def folder(path: Path, total: int, free: int, surplus: int, reserved: int | None = None) -> None:
    path.mkdir(parents=True)
    for name, count in (("nr", total), ("free", free), ("surplus", surplus), ("resv", reserved)):
        if count is not None:
            (path / f"{name}_hugepages").write_text(f"{count}\n")


def test_orders_the_pools_by_size_and_numa_node(tmp_path: Path) -> None:
    kernel, nodes = tmp_path / "sys/kernel/mm/hugepages", tmp_path / "sys/devices/system/node"
    folder(kernel / "hugepages-1048576kB", 1, 1, 0, reserved=0)
    folder(kernel / "hugepages-2048kB", 10, 6, 1, reserved=3)
    folder(nodes / "node10/hugepages/hugepages-2048kB", 4, 0, 0)
    folder(nodes / "node2/hugepages/hugepages-2048kB", 6, 6, 1)
    (nodes / "has_memory").write_text("")
    (nodes / "nodeX").mkdir()
    assert pools(HostRoot(tmp_path)) == (
        Pool(TWO_MIB, None, 10, 6, 3, 1),
        Pool(TWO_MIB, 2, 6, 6, None, 1),
        Pool(TWO_MIB, 10, 4, 0, None, 0),
        Pool(ONE_GIB, None, 1, 1, 0, 0),
    )


def test_lists_the_sizes_of_the_kernel_without_unknown_sizes(tmp_path: Path) -> None:
    kernel = tmp_path / "sys/kernel/mm/hugepages"
    for name in ("hugepages-1048576kB", "hugepages-2048kB", "hugepages-3kB", "hugepages-x"):
        (kernel / name).mkdir(parents=True)
    assert page_sizes(HostRoot(tmp_path)) == (TWO_MIB, ONE_GIB)


def test_a_kernel_without_huge_pages_has_no_pools(tmp_path: Path) -> None:
    assert page_sizes(HostRoot(tmp_path)) == ()
    assert pools(HostRoot(tmp_path)) == ()
