"""sweep removes the cgroups, mounts and files of a killed test node, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.testnode import cgroup_tree, volumes
from tests.testnode.sweep import sweep

# A node without an API server: it runs one pod with a huge page volume, and waits to be killed.
NODE = """
import asyncio, sys
from pathlib import Path
from tests.testnode import cgroup_tree
from tests.testnode.pod import Place, PodRun
from tests.workloads import command

async def main(parent, state_dir):
    place = Place(cgroup_tree.cgroup2_mount(), Path(parent), Path(state_dir), "systemd")
    place.make()
    requests = {"hugepages-2Mi": "4Mi"}
    pod = {
        "metadata": {"name": "a", "namespace": "default", "uid": "0-1"},
        "spec": {
            "containers": [{
                "name": "c",
                "command": command("map_pages", "4Mi", "--file", "/huge/a", "--hold"),
                "resources": {"requests": requests},
                "volumeMounts": [{"name": "huge", "mountPath": "/huge"}],
            }],
            "volumes": [{"name": "huge", "emptyDir": {"medium": "HugePages"}}],
        },
        "status": {"qosClass": "Burstable"},
    }
    async def ignore(status): pass
    await PodRun(pod, place, ignore).run()

asyncio.run(main(*sys.argv[1:]))
"""
REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = 2 << 20


def until(holds: Callable[[], bool], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not so after {timeout:g} s"
        time.sleep(0.02)


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing stays mounted, also if the test fails."""
    yield tmp_path / "state of the node"
    volumes.unmount_below(tmp_path)


def test_sweep_after_kill_leaves_no_cgroup_no_mount_no_page(
    cgroup_subtree: Path, state_dir: Path, pages: Callable[[int], None]
) -> None:
    pages(2)
    # The parent cgroup outlives the node's subtree, and shows that no page stays charged.
    parent = cgroup_subtree / "node"
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, str(parent), str(state_dir)], cwd=REPOSITORY
    )
    used = cgroup_subtree / "hugetlb.2MB.current"
    try:
        until(lambda: used.read_text() == f"{2 * PAGE}\n")
    finally:
        node.kill()
        node.wait()
    assert cgroup_tree.populated(parent), "the pod's program must outlive its node"
    # The huge page volume and the namespace that stands for the sandbox.
    assert len(volumes.mounts_below(state_dir)) == 2
    relative = str(parent.relative_to(cgroup_tree.cgroup2_mount()))
    sweep(relative, state_dir)
    assert not parent.exists()
    assert volumes.mounts_below(state_dir) == []
    assert not (state_dir / "pods").exists()
    until(lambda: used.read_text() == "0\n")
    until(lambda: (cgroup_subtree / "hugetlb.2MB.rsvd.current").read_text() == "0\n")
    sweep(relative, state_dir)  # a second sweep finds nothing, and succeeds


def test_sweep_leaves_others_alone(cgroup_subtree: Path, tmp_path: Path) -> None:
    root = cgroup_tree.cgroup2_mount()
    mine, other = cgroup_subtree / "mine", cgroup_subtree / "other"
    for cgroup in (mine, other):
        cgroup_tree.make(root, cgroup)
    # cgroup2 allows no process in a cgroup that has controllers for its children.
    (other / "leaf").mkdir()
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        cgroup_tree.write(other / "leaf/cgroup.procs", str(sleeper.pid))
        sweep(str(mine.relative_to(root)), tmp_path)
        assert not mine.exists()
        assert cgroup_tree.populated(other)
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.parametrize("parent", ["", "/", "../x", "a/../.."])
def test_sweep_refuses_a_path_that_is_no_subtree(parent: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a subtree for a node"):
        sweep(parent, tmp_path)
