"""What is charged in a file is found without changing anything."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from hugetlb_quota.node.charged_ranges import ChargedRanges, MayReserve, NotAsked
from hugetlb_quota.node.hugetlbfs import Superblock
from tests.testnode import cgroup_tree
from tests.tracking import Actor, hugetlbfs, inode, pages_of

SIZE = 16


@pytest.fixture(params=["", "size=64M"])
def mounted(
    request: pytest.FixtureRequest, tmp_path: Path, pages: Callable[[int], None]
) -> Iterator[Superblock]:
    pages(SIZE * 2)
    with hugetlbfs(tmp_path / "huge", request.param) as superblock:
        yield superblock


@pytest.fixture
async def charged(cgroup_subtree: Path) -> AsyncIterator[ChargedRanges]:
    cgroup = cgroup_subtree / "asking"
    cgroup.mkdir()
    cgroup_tree.write(cgroup / "hugetlb.2MB.rsvd.max", "0")
    async with ChargedRanges(cgroup) as charged:
        yield charged


@pytest.fixture
def pod(cgroup_subtree: Path) -> Path:
    path = cgroup_subtree / "pod"
    path.mkdir()
    return path


@pytest.fixture
def actor(mounted: Superblock, pod: Path) -> Iterator[Actor]:
    with Actor(pod) as actor:
        actor.do(f"os.chdir({str(mounted.path)!r}); fd = create('file')")
        yield actor


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ("pass", []),
        ("os.ftruncate(fd, 8 * PAGE)", []),
        ("map_pages(3, SHARED, fd, 1)", [(1, 4)]),
        ("a = map_pages(3, SHARED, fd, 1); unmap(a, 3)", [(1, 4)]),
        ("map_pages(3, SHARED, fd); map_pages(2, SHARED, fd, 5)", [(0, 3), (5, 7)]),
        ("a = map_pages(8, SHARED | NORESERVE, fd); touch(a, 2, 3, 7)", [(2, 4), (7, 8)]),
        ("fallocate(fd, 2, 1)", [(2, 3)]),
        ("a = map_pages(4, SHARED, fd); fallocate(fd, 1, 1, PUNCH_HOLE)", [(0, 4)]),
        (
            "a = map_pages(4, SHARED, fd); touch(a, 1); fallocate(fd, 1, 1, PUNCH_HOLE)",
            [(0, 1), (2, 4)],
        ),
        ("map_pages(4, SHARED, fd); os.ftruncate(fd, PAGE)", [(0, 1)]),
        ("os.ftruncate(fd, 4 * PAGE); a = map_pages(4, PRIVATE, fd); touch(a, 0)", []),
        # Beyond the end of the file, which stays empty.
        ("map_pages(4, SHARED, fd, 2, 1)", [(2, 6)]),
        ("a = map_pages(4, SHARED, fd, 2, 1); unmap(a, 4); os.ftruncate(fd, 0)", []),
    ],
)
async def test_charged(
    mounted: Superblock,
    pod: Path,
    charged: ChargedRanges,
    actor: Actor,
    statements: str,
    expected: list[tuple[int, int]],
) -> None:
    path = mounted.path / "file"
    actor.do(statements)
    before, state = pages_of(pod), path.stat()
    assert await charged.of(mounted, "file", inode(path), SIZE) == expected
    assert pages_of(pod) == before
    after = path.stat()
    assert (after.st_size, after.st_blocks) == (state.st_size, state.st_blocks)
    assert after.st_ctime_ns == state.st_ctime_ns


@pytest.mark.parametrize("seed", range(5))
async def test_it_always_adds_up_to_what_the_kernel_charges(
    mounted: Superblock, pod: Path, charged: ChargedRanges, actor: Actor, seed: int
) -> None:
    choose = random.Random(seed)
    path = mounted.path / "file"
    for _ in range(40):
        at = choose.randrange(SIZE)
        count = choose.randint(1, SIZE - at)
        actor.do(
            choose.choice(
                [
                    f"a = map_pages({count}, SHARED, fd, {at}); unmap(a, {count})",
                    f"a = map_pages({count}, SHARED, fd, {at}); touch(a, 0); unmap(a, {count})",
                    f"fallocate(fd, {at}, {count}, PUNCH_HOLE)",
                    f"fallocate(fd, {at}, 1)",
                    f"os.ftruncate(fd, {at} * PAGE)",
                ]
            )
        )
        runs = await charged.of(mounted, "file", inode(path), SIZE)
        assert runs is not None
        assert sum(end - first for first, end in runs) == pages_of(pod)[0]


async def test_another_file_at_the_path_is_not_asked(
    mounted: Superblock, charged: ChargedRanges, actor: Actor
) -> None:
    actor.do("map_pages(1, SHARED, fd)")
    assert await charged.of(mounted, "file", inode(mounted.path / "file") + 1, SIZE) is None
    assert await charged.of(mounted, "other", 1, SIZE) is None
    actor.do("os.mkfifo('fifo')")
    assert await charged.of(mounted, "fifo", inode(mounted.path / "fifo"), SIZE) is None


async def test_a_cgroup_that_may_reserve_is_refused(
    mounted: Superblock, charged: ChargedRanges, cgroup_subtree: Path, pod: Path, actor: Actor
) -> None:
    limit = cgroup_subtree / "asking" / "hugetlb.2MB.rsvd.max"
    cgroup_tree.write(limit, "max")
    with pytest.raises(MayReserve, match=f"write 0 to {limit}"):
        await charged.of(mounted, "file", inode(mounted.path / "file"), SIZE)
    assert pages_of(cgroup_subtree) == (0, 0)


async def test_an_asking_process_that_ended_is_started_again(
    mounted: Superblock, charged: ChargedRanges, actor: Actor
) -> None:
    actor.do("map_pages(1, SHARED, fd)")
    assert charged.pid
    os.kill(charged.pid, signal.SIGKILL)
    file = inode(mounted.path / "file")
    with pytest.raises(NotAsked, match="file on"):
        await charged.of(mounted, "file", file, SIZE)
    assert await charged.of(mounted, "file", file, SIZE) == [(0, 1)]
