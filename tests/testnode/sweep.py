"""Remove the processes, cgroups, mounts and files that a node left."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.testnode import cgroup_tree, volumes


def sweep(cgroup_parent: str, state_dir: Path) -> None:
    """Remove a node's cgroup subtree and its state, also after ``kill -9`` of the node.

    ``cgroup_parent``: the path of the subtree below the cgroup2 mount; its processes are killed.
    ``state_dir``: the folder with the pods' directories and mounts, which are removed.
    """
    relative = cgroup_parent.strip("/")
    if not relative or ".." in Path(relative).parts:
        raise ValueError(
            f"{cgroup_parent!r} is not a subtree for a node: name a cgroup below the root"
        )
    # Kill the processes first, because they hold mounts and huge pages.
    cgroup_tree.remove(cgroup_tree.cgroup2_mount() / relative)
    pods = state_dir.resolve() / "pods"
    volumes.unmount_below(pods)
    shutil.rmtree(pods, ignore_errors=True)
