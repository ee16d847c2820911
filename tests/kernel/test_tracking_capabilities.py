"""What a container must be given to track: three capabilities, each for a reason.

Everybody here is root; root without a capability is what a container's root is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hugetlb_quota.node.hugetlbfs import Superblock
from tests.testnode import cgroup_tree
from tests.tracking import Actor, hugetlbfs

TRACKER = """
import asyncio, json, sys
from pathlib import Path
from hugetlb_quota.node.charged_ranges import ChargedRanges
from hugetlb_quota.node.hugetlbfs import internal_devices, scan, superblocks
from hugetlb_quota.node.file_changes import FileChanges
from hugetlb_quota.node.mappings import mappings, open_files
from hugetlb_quota.node.openers import Openers
from hugetlb_quota.node.pools import page_sizes
from tests.tracking import HOST, at, inode

point, pid, cgroup = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
done = []

async def openers(superblock):
    async with Openers(HOST) as openers:
        assert await openers.watch(superblock)

async def ranges(superblock):
    (file,) = scan(superblock)
    async with ChargedRanges(cgroup) as charged:
        assert await charged.of(superblock, file.path, file.inode, 4) == [(0, 1)]

async def main():
    superblock = at(point)
    with FileChanges() as changes:
        changes.watch(superblock)
    internal_devices(page_sizes(HOST))
    for name, attempt in {
        "openers": lambda: openers(superblock),
        "ranges": lambda: ranges(superblock),
    }.items():
        try:
            await attempt()
            done.append(name)
        except Exception as error:
            print(name, repr(error), file=sys.stderr)
    for name, attempt in {
        "scan": lambda: list(scan(superblock)),
        "mappings": lambda: mappings(HOST, pid, {superblock.device}),
        "open files": lambda: open_files(HOST, pid, {superblock.device}),
    }.items():
        try:
            assert attempt()
            done.append(name)
        except Exception as error:
            print(name, repr(error), file=sys.stderr)
    print(json.dumps(done))

asyncio.run(main())
"""
ALL = {"openers", "ranges", "scan", "mappings", "open files"}
ENOUGH = {"sys_admin", "sys_ptrace", "dac_read_search"}


@pytest.fixture
def mounted(tmp_path: Path, kernel: None) -> Iterator[Superblock]:
    with hugetlbfs(tmp_path / "huge") as superblock:
        yield superblock


@pytest.mark.parametrize(
    ("capabilities", "works"),
    [
        (ENOUGH, ALL),
        (ENOUGH - {"sys_admin"}, ALL - {"openers"}),
        (ENOUGH - {"sys_ptrace"}, ALL - {"mappings", "open files"}),
        (ENOUGH - {"dac_read_search"}, {"mappings", "open files"}),
    ],
    ids=["all three", "no sys_admin", "no sys_ptrace", "no dac_read_search"],
)
def test_capabilities(
    mounted: Superblock,
    cgroup_subtree: Path,
    capabilities: set[str],
    works: set[str],
    pages: Callable[[int], None],
) -> None:
    """On a file system of another user, and a process that has more rights."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is not there")
    pages(1)
    asking = cgroup_subtree / "asking"
    asking.mkdir()
    cgroup_tree.write(asking / "hugetlb.2MB.rsvd.max", "0")
    with Actor() as actor:
        actor.do(f"fd = create({str(mounted.path / 'file')!r}); fallocate(fd, 0, 1)")
        actor.do("map_pages(1, SHARED, fd)")
        os.chown(mounted.path, 4711, 4711)
        mounted.path.chmod(0o700)
        (mounted.path / "file").chmod(0o600)
        os.chown(mounted.path / "file", 4711, 4711)
        kept = ",".join(["-all", *(f"+{name}" for name in sorted(capabilities))])
        tracker = subprocess.run(
            [
                *("setpriv", f"--bounding-set={kept}", "--inh-caps=-all"),
                *(sys.executable, "-c", TRACKER, mounted.path, str(actor.pid), asking),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=Path(__file__).parents[2],
            check=False,
        )
    assert tracker.returncode == 0, tracker.stderr
    assert ("NoFanotify" in tracker.stderr) == ("sys_admin" not in capabilities)
    # Newer kernels show mappings, not descriptors, to CAP_PERFMON too, which is in
    # CAP_SYS_ADMIN (kernel/fork.c, may_access_mm).
    open_to_both = {"mappings"} if "sys_ptrace" not in capabilities else set()
    assert set(json.loads(tracker.stdout)) - open_to_both == works, tracker.stderr
