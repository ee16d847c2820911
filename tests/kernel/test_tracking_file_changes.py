"""Files that are made, resized, removed and renamed are told of, in every directory."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from hugetlb_quota.node.file_changes import Change, FileChanged, FileChanges, LookAgain
from hugetlb_quota.node.hugetlbfs import Superblock
from tests.tracking import Actor, hugetlbfs, unmount

SECONDS = 20.0


@pytest.fixture
def mounted(tmp_path: Path, kernel: None) -> Iterator[Superblock]:
    with hugetlbfs(tmp_path / "huge") as superblock:
        yield superblock


class Watch:
    """Changes that are followed, and all that was told."""

    def __init__(self, changes: FileChanges) -> None:
        self.changes = changes
        self.told: list[Change] = []

    async def follow(self) -> None:
        async for change in self.changes:
            self.told.append(change)

    async def until(self, *changes: Change) -> None:
        """Wait until these were told, and nothing else was; forget them."""
        async with asyncio.timeout(SECONDS):
            while not set(changes) <= set(self.told):
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        assert set(self.told) == set(changes)
        self.told.clear()


@pytest.fixture
async def watch(mounted: Superblock) -> AsyncIterator[Watch]:
    (mounted.path / "below").mkdir()
    (mounted.path / "below" / "there").touch()
    with FileChanges() as changes:
        changes.watch(mounted)
        watch = Watch(changes)
        following = asyncio.create_task(watch.follow())
        yield watch
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


@pytest.fixture
def actor(mounted: Superblock) -> Iterator[Actor]:
    with Actor() as actor:
        actor.do(f"os.chdir({str(mounted.path)!r})")
        yield actor


async def test_the_life_of_a_file(
    mounted: Superblock, watch: Watch, actor: Actor, pages: Callable[[int], None]
) -> None:
    pages(2)

    def changed(path: str) -> FileChanged:
        return FileChanged(mounted.device, path)

    for statement, expected in (
        ("fd = create('a')", [changed("a")]),
        ("os.ftruncate(fd, 4 * PAGE)", [changed("a")]),
        ("fallocate(fd, 0, 2)", [changed("a")]),
        ("fallocate(fd, 0, 1, PUNCH_HOLE)", [changed("a")]),
        ("os.ftruncate(fd, PAGE)", [changed("a")]),
        # Of what is renamed the new name is told: until then it is not gone.
        ("os.rename('a', 'below/b')", [changed("below/b")]),
        ("os.ftruncate(fd, 0)", [changed("below/b")]),
        ("os.unlink('below/b')", [changed("below/b")]),
    ):
        actor.do(statement)
        await watch.until(*expected)


async def test_files_in_new_directories(mounted: Superblock, watch: Watch, actor: Actor) -> None:
    actor.do("os.makedirs('x/y/z'); create('x/y/z/a'); create('x/b')")
    await watch.until(FileChanged(mounted.device, "x/y/z/a"), FileChanged(mounted.device, "x/b"))
    actor.do("create('x/y/z/c')")
    await watch.until(FileChanged(mounted.device, "x/y/z/c"))


async def test_a_directory_that_is_renamed_is_followed_under_its_new_name(
    mounted: Superblock, watch: Watch, actor: Actor
) -> None:
    actor.do("os.rename('below', 'elsewhere')")
    await watch.until(LookAgain(mounted.device))
    actor.do(
        "os.mkdir('below'); fd = create('below/new'); os.ftruncate(create('elsewhere/there'), PAGE)"
    )
    await watch.until(
        FileChanged(mounted.device, "below/new"), FileChanged(mounted.device, "elsewhere/there")
    )


async def test_a_directory_that_is_removed_and_made_again(
    mounted: Superblock, watch: Watch, actor: Actor
) -> None:
    shutil.rmtree(mounted.path / "below")
    await watch.until(FileChanged(mounted.device, "below/there"))
    actor.do("os.mkdir('below'); create('below/new')")
    await watch.until(FileChanged(mounted.device, "below/new"))


async def test_what_is_mounted_below_is_another(mounted: Superblock, watch: Watch) -> None:
    (mounted.path / "mount").mkdir()
    with hugetlbfs(mounted.path / "mount") as other:
        watch.changes.forget(mounted)
        watch.changes.watch(mounted)
        (other.path / "theirs").touch()
        (mounted.path / "ours").touch()
        await watch.until(FileChanged(mounted.device, "ours"))


async def test_a_file_system_that_is_forgotten_is_silent(mounted: Superblock, watch: Watch) -> None:
    watch.changes.forget(mounted)
    (mounted.path / "below" / "a").touch()
    await asyncio.sleep(0.05)
    watch.changes.watch(mounted)
    (mounted.path / "below" / "b").touch()
    await watch.until(FileChanged(mounted.device, "below/b"))


async def test_watching_keeps_nothing_from_being_unmounted(
    mounted: Superblock, watch: Watch
) -> None:
    unmount(mounted.path)
    with hugetlbfs(mounted.path) as new:
        watch.changes.forget(mounted)
        watch.changes.watch(new)
        (new.path / "a").touch()
        await watch.until(FileChanged(new.device, "a"))


async def test_lost_events_are_told(mounted: Superblock, watch: Watch) -> None:
    # In one go, so that the watcher gets no turn. Equal events in a row are one.
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(limit // 2 + 10):
        (mounted.path / "a").touch()
        (mounted.path / "a").unlink()
    async with asyncio.timeout(SECONDS):
        while LookAgain(None) not in watch.told:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    watch.told.clear()
    (mounted.path / "below" / "after").touch()
    await watch.until(FileChanged(mounted.device, "below/after"))
