"""Making, limiting, killing and removing cgroups on the host's cgroup2 mount."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path

from tests.testnode.hugepages import page_sizes
from tests.testnode.naming import kernel_size

# What kubelet writes where it means "unbounded" (qos_container_manager_linux.go).
UNBOUNDED = 1 << 62
_POLL_SECONDS = 0.01


class CgroupError(RuntimeError):
    """A cgroup could not be made, limited, emptied or removed."""


def cgroup2_mount() -> Path:
    """Where cgroup2 is mounted; hybrid hosts have it beside v1, so it is looked up, not assumed."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            return Path(before.split()[4])
    raise CgroupError("no cgroup2 file system is mounted on this host: mount one")


def write(path: Path, value: str) -> None:
    """Write unbuffered: a buffered file would report EBUSY or EINVAL at close, or never."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def make(root: Path, below: Path) -> None:
    """Make ``below`` under the cgroup2 mount ``root`` with hugetlb enabled for all on the way.

    ``root``'s own subtree_control is enabled when it is not yet, and left so: other subtrees may
    rely on it by the time this one goes, and an enabled controller without limits limits nothing.
    """
    if "hugetlb" not in (root / "cgroup.controllers").read_text().split():
        raise CgroupError(
            f"{root} has no hugetlb controller: boot with a kernel that has "
            "CONFIG_CGROUP_HUGETLB and keep hugetlb off cgroup v1"
        )
    level = root
    _delegate_hugetlb(level)
    for part in below.relative_to(root).parts:
        level = level / part
        level.mkdir(exist_ok=True)
        _delegate_hugetlb(level)


def _delegate_hugetlb(level: Path) -> None:
    control = level / "cgroup.subtree_control"
    if "hugetlb" not in control.read_text().split():
        write(control, "+hugetlb")


def write_limits(cgroup: Path, limits: Mapping[int, int], *, rsvd: bool = False) -> None:
    """Write ``hugetlb.<size>.max`` for every page size of the kernel, 0 where ``limits`` has none.

    ``limits`` are bytes by page size in bytes. ``rsvd`` writes ``rsvd.max`` too, as kubelets from
    1.29 on do (runc's libcontainer 1.1.10); older ones leave it alone. May be called again.
    """
    for size in page_sizes():
        for kind in ("max", "rsvd.max") if rsvd else ("max",):
            file = cgroup / f"hugetlb.{kernel_size(size)}.{kind}"
            try:
                write(file, str(limits.get(size, 0)))
            except OSError as error:
                raise CgroupError(
                    f"{file} does not take {limits.get(size, 0)}: {error.strerror}"
                ) from error


def unbounded() -> dict[int, int]:
    """Limits that limit nothing, for levels that must not."""
    return dict.fromkeys(page_sizes(), UNBOUNDED)


def populated(cgroup: Path) -> bool:
    """Whether any process lives in the cgroup or below."""
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text()
    except OSError as error:
        if _gone(error):
            return False
        raise


def kill(cgroup: Path) -> None:
    """SIGKILL every process in the cgroup and below, also ones being forked just now."""
    try:
        write(cgroup / "cgroup.kill", "1")
    except OSError as error:
        if not _gone(error):
            raise


def remove(cgroup: Path, *, timeout: float = 10.0) -> None:
    """Kill what lives there, wait until it is gone, remove the cgroup and all below it.

    Blocks up to ``timeout`` seconds; raises CgroupError naming what is left after it.
    """
    deadline = time.monotonic() + timeout
    while not _try_remove(cgroup):
        if time.monotonic() > deadline:
            raise CgroupError(_why_not_removed(cgroup, timeout))
        time.sleep(_POLL_SECONDS)


def _try_remove(cgroup: Path) -> bool:
    """One attempt: kill, then remove from the leaves up. True when nothing is left."""
    kill(cgroup)
    if populated(cgroup):
        return False
    try:
        for directory, _, _ in os.walk(cgroup, topdown=False):
            Path(directory).rmdir()
    except OSError as error:
        # EBUSY: a killed process is still on its way out, or a new one came in between.
        if error.errno == errno.EBUSY:
            return False
        if not _gone(error):
            raise
    return not cgroup.exists()


def _why_not_removed(cgroup: Path, timeout: float) -> str:
    pids: list[str] = []
    for directory, _, _ in os.walk(cgroup):
        try:
            pids += (Path(directory) / "cgroup.procs").read_text().split()
        except OSError:
            continue
    return (
        f"cgroup {cgroup} is not gone after {timeout:g} s: "
        f"processes {', '.join(pids) or 'none'} are in it; look at their state in /proc"
    )


def _gone(error: OSError) -> bool:
    # ENODEV: an open file of a cgroup that was removed meanwhile.
    return error.errno in (errno.ENOENT, errno.ENODEV)
