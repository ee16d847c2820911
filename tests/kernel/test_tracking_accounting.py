"""What the kernel charges, to whom, and until when: the facts that the charge list stands on.

Each row is pages of ``rsvd.current`` and ``current`` after each statement, then what the
parent shows when the process is gone and its cgroup removed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hugetlb_quota.node.hugetlbfs import Superblock, scan, used
from tests.testnode import cgroup_tree
from tests.tracking import PAGE, Actor, hugetlbfs, pages_of

Steps = list[tuple[str, tuple[int, int]]]
Use = tuple[int, int]
OPEN = ("fd = create(path)", (0, 0))


@pytest.fixture
def mounted(tmp_path: Path, pages: Callable[[int], None]) -> Iterator[Superblock]:
    pages(8)
    with hugetlbfs(tmp_path / "huge") as superblock:
        yield superblock


@pytest.fixture
def pod(cgroup_subtree: Path) -> Path:
    path = cgroup_subtree / "pod"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        pytest.param(
            [OPEN, ("a = map_pages(4, SHARED, fd)", (4, 0)), ("unmap(a, 4)", (4, 0))],
            (4, 0),
            id="a shared mapping is charged in mmap, and stays charged after munmap and exit",
        ),
        pytest.param(
            [
                OPEN,
                ("a = map_pages(4, SHARED, fd)", (4, 0)),
                ("touch(a, 0, 1)", (4, 2)),
                ("fallocate(fd, 3, 1, PUNCH_HOLE)", (4, 2)),
                ("fallocate(fd, 0, 1, PUNCH_HOLE)", (3, 1)),
                ("os.ftruncate(fd, 3 * PAGE)", (2, 1)),
            ],
            (2, 1),
            id="punching gives back faulted pages only, truncating what is reserved too",
        ),
        pytest.param(
            [OPEN, ("a = map_pages(4, SHARED | NORESERVE, fd)", (0, 0)), ("touch(a, 0)", (1, 1))],
            (1, 1),
            id="without a reservation each page is charged as both when it is touched",
        ),
        pytest.param(
            [
                OPEN,
                ("fallocate(fd, 0, 3)", (3, 3)),
                ("a = map_pages(4, SHARED, fd)", (4, 3)),
                ("touch(a, 0)", (4, 3)),
                ("fallocate(fd, 1, 1, PUNCH_HOLE)", (3, 2)),
            ],
            (3, 2),
            id="fallocate charges both; mapping charges what is not charged yet",
        ),
        pytest.param(
            [
                OPEN,
                ("os.ftruncate(fd, 4 * PAGE)", (0, 0)),
                ("a = map_pages(4, PRIVATE, fd)", (4, 0)),
                ("touch(a, 0, 1)", (4, 2)),
                ("read(a, 2, 3)", (4, 4)),
            ],
            (0, 0),
            id="a private mapping of a file ends with its process, and leaves none in the file",
        ),
        pytest.param(
            [
                OPEN,
                ("fallocate(fd, 0, 2)", (2, 2)),
                ("a = map_pages(2, PRIVATE, fd)", (4, 2)),
                ("read(a, 0)", (4, 2)),
                ("touch(a, 0)", (4, 3)),
            ],
            (2, 2),
            id="a private mapping over a file's pages is charged beside them",
        ),
        pytest.param(
            [
                ("a = map_pages(3, PRIVATE | ANONYMOUS | HUGETLB)", (3, 0)),
                ("touch(a, 0)", (3, 1)),
            ],
            (0, 0),
            id="anonymous, private",
        ),
        pytest.param(
            [("a = map_pages(3, SHARED | ANONYMOUS | HUGETLB)", (3, 0)), ("touch(a, 0)", (3, 1))],
            (0, 0),
            id="anonymous, shared",
        ),
        pytest.param(
            [
                ("fd = libc.memfd_create(b'm', 4); os.ftruncate(fd, 3 * PAGE)", (0, 0)),
                ("a = map_pages(3, SHARED, fd)", (3, 0)),
                ("touch(a, 0)", (3, 1)),
            ],
            (0, 0),
            id="a memfd ends with its last descriptor and mapping",
        ),
    ],
)
def test_pages_charged(
    mounted: Superblock, cgroup_subtree: Path, pod: Path, steps: Steps, left: Use
) -> None:
    with Actor(pod) as actor:
        actor.do(f"path = {str(mounted.path / 'file')!r}")
        seen = []
        for statement, _ in steps:
            actor.do(statement)
            seen.append((statement, pages_of(pod)))
        assert seen == steps
        actor.exit()
    assert pages_of(pod) == left
    pod.rmdir()
    assert pages_of(cgroup_subtree) == left
    for file in scan(mounted):
        assert file.pages == left[1]
        (mounted.path / file.path).unlink()
    assert pages_of(cgroup_subtree) == (0, 0)


def test_a_segment_outlives_its_maker_until_it_is_removed(
    cgroup_subtree: Path, pod: Path, pages: Callable[[int], None]
) -> None:
    pages(3)
    with Actor() as remover, Actor(pod) as actor:
        number = actor.do("result = number = shmget(0, 3)")
        try:
            assert pages_of(pod) == (3, 0)
            actor.do("touch(libc.shmat(number, None, 0), 0)")
            assert pages_of(pod) == (3, 1)
            actor.exit()
            pod.rmdir()
            assert pages_of(cgroup_subtree) == (3, 1)
        finally:
            remover.do(f"libc.shmctl({number}, 0, None)")
    assert pages_of(cgroup_subtree) == (0, 0)


def test_the_first_to_map_is_charged_the_reservation_and_the_first_to_touch_the_page(
    mounted: Superblock, cgroup_subtree: Path, pod: Path
) -> None:
    other = cgroup_subtree / "other"
    other.mkdir()
    with Actor(pod) as first, Actor(other) as second:
        for actor in (first, second):
            actor.do(f"fd = create({str(mounted.path / 'file')!r})")
        first.do("map_pages(2, SHARED, fd)")
        second.do("a = map_pages(4, SHARED, fd); touch(a, 0, 3)")
        assert pages_of(pod) == (2, 0)
        assert pages_of(other) == (2, 2)


def test_fallocate_is_charged_to_its_caller_whoever_opened(
    mounted: Superblock, cgroup_subtree: Path, pod: Path, tmp_path: Path
) -> None:
    other = cgroup_subtree / "other"
    other.mkdir()
    with Actor(pod) as opener, Actor(other) as receiver:
        opener.do(f"fd = create({str(mounted.path / 'file')!r})")
        hand_over(opener, receiver, tmp_path / "socket")
        receiver.do("fallocate(fd, 0, 2)")
        assert pages_of(pod) == (0, 0)
        assert pages_of(other) == (2, 2)


def hand_over(giver: Actor, receiver: Actor, socket: Path) -> None:
    """``fd`` of one becomes ``fd`` of the other, by SCM_RIGHTS."""
    receiver.do(f"s = socket.socket(socket.AF_UNIX); s.bind({str(socket)!r}); s.listen()")
    giver.do(
        f"s = socket.socket(socket.AF_UNIX); s.connect({str(socket)!r});"
        "socket.send_fds(s, [b'x'], [fd])"
    )
    receiver.do("fd = socket.recv_fds(s.accept()[0], 1, 1)[1][0]")


def test_a_file_system_with_a_size_counts_what_is_reserved(
    tmp_path: Path, pages: Callable[[int], None]
) -> None:
    pages(8)
    with hugetlbfs(tmp_path / "huge", "size=8M,min_size=2M") as superblock, Actor() as actor:
        assert (superblock.limit, superblock.minimum) == (8 << 20, 2 << 20)
        assert used(superblock) == 0
        actor.do(f"fd = create({str(superblock.path / 'file')!r})")
        actor.do("a = map_pages(2, SHARED, fd)")
        assert used(superblock) == 2 * PAGE
        actor.do("touch(a, 0); unmap(a, 2)")
        assert used(superblock) == 2 * PAGE
        with pytest.raises(OSError, match="mmap") as refused:
            actor.do("map_pages(3, SHARED, fd, 2)")
        assert refused.value.errno == errno.ENOMEM
        with pytest.raises(OSError, match="fallocate") as refused:
            actor.do("fallocate(fd, 2, 3)")
        assert refused.value.errno == errno.ENOSPC


def test_a_file_system_without_a_size_counts_nothing(mounted: Superblock) -> None:
    assert (mounted.limit, mounted.minimum, used(mounted)) == (None, 0, None)


def test_where_a_file_has_pages_is_not_shown_by_seeking(mounted: Superblock) -> None:
    with Actor() as actor:
        actor.do(f"fd = create({str(mounted.path / 'file')!r}); os.ftruncate(fd, 4 * PAGE)")
        actor.do("fallocate(fd, 1, 1)")
        (file,) = scan(mounted)
        assert (file.size, file.pages) == (4 * PAGE, 1)
        descriptor = os.open(mounted.path / file.path, os.O_RDONLY)
        try:
            assert os.lseek(descriptor, 0, os.SEEK_DATA) == 0
            assert os.lseek(descriptor, 0, os.SEEK_HOLE) == file.size
        finally:
            os.close(descriptor)


def test_moving_a_process_moves_none_of_its_pages(mounted: Superblock, pod: Path) -> None:
    with Actor(pod) as actor:
        actor.do(f"a = map_pages(2, SHARED, create({str(mounted.path / 'file')!r})); touch(a, 0)")
        cgroup_tree.write(cgroup_tree.cgroup2_mount() / "cgroup.procs", str(actor.pid))
        assert pages_of(pod) == (2, 1)
