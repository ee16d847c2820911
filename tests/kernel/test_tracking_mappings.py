"""Which ranges of which files real processes map, and what they have open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hugetlb_quota.node.hugetlbfs import Superblock, internal_devices
from hugetlb_quota.node.mappings import Mapping, mappings, open_files, processes
from hugetlb_quota.page_size import PageSize
from tests.testnode import cgroup_tree
from tests.tracking import HOST, PAGE, Actor, hugetlbfs, inode
from tests.waiting import eventually


@pytest.fixture
def mounted(tmp_path: Path, pages: Callable[[int], None]) -> Iterator[Superblock]:
    pages(8)
    with hugetlbfs(tmp_path / "huge") as superblock:
        yield superblock


@pytest.fixture
def actor(mounted: Superblock) -> Iterator[Actor]:
    with Actor() as actor:
        actor.do(f"os.chdir({str(mounted.path)!r})")
        yield actor


def test_ranges_and_kinds(mounted: Superblock, actor: Actor) -> None:
    actor.do("fd = create('a b'); os.ftruncate(fd, 6 * PAGE)")
    actor.do("map_pages(2, SHARED, fd, 1); map_pages(1, PRIVATE, fd, 4)")
    actor.do("read_only = os.open('a b', os.O_RDONLY)")
    actor.do("map_pages(1, SHARED, read_only, 5, 1); os.close(fd)")
    path = mounted.path / "a b"
    file = (mounted.device, inode(path))
    found = mappings(HOST, actor.pid, {mounted.device})
    assert sorted(found, key=lambda mapping: mapping.start) == [
        Mapping(*file, 1 * PAGE, 3 * PAGE, True, str(path)),
        Mapping(*file, 4 * PAGE, 5 * PAGE, False, str(path)),
        Mapping(*file, 5 * PAGE, 6 * PAGE, True, str(path)),
    ]
    assert mappings(HOST, actor.pid, {mounted.device + 1000}) == []


def test_the_kernels_own_files(mounted: Superblock, actor: Actor) -> None:
    (internal,) = internal_devices([PageSize(PAGE)])
    actor.do("fd = libc.memfd_create(b'm', 4); os.ftruncate(fd, PAGE); map_pages(1, SHARED, fd)")
    actor.do("map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)")
    number = actor.do("result = number = shmget(0, 1)")
    try:
        actor.do("libc.shmat(number, None, 0)")
        found = mappings(HOST, actor.pid, [internal])
        assert {(mapping.name, mapping.shared) for mapping in found} == {
            ("/memfd:m (deleted)", True),
            ("/anon_hugepage (deleted)", False),
            ("/SYSV00000000 (deleted)", True),
        }
        assert number in {mapping.inode for mapping in found if "SYSV" in mapping.name}
        memory = next(mapping for mapping in found if "memfd" in mapping.name)
        assert open_files(HOST, actor.pid, {internal}) == {(internal, memory.inode)}
    finally:
        actor.do("libc.shmctl(number, 0, None)")


def test_descriptors_without_a_mapping(mounted: Superblock, actor: Actor) -> None:
    actor.do("a = create('a'); b = create('b')")
    actor.do("again = os.dup(a); s = socket.socket(); r, w = os.pipe()")
    a, b = inode(mounted.path / "a"), inode(mounted.path / "b")
    assert open_files(HOST, actor.pid, {mounted.device}) == {
        (mounted.device, a),
        (mounted.device, b),
    }
    actor.do("os.close(b); os.unlink('a')")
    assert open_files(HOST, actor.pid, {mounted.device}) == {(mounted.device, a)}


def test_a_process_whose_first_thread_has_ended(mounted: Superblock, actor: Actor) -> None:
    """Its own maps and fd read as empty."""
    actor.do("fd = create('a'); map_pages(1, SHARED, fd)")
    actor.do(
        "r, w = os.pipe()\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), os.write(w, b'x'), time.sleep(60)),"
        " daemon=True).start()"
    )
    actor.tell("libc.pthread_exit(None)")
    eventually(lambda: not Path(f"/proc/{actor.pid}/maps").read_bytes(), every=0.01)
    file = (mounted.device, inode(mounted.path / "a"))
    assert [found[:2] for found in mappings(HOST, actor.pid, {mounted.device})] == [file]
    assert open_files(HOST, actor.pid, {mounted.device}) == {file}


def test_who_is_gone_has_nothing(mounted: Superblock, actor: Actor) -> None:
    actor.do("map_pages(1, SHARED, create('a'))")
    actor.kill()
    assert mappings(HOST, actor.pid, {mounted.device}) == []
    assert open_files(HOST, actor.pid, {mounted.device}) == set()


def test_processes_that_end_as_they_are_read(mounted: Superblock, cgroup_subtree: Path) -> None:
    pod = cgroup_subtree / "pod"
    pod.mkdir()
    with Actor(pod) as actor:
        actor.do(f"os.chdir({str(mounted.path)!r}); fd = create('a'); map_pages(1, SHARED, fd)")
        actor.tell("for _ in range(300):\n    if os.fork() == 0: os._exit(0)\n    os.wait()")
        seen = 0
        for _ in range(50):
            for pid in processes(cgroup_subtree):
                seen += len(mappings(HOST, pid, {mounted.device}))
                open_files(HOST, pid, {mounted.device})
        actor.hear()
        assert seen >= 50


def test_processes_of_a_cgroup_and_all_below(cgroup_subtree: Path) -> None:
    below = cgroup_subtree / "pod" / "container"
    cgroup_tree.make(cgroup_tree.cgroup2_mount(), cgroup_subtree / "pod")
    below.mkdir()
    with Actor(below) as inner, Actor(below) as other:
        assert set(processes(cgroup_subtree)) == {inner.pid, other.pid}
    cgroup_tree.remove(cgroup_subtree / "pod")
    assert list(processes(cgroup_subtree / "pod")) == []
