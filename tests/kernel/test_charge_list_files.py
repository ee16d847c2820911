"""The charge list of real files: owners, paths, and pages of every kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hugetlb_quota.node.charge_list import Cgroup, File
from hugetlb_quota.node.charge_reader import ChargeReader
from tests.kernel.charge_reading import equal, file_at, file_of, listed, regions
from tests.tracking import PAGE, SMALL, Actor, pages_of

Cgroups = Callable[[str], Path]
HUGE = 1 << 39
"""Pages of a file of 2^60 bytes, which is about the longest possible file."""


@pytest.fixture(autouse=True)
def _pool(pages: Callable[[int], None]) -> None:
    pages(24)


async def test_regions_show_the_charged_cgroups(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path, hugetlbfs: Path
) -> None:
    """Two processes map overlapping parts. The test removes the cgroups, and truncates the file."""
    one, other, path = cgroup("one"), cgroup("other"), hugetlbfs / "shared"
    with Actor(one) as first, Actor(other) as second:
        first.do(f"map_pages(4, SHARED, create({str(path)!r}))")
        second.do(f"map_pages(6, SHARED, create({str(path)!r}), at=2)")
    file = file_of(await equal(reader, cgroup_subtree), path)
    assert regions(file) == [(0, 4, "one"), (4, 8, "other")]
    assert file.superblock.page_size == SMALL
    assert (file.path, file.linked, file.bytes) == ("/shared", True, 8 * PAGE)
    for each in (one, other):
        each.rmdir()
    file = file_of(await equal(reader, cgroup_subtree), path)
    assert regions(file) == [(0, 4, "one"), (4, 8, "other")]
    os.truncate(path, PAGE)
    file = file_of(await equal(reader, cgroup_subtree), path)
    assert regions(file) == [(0, 1, "one")]


async def test_a_path_is_complete_at_any_depth_and_with_any_bytes(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path, hugetlbfs: Path
) -> None:
    names = ["deep", *(f"{number:03}-{'x' * 200}" for number in range(12)), "a b", "\udcff\n"]
    # The path is longer than PATH_MAX, so the test makes the directories one by one.
    with Actor(cgroup("one")) as actor:
        actor.do(
            f"os.chdir({str(hugetlbfs)!r})\n"
            f"for name in {names!r}: os.mkdir(name); os.chdir(name)\n"
            f"fd = create('y' * 255); a = map_pages(1, SHARED, fd); result = os.fstat(fd).st_ino"
        )
        inode = actor.do("result = os.fstat(fd).st_ino")
        charges = await equal(reader, cgroup_subtree)
        file = file_at(charges, hugetlbfs.stat().st_dev, inode)
        assert file.path == "/" + "/".join([*names, "y" * 255])
        actor.do("os.unlink('y' * 255); os.chdir('/')")
    for _ in names:
        _remove_deepest(hugetlbfs)


def _remove_deepest(directory: Path) -> None:
    """Remove the deepest directory. Its path is too long for one call."""
    above, descriptor, name = -1, os.open(directory, os.O_RDONLY), ""
    while entries := list(os.scandir(descriptor)):
        if above >= 0:
            os.close(above)
        name = entries[0].name
        above, descriptor = descriptor, os.open(name, os.O_RDONLY, dir_fd=descriptor)
    os.rmdir(name, dir_fd=above)
    os.close(above)
    os.close(descriptor)


async def test_a_renamed_file_shows_its_new_path(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path, hugetlbfs: Path
) -> None:
    (hugetlbfs / "here").mkdir()
    (hugetlbfs / "there").mkdir()
    path, to = hugetlbfs / "here" / "old", hugetlbfs / "there" / "new"
    with Actor(cgroup("one")) as actor:
        actor.do(f"map_pages(1, SHARED, create({str(path)!r}))")
    path.rename(to)
    assert file_of(await equal(reader, cgroup_subtree), to).path == "/there/new"
    to.unlink()
    to.parent.rmdir()
    path.parent.rmdir()


async def test_lists_a_removed_file_while_a_process_holds_it(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path, hugetlbfs: Path
) -> None:
    path = hugetlbfs / "removed"
    with Actor(cgroup("one")) as actor:
        actor.do(f"fd = create({str(path)!r}); a = map_pages(3, SHARED, fd)")
        status = path.stat()
        path.unlink()
        file = file_at(await equal(reader, cgroup_subtree), status.st_dev, status.st_ino)
        assert regions(file) == [(0, 3, "one")]
        assert not file.linked
        # The pages stay while the file is open, also without a mapping.
        actor.do("unmap(a, 3)")
        file = file_at(await equal(reader, cgroup_subtree), status.st_dev, status.st_ino)
        assert regions(file) == [(0, 3, "one")]
        actor.do("os.close(fd)")
        charges = await equal(reader, cgroup_subtree)
        assert status.st_ino not in {f.inode for f in charges.files if not f.superblock.internal}


async def test_charges_the_process_that_maps_not_the_process_that_opened(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path, hugetlbfs: Path
) -> None:
    """The host and another pod open the files, and pass the descriptors on."""
    left, right = cgroup("left"), cgroup("right")
    hosts, lefts = hugetlbfs / "of-host", hugetlbfs / "of-left"
    with Actor() as host, Actor(left) as giver, Actor(right) as taker:
        host.do(f"fd = create({str(hosts)!r})")
        giver.do(f"fd = create({str(lefts)!r})")
        for owner, count in ((host, 2), (giver, 3)):
            taker.do(
                f"fd = os.open('/proc/{owner.pid}/fd/' + "
                f"{str(owner.do('result = fd'))!r}, os.O_RDWR); map_pages({count}, SHARED, fd)"
            )
    charges = await equal(reader, cgroup_subtree)
    assert regions(file_of(charges, hosts)) == [(0, 2, "right")]
    assert regions(file_of(charges, lefts)) == [(0, 3, "right")]
    assert listed(charges, left) == 0


async def test_a_cgroup_below_a_pod_counts_for_the_pod(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path, hugetlbfs: Path
) -> None:
    """A systemd in a container makes such cgroups. After their removal, the UID stays listed."""
    pods = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_ab.slice"
    inner = cgroup(f"{pods}/cri-containerd-{'c' * 64}.scope/system.slice/app.service")
    with Actor(inner) as actor:
        actor.do(f"map_pages(2, SHARED, create({str(hugetlbfs / 'left')!r}))")
    kubepods = cgroup_subtree / "kubepods.slice"
    other = cgroup("elsewhere.slice").stat().st_ino
    root, parent = kubepods.stat().st_ino, cgroup_subtree.stat().st_ino
    for each in (inner, *inner.parents):
        if each == kubepods:
            break
        each.rmdir()
    charges = await equal(reader, cgroup_subtree)
    assert charges.pods(frozenset({parent})).get("12-ab") == {SMALL: 2}
    assert "12-ab" not in charges.pods(frozenset({other, root}))
    owner = file_of(charges, hugetlbfs / "left").regions[0].cgroup
    assert owner.path.endswith("/system.slice/app.service")
    assert charges.cgroups[root].reserved == {SMALL: 2}


def owners(file: File) -> list[Cgroup]:
    return [r.cgroup for r in file.regions] + [m.cgroup for m in file.private]


async def test_lists_memory_files_and_segments_by_name(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path
) -> None:
    with Actor(cgroup("one")) as actor:
        actor.do(
            "fd = checked(libc.memfd_create(b'shared memory', 4), 'memfd_create')\n"
            "os.ftruncate(fd, 2 * PAGE); map_pages(2, SHARED, fd)\n"
            "segment = shmget(0x71, 3)\n"
            "a = map_pages(4, PRIVATE | ANONYMOUS | HUGETLB)"
        )
        charges = await equal(reader, cgroup_subtree)
        mine = {
            file.path: (regions(file), [(m.start, m.pages) for m in file.private])
            for file in charges.files
            if file.superblock.internal and any("/one" in cgroup.path for cgroup in owners(file))
        }
        assert mine == {
            "memfd:shared memory": ([(0, 2, "one")], []),
            "SYSV00000071": ([(0, 3, "one")], []),
            "anon_hugepage": ([], [(0, 4)]),
        }
        actor.do("libc.shmctl(segment, 0, None)")


async def test_distinguishes_two_files_with_one_inode_number(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path
) -> None:
    """The inode number of a System V segment is its ID, and a memfd may have the same number."""
    next_id = Path("/proc/sys/kernel/shm_next_id")
    if not next_id.exists():
        pytest.skip("the kernel has no shm_next_id (CONFIG_CHECKPOINT_RESTORE)")
    with Actor(cgroup("one")) as one, Actor(cgroup("other")) as other:
        inode = one.do(
            "fd = memfd(); os.ftruncate(fd, PAGE); map_pages(1, SHARED, fd)\n"
            "result = os.fstat(fd).st_ino"
        )
        next_id.write_text(str(inode))
        segment = other.do("result = shmget(0, 2)")
        try:
            charges = await equal(reader, cgroup_subtree)
            found = {f.path: regions(f) for f in charges.files if f.inode == inode}
            assert segment == inode
            assert found == {"memfd:m": [(0, 1, "one")], "SYSV00000000": [(0, 2, "other")]}
        finally:
            other.do(f"libc.shmctl({segment}, 0, None)")


async def test_lists_a_private_mapping_until_it_ends(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path, hugetlbfs: Path
) -> None:
    """The list equals the counter after a cut, a split, a fork, and a move to another cgroup."""
    one, other, path = cgroup("one"), cgroup("other"), hugetlbfs / "mapped"
    with Actor(one) as actor:
        actor.do(f"fd = create({str(path)!r}); a = map_pages(8, PRIVATE, fd)")
        file = file_of(await equal(reader, cgroup_subtree), path)
        assert [(m.start, m.pages) for m in file.private] == [(0, 8)]
        actor.do("unmap(a + 2 * PAGE, 1)")
        file = file_of(await equal(reader, cgroup_subtree), path)
        assert sorted((m.start, m.pages) for m in file.private) == [(0, 2), (3, 5)]
        actor.do("child = os.fork()\nif child == 0: signal.pause()")
        assert listed(await equal(reader, cgroup_subtree), one) == 7
        actor.do("os.kill(child, 9); os.waitpid(child, 0)")
        # A move of a task moves no charge: the old cgroup stays charged.
        (other / "cgroup.procs").write_text(str(actor.pid))
        charges = await equal(reader, cgroup_subtree)
        assert (listed(charges, one), listed(charges, other)) == (7, 0)
        id_ = one.stat().st_ino
        one.rmdir()
        assert listed(await equal(reader, cgroup_subtree), id_) == 7
        actor.do("touch(a, 0, 1)")
        await equal(reader, cgroup_subtree)
    assert listed(await equal(reader, cgroup_subtree), id_) == 0


async def test_a_million_mappings_hide_only_private_mappings(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path, hugetlbfs: Path
) -> None:
    """A walk of all these mappings would take too long."""
    path, last = hugetlbfs / "mapped", hugetlbfs / "last"
    # The most mappings of a process, without its own. 17 processes have more than 2^20.
    most = int(Path("/proc/sys/vm/max_map_count").read_text()) - 500
    with Actor(cgroup("many")) as actor, Actor(cgroup("one")) as one:
        actor.do(
            f"fd = create({str(path)!r}); map_pages(2, SHARED, fd)\n"
            "pids = []\n"
            f"for _ in range({(1 << 20) // most + 1}):\n"
            "    read, write = os.pipe()\n"
            "    pids.append(os.fork())\n"
            "    if pids[-1] == 0:\n"
            f"        for n in range({most}):\n"
            "            map_pages(1, SHARED | NORESERVE, fd, protection=1 + 2 * (n & 1))\n"
            "        os.write(write, b'x')\n"
            "        signal.pause()\n"
            "    os.read(read, 1)"
        )
        one.do(f"map_pages(3, SHARED, create({str(last)!r}))")
        try:
            charges = await equal(reader, cgroup_subtree)
        finally:
            actor.do("for pid in pids: os.kill(pid, 9); os.waitpid(pid, 0)")
        assert charges.mappings_left_out
        assert charges.reads == 1
        assert regions(file_of(charges, path)) == [(0, 2, "many")]
        assert regions(file_of(charges, last)) == [(0, 3, "one")]
        assert not (await equal(reader, cgroup_subtree)).mappings_left_out


async def test_lists_unreserved_pages_with_their_file(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path, hugetlbfs: Path
) -> None:
    path = hugetlbfs / "unreserved"
    with Actor(cgroup("one")) as actor:
        actor.do(
            f"fd = create({str(path)!r}); os.ftruncate(fd, 9 * PAGE)\n"
            "a = map_pages(9, SHARED | NORESERVE, fd); touch(a, 1, 7)\n"
            "b = map_pages(4, PRIVATE | ANONYMOUS | HUGETLB | NORESERVE); touch(b, 0, 1, 2)"
        )
        charges = await equal(reader, cgroup_subtree)
        status = path.stat()
        own = {
            each.file: each.pages
            for each in charges.unreserved
            if each.cgroup.path.endswith("/one")
        }
        assert own == {(status.st_dev, status.st_ino): 2, None: 3}
        assert file_of(charges, path).path == "/unreserved"


async def test_fallocate_charges_the_calling_process(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path, hugetlbfs: Path
) -> None:
    """fallocate(2) takes pages at once and without a mapping, and gives the pages of holes back."""
    path = hugetlbfs / "allocated"
    with Actor(cgroup("one")) as actor:
        actor.do(f"fd = create({str(path)!r}); fallocate(fd, 0, 6)")
        charges = await equal(reader, cgroup_subtree)
        assert listed(charges, cgroup_subtree) == 6
        actor.do("fallocate(fd, 1, 2, PUNCH_HOLE)")
    charges = await equal(reader, cgroup_subtree)
    assert sum(each.pages for each in charges.unreserved if "/one" in each.cgroup.path) == 4


async def test_reads_a_huge_sparse_file_quickly(
    reader: ChargeReader, cgroup: Cgroups, cgroup_subtree: Path, hugetlbfs: Path
) -> None:
    path = hugetlbfs / "sparse"
    with Actor(cgroup("one")) as actor:
        actor.do(f"fd = create({str(path)!r}); os.ftruncate(fd, {HUGE} * PAGE)")
        actor.do(f"map_pages(1, SHARED, fd); map_pages(2, SHARED, fd, at={HUGE - 2})")
    charges = await equal(reader, cgroup_subtree)
    file = file_of(charges, path)
    assert regions(file) == [(0, 1, "one"), (HUGE - 2, HUGE, "one")]
    assert file.bytes == HUGE * PAGE
    assert pages_of(cgroup_subtree)[0] == 3
    # A walk over all pages of the file would take much longer.
    assert charges.seconds < 0.5
