"""The reader with every way to get huge pages: the list equals the counters at every step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from hugetlb_quota.node.charge_list import ChargeList
from hugetlb_quota.node.charge_reader import ChargeReader
from tests.kernel.charge_reading import equal, listed
from tests.kernel.ways import WAYS, Size, Way, remove_segments
from tests.tracking import Actor, pages_of


# The kernel zeroes a page of 1 GiB in a third of a second, and the ways run one after the other.
@pytest.mark.timeout(900)
async def test_the_list_equals_the_counters_for_every_way(
    reader: ChargeReader,
    cgroup_subtree: Path,
    cgroup: Callable[[str], Path],
    size: Size,
    point: Path,
    segments: list[int],
) -> None:
    left: dict[str, int] = {}
    for first in range(0, len(WAYS), size.ways):
        left |= await walk(
            WAYS[first : first + size.ways], reader, cgroup_subtree, cgroup, size, point, segments
        )
    # A shared reservation stays with the file. A private reservation ends with its mapping.
    assert left["file-shared-neither-reserve"] == size.pages
    assert left["file-shared-write-noreserve"] == 2
    assert left["file-private-neither-reserve"] == 0
    assert left["segment-shared-neither-reserve"] == size.pages
    assert left["anonymous-private-write-reserve"] == 0


async def walk(
    ways: list[Way],
    reader: ChargeReader,
    subtree: Path,
    cgroup: Callable[[str], Path],
    size: Size,
    point: Path,
    segments: list[int],
) -> dict[str, int]:
    """Try each of ``ways`` in its own cgroup to the end; return the pages that each has left."""
    cgroups = {way.name: cgroup(way.name) for way in ways}
    ids = {name: path.stat().st_ino for name, path in cgroups.items()}
    with ExitStack() as running:
        for way in ways:
            actor = running.enter_context(Actor(cgroups[way.name]))
            result = actor.do(way.statements(point / way.name, size))
            if way.kind == "segment":
                segments.append(result)
        charges = await equal(reader, subtree, size.page)
        assert amounts(charges, ids, size) == counters(cgroups, size)
        shown = {
            name: charges.cgroups[id_].reserved
            for name, id_ in ids.items()
            if id_ in charges.cgroups
        }
        assert {name: each.get(size.page, 0) for name, each in shown.items()} == {
            name: pages for name, pages in counters(cgroups, size).items() if name in shown
        }

    # The pages in files stay, except in files that only processes hold.
    stays = {
        name: charges.in_files.get(id_, {}).get(size.page, 0)
        for name, id_ in ids.items()
        if not name.startswith(("anonymous", "memfd"))
    }

    # The processes have ended.
    charges = await equal(reader, subtree, size.page)
    left = amounts(charges, ids, size)
    assert left == counters(cgroups, size)
    assert {name: left[name] for name in stays} == stays

    for path in cgroups.values():
        path.rmdir()
    charges = await equal(reader, subtree, size.page)
    assert amounts(charges, ids, size) == left
    assert {charges.cgroups[ids[name]].path.rpartition("/")[2] for name in left if left[name]} == {
        name for name in left if left[name]
    }

    await cut_and_remove(ways, reader, subtree, ids, size, point, segments, left)
    return left


async def cut_and_remove(
    ways: list[Way],
    reader: ChargeReader,
    subtree: Path,
    ids: dict[str, int],
    size: Size,
    point: Path,
    segments: list[int],
    left: dict[str, int],
) -> None:
    """Truncate each file by a page, then remove the files, and then the segments."""
    in_files = dict(left)
    for way in ways:
        if way.kind == "file":
            with (point / way.name).open("rb+") as file:
                file.truncate((size.pages - 1) * size.page.bytes)
            in_files[way.name] = max(0, in_files[way.name] - 1)
    assert amounts(await equal(reader, subtree, size.page), ids, size) == in_files
    for way in ways:
        if way.kind == "file":
            (point / way.name).unlink()
            in_files[way.name] = 0
    charges = await equal(reader, subtree, size.page)
    assert amounts(charges, ids, size) == in_files
    # Only segments are left, and the list shows them.
    named = {
        region.cgroup.id
        for file in charges.files
        if file.superblock.internal and file.inode in segments and file.path == "SYSV00000000"
        for region in file.regions
    }
    reserved = {name for name, pages in in_files.items() if pages and "noreserve" not in name}
    assert {ids[name] for name in reserved} == named
    remove_segments(segments)
    await equal(reader, subtree, size.page)
    assert pages_of(subtree, size.page)[0] == 0


def amounts(charges: ChargeList, ids: dict[str, int], size: Size) -> dict[str, int]:
    return {name: listed(charges, id_, size.page) for name, id_ in ids.items()}


def counters(cgroups: dict[str, Path], size: Size) -> dict[str, int]:
    return {name: pages_of(path, size.page)[0] for name, path in cgroups.items()}
