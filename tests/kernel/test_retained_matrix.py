"""The agent with every way to get huge pages: the reports equal the kernel's counters.

Each way (tests/kernel/ways.py) runs in its own pod. Then the process exits, the cgroup is removed,
the file is truncated by a page, and the file is removed. The test does this with every page size of
the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.page_size import PageSize
from tests.kernel.agent_process import MIB, SOON, Agent, Api, Pod, until
from tests.kernel.ways import SIZES, WAYS, Size, Way, remove_segments
from tests.testnode import cgroup_tree, naming
from tests.tracking import hugetlbfs, pages_of

MORE = "PRIVATE | ANONYMOUS | HUGETLB"
LEFT, LEFT_LARGE = {"both": 4}, {"both": 1024}


# The kernel zeroes a page of 1 GiB in a third of a second, and the ways run one after the other.
@pytest.mark.timeout(900)
async def test_the_report_equals_the_counters_for_every_way(
    agent: Agent,
    api: Api,
    size: Size,
    point: Path,
    pod: Callable[[str], Pod],
    segments: list[int],
) -> None:
    await agent.start()
    await agent.ready()
    left: dict[str, int] = {}
    for first in range(0, len(WAYS), size.ways):
        ways = WAYS[first : first + size.ways]
        left |= await walk(ways, size, agent, api, point, pod, segments)
    whole = size.pages * size.page.bytes // MIB
    assert left["file-shared-neither-reserve"] == whole
    assert left["file-shared-write-noreserve"] == 2 * size.page.bytes // MIB
    assert left["segment-shared-neither-reserve"] == whole
    assert left["anonymous-private-write-reserve"] == 0


async def walk(
    ways: list[Way],
    size: Size,
    agent: Agent,
    api: Api,
    point: Path,
    pod: Callable[[str], Pod],
    segments: list[int],
) -> dict[str, int]:
    """Try each of ``ways`` in its own pod to the end; return the MiB that each has left."""
    page = size.page.bytes // MIB
    kubepods = agent.subtree / naming.kubepods("systemd")
    pods = {way.name: pod(way.name) for way in ways}
    for name, each in pods.items():
        # A private mapping of a file may be charged for its copy, beside the pages in the file.
        await each.start({size.page.resource: f"{size.pages * page * 4}Mi"}, name)
    await until(lambda: sorted(api.listed()) == sorted(pods))
    for way in ways:
        result = pods[way.name].actor().do(way.statements(point / way.name, size))
        if way.kind == "segment":
            segments.append(result)

    # While the pods run, each charge equals the counter of the pod's cgroup.
    await _reports_live(api, pods, size.page)
    assert api.left(size.page) == {}

    # The processes end. Then kubelet removes the cgroups.
    left: dict[str, int] = {}
    for each in pods.values():
        cgroup_tree.kill(each.cgroup)
        await until(lambda each=each: not cgroup_tree.populated(each.cgroup))  # type: ignore[misc]
    # Kubelet removes a cgroup only after a while.
    await _reports_live(api, pods, size.page)
    for name, each in pods.items():
        left[name] = page * pages_of(each.cgroup, size.page)[0]
        each.end()
        await each.delete()
    at_their_end = dict(left)
    await _reports_left(api, kubepods, size.page, left)

    # The test removes the last page of each file, and then the files.
    for way in ways:
        if way.kind == "file":
            with (point / way.name).open("rb+") as file:
                file.truncate((size.pages - 1) * size.page.bytes)
            left[way.name] = max(0, left[way.name] - page)
    await _reports_left(api, kubepods, size.page, left)
    for way in ways:
        if way.kind == "file":
            (point / way.name).unlink()
            left[way.name] = 0
    await _reports_left(api, kubepods, size.page, left)

    # At the end the test removes the segments. The report has segments without a mount.
    expected = {way.name for way in ways if left[way.name]}
    await until(lambda: _in_no_file(api) == expected)
    remove_segments(segments)
    await _reports_left(api, kubepods, size.page, dict.fromkeys(left, 0))
    return at_their_end


async def _reports_live(api: Api, pods: dict[str, Pod], size: PageSize) -> None:
    """Wait until each charge equals the counter of the pod's cgroup."""
    page = size.bytes // MIB
    counted = {name: page * pages_of(each.cgroup, size)[0] for name, each in pods.items()}
    held = {name: amount for name, amount in counted.items() if amount}
    try:
        await until(lambda: api.charged(size) == held, SOON)
    except TimeoutError:
        assert api.charged(size) == held


async def _reports_left(api: Api, kubepods: Path, size: PageSize, left: dict[str, int]) -> None:
    """Check that kubepods is charged the sum of ``left``, and wait for a report with ``left``."""
    assert pages_of(kubepods, size)[0] * size.bytes == sum(left.values()) * MIB
    expected = {name: amount for name, amount in left.items() if amount}
    try:
        await until(lambda: api.left(size) == expected and not api.listed(), SOON)
    except TimeoutError:
        assert (api.left(size), api.listed()) == (expected, [])
    files: dict[str, int] = {}
    for each in api.status["files"]:
        if each["uid"] in expected:
            amount = Charge.from_sums({each["pageSize"]: each["charged"]}).of(size) // MIB
            files[each["uid"]] = files.get(each["uid"], 0) + amount
    assert files == expected


def _in_no_file(api: Api) -> set[str]:
    return {each["uid"] for each in api.status["files"] if not each["mount"] and each["uid"]}


async def test_reports_files_of_two_page_sizes_separately(
    agent: Agent,
    api: Api,
    pages: Callable[[int], None],
    gigantic_pages: Callable[[int], None],
    tmp_path: Path,
    pod: Callable[[str], Pod],
) -> None:
    """One pod leaves a file of each page size."""
    pages(2)
    gigantic_pages(1)
    small, large = (SIZES[name].page for name in ("2Mi", "1Gi"))
    await agent.start()
    await agent.ready()
    both = pod("both")
    await both.start({small.resource: "4Mi", large.resource: "1Gi"}, "both")
    await until(lambda: api.listed() == ["both"])
    with (
        hugetlbfs(tmp_path / "small") as few,
        hugetlbfs(tmp_path / "large", page="1G") as gigantic,
    ):
        actor = both.actor()
        for superblock, count in ((few, 2), (gigantic, 1)):
            actor.do(
                f"PAGE = {superblock.size.bytes}; fd = create({str(superblock.path / 'left')!r});"
                f"a = map_pages({count}, SHARED, fd); touch(a, 0)"
            )
        # Each page size has its own limit at mmap.
        for page in (small.bytes, large.bytes):
            with pytest.raises(OSError, match="mmap"):
                actor.do(
                    f"PAGE = {page}; SIZE = {page.bit_length() - 1} << 26; map_pages(1, {MORE})"
                )
        both.end()
        await both.delete()
        await until(lambda: (api.left(small), api.left(large)) == (LEFT, LEFT_LARGE), SOON)
        assert {
            (file["mount"], file["pageSize"], file["charged"], file["uid"])
            for file in api.status["files"]
            if file["uid"]
        } == {
            (few.point, small.resource, "4Mi", "both"),
            (gigantic.point, large.resource, "1Gi", "both"),
        }
        (gigantic.path / "left").unlink()
        await until(lambda: (api.left(small), api.left(large)) == (LEFT, {}), SOON)
        (few.path / "left").unlink()
        await until(lambda: (api.left(small), api.left(large)) == ({}, {}), SOON)
