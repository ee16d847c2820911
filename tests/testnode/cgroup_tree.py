"""Make, limit, kill and remove cgroups on the host's cgroup2 mount."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from pathlib import Path

from tests.testnode.hugepages import page_sizes
from tests.testnode.naming import kernel_size

# The value that kubelet writes for "unbounded" (qos_container_manager_linux.go).
UNBOUNDED = 1 << 62
_POLL_SECONDS = 0.01


class CgroupError(RuntimeError):
    """A cgroup can't be made, limited, emptied or removed."""


def cgroup2_mount() -> Path:
    """The mount point of cgroup2; on a hybrid host cgroup2 has another mount point."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            return Path(before.split()[4])
    raise CgroupError("no cgroup2 file system is mounted on this host: mount one")


def write(path: Path, value: str) -> None:
    """Write without a buffer, so that the write itself reports EBUSY or EINVAL."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def make(root: Path, below: Path) -> None:
    """Make the cgroup ``below`` under the cgroup2 mount ``root``, and enable hugetlb on the path.

    The function may enable hugetlb in the subtree_control of ``root``. The controller stays enabled
    there, because other subtrees may need it, and it limits nothing without limits.
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
    """Write ``hugetlb.<size>.max`` for every page size of the kernel.

    ``limits``: bytes by page size in bytes; a missing size gets 0. ``rsvd``: whether to write
    ``rsvd.max`` too, as kubelet does since 1.29 (runc's libcontainer 1.1.10).
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
    """Limits for a cgroup that must not limit anything."""
    return dict.fromkeys(page_sizes(), UNBOUNDED)


def populated(cgroup: Path) -> bool:
    """Whether the cgroup or a cgroup below has a process."""
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text()
    except OSError as error:
        if _gone(error):
            return False
        raise


def kill(cgroup: Path) -> None:
    """SIGKILL every process in the cgroup and below, also concurrently forked processes."""
    try:
        write(cgroup / "cgroup.kill", "1")
    except OSError as error:
        if not _gone(error):
            raise


def remove(cgroup: Path, *, timeout: float = 10.0) -> None:
    """Kill the processes, wait until they are gone, and remove the cgroup and all below it.

    Blocks up to ``timeout`` seconds; then raises CgroupError with the remaining processes.
    """
    deadline = time.monotonic() + timeout
    while not _try_remove(cgroup):
        if time.monotonic() > deadline:
            raise CgroupError(_why_not_removed(cgroup, timeout))
        time.sleep(_POLL_SECONDS)


def _try_remove(cgroup: Path) -> bool:
    """Kill, then remove from the leaves up, once. Returns True if nothing is left."""
    kill(cgroup)
    if populated(cgroup):
        return False
    try:
        for directory, _, _ in os.walk(cgroup, topdown=False):
            Path(directory).rmdir()
    except OSError as error:
        # EBUSY: a killed process has not ended yet, or a new process joined.
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
    # ENODEV: the cgroup was removed while its file was open.
    return error.errno in (errno.ENOENT, errno.ENODEV)
