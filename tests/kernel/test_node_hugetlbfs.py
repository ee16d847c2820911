"""Finds real hugetlbfs mounts, while they are mounted and unmounted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hugetlb_quota.node.hugetlbfs import Superblock, is_within_reach, superblocks, used
from hugetlb_quota.node.pools import page_sizes
from hugetlb_quota.page_size import PageSize
from tests.testnode.volumes import mount
from tests.tracking import HOST, PAGE, Actor, at, hugetlbfs, unmount


@pytest.fixture
def mounted(tmp_path: Path, kernel: None) -> Iterator[Superblock]:
    with hugetlbfs(tmp_path / "huge") as superblock:
        yield superblock


def test_reads_all_options_of_a_mount(tmp_path: Path, pages: Callable[[int], None]) -> None:
    pages(2)  # mount(2) takes the pages for min_size= from the pool
    point = tmp_path / "huge pages"
    with hugetlbfs(point, "size=10M,min_size=4M") as superblock:
        assert superblock == Superblock(
            device=point.stat().st_dev,
            size=PageSize(PAGE),
            limit=10 << 20,
            minimum=4 << 20,
            point=str(point),
            path=point,
        )


def test_finds_a_mount_of_every_page_size(tmp_path: Path, kernel: None) -> None:
    for size in page_sizes(HOST):
        point = tmp_path / str(size)
        point.mkdir()
        mount("hugetlbfs", point, f"pagesize={size.bytes}")
        try:
            assert at(point).size == size
        finally:
            unmount(point)


def test_lists_a_file_system_once_if_it_is_mounted_twice(
    mounted: Superblock, tmp_path: Path
) -> None:
    with bind(mounted.path, tmp_path / "again"):
        assert [each for each in superblocks(HOST) if each.device == mounted.device] == [mounted]
        unmount(mounted.path)
        moved = [each for each in superblocks(HOST) if each.device == mounted.device]
        assert [each.path for each in moved] == [tmp_path / "again"]


def test_ignores_a_bind_mount_of_a_part(mounted: Superblock, tmp_path: Path) -> None:
    (mounted.path / "part").mkdir()
    with bind(mounted.path / "part", tmp_path / "part"):
        unmount(mounted.path)
        assert mounted.device not in {each.device for each in superblocks(HOST)}


def test_ignores_a_hidden_mount(mounted: Superblock) -> None:
    mount("tmpfs", mounted.path, "")
    try:
        assert mounted.device not in {each.device for each in superblocks(HOST)}
        assert not is_within_reach(mounted)
    finally:
        unmount(mounted.path)
    assert mounted in superblocks(HOST)
    assert is_within_reach(mounted)


def test_counts_reserved_pages_of_a_mount_with_a_size(
    tmp_path: Path, pages: Callable[[int], None]
) -> None:
    pages(8)
    with hugetlbfs(tmp_path / "huge", "size=8M") as superblock, Actor() as actor:
        assert used(superblock) == 0
        actor.do(f"a = map_pages(2, SHARED, create({str(superblock.path / 'file')!r}))")
        assert used(superblock) == 2 * PAGE
    assert used(superblock) is None


@contextmanager
def bind(source: Path, target: Path) -> Iterator[None]:
    target.mkdir()
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield
    finally:
        unmount(target)
