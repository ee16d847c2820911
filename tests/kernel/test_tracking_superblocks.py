"""The hugetlbfs of the host, as they are mounted and unmounted, and the files on them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from hugetlb_quota.node.hugetlbfs import (
    Changes,
    FileState,
    Superblock,
    follow_superblocks,
    internal_devices,
    scan,
    segments,
    superblocks,
)
from hugetlb_quota.node.pools import page_sizes
from hugetlb_quota.page_size import PageSize
from tests.testnode.volumes import mount
from tests.tracking import HOST, PAGE, Actor, at, hugetlbfs, unmount

SECONDS = 20.0


@pytest.fixture
def mounted(tmp_path: Path, kernel: None) -> Iterator[Superblock]:
    with hugetlbfs(tmp_path / "huge") as superblock:
        yield superblock


class Follow:
    """What follow_superblocks tells."""

    def __init__(self) -> None:
        self.told: list[Changes] = []

    async def follow(self) -> None:
        async for changes in follow_superblocks(HOST):
            self.told.append(changes)

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not holds():
                await asyncio.sleep(0.005)

    def appeared(self) -> list[Superblock]:
        return [one for changes in self.told for one in changes.appeared]

    def gone(self) -> list[Superblock]:
        return [one for changes in self.told for one in changes.gone]


@asynccontextmanager
async def following() -> AsyncIterator[Follow]:
    follow = Follow()
    task = asyncio.create_task(follow.follow())
    await follow.until(lambda: follow.told)
    yield follow
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_what_is_known_of_a_file_system(tmp_path: Path, pages: Callable[[int], None]) -> None:
    pages(2)  # min_size= takes its pages from the pool in mount(2)
    point = tmp_path / "huge pages"
    with hugetlbfs(point, "size=10M,min_size=4M") as superblock:
        assert superblock == Superblock(
            device=point.stat().st_dev,
            root=point.stat().st_ino,
            size=PageSize(PAGE),
            limit=10 << 20,
            minimum=4 << 20,
            point=str(point),
            path=point,
        )


def test_every_page_size_can_be_mounted(tmp_path: Path, kernel: None) -> None:
    for size in page_sizes(HOST):
        point = tmp_path / str(size)
        point.mkdir()
        mount("hugetlbfs", point, f"pagesize={size.bytes}")
        try:
            assert at(point).size == size
        finally:
            unmount(point)


def test_one_that_is_mounted_twice_is_one(mounted: Superblock, tmp_path: Path) -> None:
    with bind(mounted.path, tmp_path / "again"):
        assert [one for one in superblocks(HOST) if one.device == mounted.device] == [mounted]
        unmount(mounted.path)
        moved = [one for one in superblocks(HOST) if one.device == mounted.device]
        assert [one.path for one in moved] == [tmp_path / "again"]


def test_a_part_of_one_is_no_place_to_see_it(mounted: Superblock, tmp_path: Path) -> None:
    (mounted.path / "part").mkdir()
    with bind(mounted.path / "part", tmp_path / "part"):
        unmount(mounted.path)
        assert mounted.device not in {one.device for one in superblocks(HOST)}


def test_one_that_is_hidden_by_another_is_left_out(mounted: Superblock) -> None:
    mount("tmpfs", mounted.path, "")
    try:
        assert mounted.device not in {one.device for one in superblocks(HOST)}
    finally:
        unmount(mounted.path)
    assert mounted in superblocks(HOST)


async def test_one_that_comes_and_goes_is_told_of(tmp_path: Path, kernel: None) -> None:
    async with following() as follow:
        with hugetlbfs(tmp_path / "huge") as superblock:
            await follow.until(lambda: superblock in follow.appeared())
            assert superblock not in follow.gone()
        await follow.until(lambda: superblock in follow.gone())


async def test_what_is_there_is_told_of_first(mounted: Superblock) -> None:
    async with following() as follow:
        assert mounted in follow.told[0].appeared
        assert follow.told[0].gone == ()


async def test_many_at_once_are_all_told_of(tmp_path: Path, kernel: None) -> None:
    async with following() as follow:
        with ExitStack() as mounts:
            all_of_them = {
                mounts.enter_context(hugetlbfs(tmp_path / str(number))) for number in range(40)
            }
            await follow.until(lambda: all_of_them <= set(follow.appeared()))
        await follow.until(lambda: all_of_them <= set(follow.gone()))


async def test_one_in_the_place_of_another_is_another(mounted: Superblock) -> None:
    """Unmounted and mounted again between two looks, with the same device number."""
    async with following() as follow:
        unmount(mounted.path)
        with hugetlbfs(mounted.path) as new:
            assert new.device == mounted.device
            await follow.until(lambda: new in follow.appeared())
            assert mounted in follow.gone()


async def test_one_that_is_seen_at_another_place_is_told_of(
    mounted: Superblock, tmp_path: Path
) -> None:
    with bind(mounted.path, tmp_path / "again"):
        async with following() as follow:
            unmount(mounted.path)
            await follow.until(lambda: len(follow.told) == 2)
            (moved,) = follow.told[1].moved
            assert (moved.device, moved.path) == (mounted.device, tmp_path / "again")
            assert (follow.told[1].appeared, follow.told[1].gone) == ((), ())


async def test_following_waits_without_turning(mounted: Superblock) -> None:
    async with following():
        before = os.times()
        await asyncio.sleep(1.0)
        after = os.times()
        assert after.user + after.system - before.user - before.system < 0.2


async def test_following_and_scanning_keep_nothing_from_being_unmounted(
    mounted: Superblock,
) -> None:
    (mounted.path / "below").mkdir()
    for name in ("a", "b", "below/c"):
        (mounted.path / name).touch()
    async with following() as follow:
        files = scan(mounted)
        next(files)
        # With the scan in the middle of a directory.
        unmount(mounted.path)
        await follow.until(lambda: mounted in follow.gone())
    assert list(files) is not None


async def test_a_busy_file_is_all_that_keeps_it_mounted(mounted: Superblock) -> None:
    async with following() as follow:
        with Actor() as actor:
            actor.do(f"fd = create({str(mounted.path / 'file')!r})")
            assert len(list(scan(mounted))) == 1
            with pytest.raises(OSError, match="busy"):
                unmount(mounted.path)
            actor.do("os.close(fd)")
            unmount(mounted.path)
        await follow.until(lambda: mounted in follow.gone())


def test_every_file_is_found(mounted: Superblock, pages: Callable[[int], None]) -> None:
    pages(3)
    with Actor() as actor:
        actor.do(f"os.chdir({str(mounted.path)!r}); os.makedirs('x/y')")
        actor.do("fd = create('x/y/file'); os.ftruncate(fd, 5 * PAGE); fallocate(fd, 0, 3)")
        actor.do("os.mkfifo('fifo'); os.close(create(b'\\xff'))")
    found = {file.path: file for file in scan(mounted)}
    state = (mounted.path / "x/y/file").stat()
    assert found.keys() == {"x/y/file", "\udcff"}
    assert found["x/y/file"] == FileState(
        mounted.device, state.st_ino, "x/y/file", 5 * PAGE, 3, 1, state.st_ctime_ns
    )


def test_what_is_mounted_below_is_left_out(mounted: Superblock) -> None:
    (mounted.path / "file").touch()
    with hugetlbfs(mounted.path / "other") as other:
        (other.path / "theirs").touch()
        assert [file.path for file in scan(mounted)] == ["file"]
        assert [file.path for file in scan(other)] == ["theirs"]


def test_files_that_come_and_go_disturb_no_scan(mounted: Superblock) -> None:
    for number in range(2000):
        (mounted.path / f"stays-{number}").touch()
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(100):
                folder = mounted.path / f"folder-{number}"
                folder.mkdir()
                (folder / "file").touch()
                (mounted.path / f"goes-{number}").touch()
            for number in range(100):
                (mounted.path / f"goes-{number}").unlink()
                (mounted.path / f"folder-{number}" / "file").unlink()
                (mounted.path / f"folder-{number}").rmdir()

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        for _ in range(20):
            found = [file.path for file in scan(mounted)]
            stays = [path for path in found if path.startswith("stays-")]
            assert len(stays) == len(set(stays)) == 2000
    finally:
        stop.set()
        churning.join()


def test_a_file_system_that_is_gone_has_no_files(mounted: Superblock) -> None:
    (mounted.path / "file").touch()
    unmount(mounted.path)
    (mounted.path / "of another").touch()
    assert list(scan(mounted)) == []


def test_the_kernels_own_mounts_are_found_without_a_page(kernel: None) -> None:
    sizes = page_sizes(HOST)
    devices = internal_devices(sizes)
    assert sorted(devices.values()) == list(sizes)
    assert not devices.keys() & {one.device for one in superblocks(HOST)}
    with Actor() as actor:
        device = actor.do("result = os.fstat(libc.memfd_create(b'm', 4)).st_dev")
        assert devices[device] == PageSize(PAGE)


def test_segments_are_listed(kernel: None, pages: Callable[[int], None]) -> None:
    pages(2)
    with Actor() as actor:
        number = actor.do("result = number = shmget(0, 2)")
        try:
            actor.do("touch(libc.shmat(number, None, 0), 0)")
            (segment,) = (one for one in segments(HOST) if one.id == number)
            assert (segment.size, segment.creator, segment.attached) == (2 * PAGE, actor.pid, 1)
        finally:
            actor.do("libc.shmctl(number, 0, None)")


@contextmanager
def bind(source: Path, target: Path) -> Iterator[None]:
    target.mkdir()
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield
    finally:
        unmount(target)
