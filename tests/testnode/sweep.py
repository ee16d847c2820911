"""Cleaning what a node left: its processes, cgroups, mounts and files, and nothing of others."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.testnode import cgroup_tree, volumes


def sweep(cgroup_parent: str, state_dir: Path) -> None:
    """Take away all of a node's subtree and state, also after ``kill -9`` of the node.

    ``cgroup_parent`` is the path below the cgroup2 mount; every process in it is killed and the
    cgroup itself is removed. Everything mounted below ``state_dir`` is unmounted, and the pods'
    directories in it are deleted. Does nothing where nothing is left.
    """
    relative = cgroup_parent.strip("/")
    if not relative or ".." in Path(relative).parts:
        raise ValueError(
            f"{cgroup_parent!r} is no subtree of a node's own: name one below the root"
        )
    # Processes first: their mounts and huge pages go with them.
    cgroup_tree.remove(cgroup_tree.cgroup2_mount() / relative)
    pods = state_dir.resolve() / "pods"
    volumes.unmount_below(pods)
    shutil.rmtree(pods, ignore_errors=True)
