"""reclaim on real files: it never removes a file that a process holds, not even in a race."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.node.reclaim import AnotherFile, NotReclaimed, StillHeld, reclaim
from tests.testnode.volumes import mount, unmount_below
from tests.tracking import PAGE, Actor, hugetlbfs


@pytest.fixture
def mounted(tmp_path: Path, pages: Callable[[int], None]) -> Iterator[Superblock]:
    pages(8)
    with hugetlbfs(tmp_path / "huge") as superblock:
        yield superblock


@pytest.fixture
def linkable(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs, because hugetlbfs refuses to make a symbolic link (EINVAL)."""
    point = tmp_path / "linkable"
    point.mkdir()
    mount("tmpfs", point, "size=64M")
    try:
        yield point
    finally:
        unmount_below(point)


@pytest.fixture
def file(mounted: Superblock) -> Path:
    path = mounted.path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, 2 * PAGE)
    os.close(descriptor)
    assert path.stat().st_blocks == 2 * PAGE // 512
    return path


def make(path: Path) -> Path:
    """Make a file of one page, and the directories above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, PAGE)
    os.close(descriptor)
    return path


def after_truncation(act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call ``act`` between the truncation of a file and its removal."""
    truncate = os.ftruncate

    def truncate_and_act(descriptor: int, length: int) -> None:
        truncate(descriptor, length)
        act()

    monkeypatch.setattr(os, "ftruncate", truncate_and_act)


def identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


@pytest.fixture
def actor(cgroup_subtree: Path) -> Iterator[Actor]:
    pod = cgroup_subtree / "pod"
    pod.mkdir()
    with Actor(pod) as running:
        yield running


def test_removes_a_file_that_no_process_holds_and_frees_its_pages(file: Path) -> None:
    filesystem = file.parent
    free = _free_pages()
    reclaim(filesystem, ["file"], *identity(file))
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
def test_leaves_a_file_that_is_open_or_mapped(file: Path, actor: Actor, holding: list[str]) -> None:
    actor.do(f"path = {str(file)!r}")
    for statement in holding:
        actor.do(statement)
    with pytest.raises(StillHeld, match="a process has it open or mapped"):
        reclaim(file.parent, ["file"], *identity(file))
    assert file.stat().st_blocks == 2 * PAGE // 512


def test_leaves_another_file_with_the_same_name(file: Path) -> None:
    filesystem, meant = file.parent, identity(file)
    file.rename(file.with_name("moved"))
    file.touch()
    with pytest.raises(AnotherFile):
        reclaim(filesystem, ["file"], *meant)
    assert file.exists()
    file.unlink()
    with pytest.raises(AnotherFile):
        reclaim(filesystem, ["file"], *meant)
    file.mkdir()
    with pytest.raises(AnotherFile):
        reclaim(filesystem, ["file"], *meant)
    assert file.with_name("moved").stat().st_blocks == 2 * PAGE // 512


@pytest.mark.parametrize("link", ["", "a", "a/b", "a/b/file"])
def test_follows_no_link(linkable: Path, link: str) -> None:
    point = linkable / "mount"
    file = make(point / "a/b/file")
    meant = identity(file)
    moved = (point / link).rename(linkable / "moved")
    (point / link).symlink_to(moved)
    with pytest.raises(AnotherFile):
        reclaim(point, ["a", "b", "file"], *meant)
    assert file.stat().st_size == PAGE


@pytest.mark.parametrize("to", ["directory", "link"])
def test_removes_nothing_in_a_directory_that_replaces_another(
    mounted: Superblock, linkable: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """After the truncation, the directory gets another name. Its old name leads elsewhere."""
    point = linkable if to == "link" else mounted.path
    file, another = make(point / "d/file"), make(point / "another/file")
    kept = identity(another)

    def swap() -> None:
        (point / "d").rename(point / "moved")
        if to == "link":
            (point / "d").symlink_to("another")
        else:
            (point / "another").rename(point / "d")

    after_truncation(swap, monkeypatch)
    reclaim(point, ["d", "file"], *identity(file))
    assert identity(point / "d/file") == kept
    assert (point / "d/file").stat().st_size == PAGE
    assert list((point / "moved").iterdir()) == []


@pytest.mark.parametrize("to", ["another file", "nothing"])
def test_leaves_a_file_that_replaces_another_during_the_removal(
    mounted: Superblock, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    file, other = make(mounted.path / "file"), make(mounted.path / "other")

    def swap() -> None:
        file.rename(file.with_name("moved"))
        if to == "another file":
            other.rename(file)

    after_truncation(swap, monkeypatch)
    with pytest.raises(AnotherFile):
        reclaim(mounted.path, ["file"], *identity(file))
    assert (file if to == "another file" else other).stat().st_size == PAGE
    assert file.with_name("moved").exists()


def test_removes_a_file_with_a_binary_name_and_never_prints_the_name(
    mounted: Superblock, actor: Actor
) -> None:
    names = [os.fsdecode(b"\xff"), os.fsdecode(b"caf\xe9")]
    file = make(mounted.path.joinpath(*names))
    actor.do(f"fd = os.open({os.fsencode(file)!r}, os.O_RDONLY)")
    with pytest.raises(StillHeld) as held:
        reclaim(mounted.path, names, *identity(file))
    assert str(held.value) == held.value.why == "a process has it open or mapped"
    actor.do("os.close(fd)")
    reclaim(mounted.path, names, *identity(file))
    assert list(file.parent.iterdir()) == []


def test_removes_a_file_with_a_path_longer_than_path_max(mounted: Superblock) -> None:
    names = ["d" * 250] * 20
    assert len("/".join(names)) > os.pathconf(mounted.path, "PC_PATH_MAX")
    directory = os.open(mounted.path, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=directory)
        below = os.open(name, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    try:
        descriptor = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=directory)
        os.posix_fallocate(descriptor, 0, PAGE)
        found = os.fstat(descriptor)
        os.close(descriptor)
        before = len(list(Path("/proc/self/fd").iterdir()))
        reclaim(mounted.path, [*names, "file"], found.st_dev, found.st_ino)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        with pytest.raises(FileNotFoundError):
            os.stat("file", dir_fd=directory)
    finally:
        os.close(directory)


@pytest.mark.parametrize(
    "names",
    [[], [""], ["", "file"], ["/", "file"], ["d", "..", "file"], [".", "file"], ["d/../file"]],
)
def test_refuses_names_that_do_not_lead_down(file: Path, names: list[str]) -> None:
    (file.parent / "d").mkdir()
    with pytest.raises(NotReclaimed, match="does not lead down from its mount"):
        reclaim(file.parent, names, *identity(file))
    assert file.stat().st_blocks == 2 * PAGE // 512


def test_no_process_loses_pages_of_a_file_that_it_has_open(mounted: Superblock) -> None:
    """A thread opens and checks the file again and again, while the test reclaims the file."""
    path = mounted.path / "contended"
    over = threading.Event()
    seen = {"whole": 0, "torn": 0}

    def use() -> None:
        while not over.is_set():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
            try:
                os.posix_fallocate(descriptor, 0, PAGE)
                time.sleep(0.0005)
                # The page must stay while the file is open here.
                whole = os.fstat(descriptor).st_blocks == PAGE // 512
                seen["whole" if whole else "torn"] += 1
            finally:
                os.close(descriptor)
            time.sleep(0.0002)

    user = threading.Thread(target=use)
    user.start()
    reclaimed = left = 0
    began = time.monotonic()
    # Continue until both cases have happened often enough.
    try:
        while min(reclaimed, left) <= 20 or seen["whole"] <= 100 or time.monotonic() < began + 3:
            assert time.monotonic() < began + 60, (reclaimed, left, seen)
            try:
                reclaim(mounted.path, ["contended"], *identity(path))
                reclaimed += 1
            except StillHeld:
                left += 1
            except (AnotherFile, FileNotFoundError):
                continue
    finally:
        over.set()
        user.join(timeout=10)
    assert seen["torn"] == 0


def _free_pages() -> int:
    return int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())
