"""Never a file that anything still holds, also under race."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.node.reclaim import AnotherFile, StillHeld, reclaim
from tests.tracking import PAGE, Actor, hugetlbfs


@pytest.fixture
def mounted(tmp_path: Path, pages: Callable[[int], None]) -> Iterator[Superblock]:
    pages(8)
    with hugetlbfs(tmp_path / "huge") as superblock:
        yield superblock


@pytest.fixture
def file(mounted: Superblock) -> Path:
    path = mounted.path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, 2 * PAGE)
    os.close(descriptor)
    assert path.stat().st_blocks == 2 * PAGE // 512
    return path


def identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


@pytest.fixture
def actor(cgroup_subtree: Path) -> Iterator[Actor]:
    pod = cgroup_subtree / "pod"
    pod.mkdir()
    with Actor(pod) as running:
        yield running


def test_a_file_that_nobody_holds_is_removed_and_its_pages_are_free(file: Path) -> None:
    filesystem = file.parent
    free = _free_pages()
    reclaim(file, *identity(file))
    assert list(filesystem.iterdir()) == []
    assert _free_pages() == free + 2


@pytest.mark.parametrize(
    "holding",
    [
        ["fd = os.open(path, os.O_RDONLY)"],
        ["fd = os.open(path, os.O_RDWR)"],
        ["fd = os.open(path, os.O_RDWR)", "a = map_pages(2, SHARED, fd)", "os.close(fd)"],
        ["fd = os.open(path, os.O_RDWR)", "a = map_pages(1, PRIVATE, fd, 0, 1)", "os.close(fd)"],
    ],
    ids=["open to read", "open to write", "mapped shared", "mapped private"],
)
def test_a_file_that_is_open_or_mapped_is_left(
    file: Path, actor: Actor, holding: list[str]
) -> None:
    actor.do(f"path = {str(file)!r}")
    for statement in holding:
        actor.do(statement)
    with pytest.raises(StillHeld, match="a process has it open or mapped"):
        reclaim(file, *identity(file))
    assert file.stat().st_blocks == 2 * PAGE // 512


def test_another_file_of_that_name_is_left(file: Path, tmp_path: Path) -> None:
    meant = identity(file)
    file.rename(file.with_name("moved"))
    file.touch()
    with pytest.raises(AnotherFile):
        reclaim(file, *meant)
    assert file.exists()
    file.unlink()
    with pytest.raises(AnotherFile):
        reclaim(file, *meant)
    link = tmp_path / "link"
    link.symlink_to(file.with_name("moved"))
    with pytest.raises(AnotherFile):
        reclaim(link, *meant)
    assert file.with_name("moved").stat().st_blocks == 2 * PAGE // 512


def test_no_opener_ever_loses_what_it_sees(mounted: Superblock) -> None:
    """Somebody opens, maps and checks the file for ever, while it is being reclaimed."""
    path = mounted.path / "contended"
    over = threading.Event()
    seen = {"whole": 0, "torn": 0}

    def use() -> None:
        while not over.is_set():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
            try:
                os.posix_fallocate(descriptor, 0, PAGE)
                time.sleep(0.0005)
                # While it is open here its page must stay.
                whole = os.fstat(descriptor).st_blocks == PAGE // 512
                seen["whole" if whole else "torn"] += 1
            finally:
                os.close(descriptor)
            time.sleep(0.0002)

    user = threading.Thread(target=use)
    user.start()
    reclaimed = left = 0
    until = time.monotonic() + 3
    while time.monotonic() < until:
        try:
            reclaim(path, *identity(path))
            reclaimed += 1
        except StillHeld:
            left += 1
        except (AnotherFile, FileNotFoundError):
            continue
    over.set()
    user.join(timeout=10)
    assert seen["torn"] == 0
    # Both happened, or this has shown nothing.
    assert reclaimed > 20
    assert left > 20
    assert seen["whole"] > 100


def _free_pages() -> int:
    return int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
