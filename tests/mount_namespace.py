"""A new mount namespace for all mounts of tests and the demo.

An agent tracks every hugetlbfs in its host's mount namespace. In a new namespace the agent sees
only the mounts of its own run, and these disappear with the last process of the run.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from hugetlb_quota.node.host import HostRoot
from tests.testnode.volumes import unmount_below

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


def enter() -> None:
    """Move this thread, and all threads and processes that it starts, to a new mount namespace.

    Call this before the process has other threads. Needs CAP_SYS_ADMIN; raises OSError.
    """
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare the mount namespace")
    private = ctypes.c_ulong(_MS_REC | _MS_PRIVATE)
    _checked(_libc.mount(b"none", b"/", None, private, None), "make / private")
    # Unmount the copies of the host's hugetlbfs mounts: they would keep files of other programs,
    # and agents of this run would track them.
    last_at = {mount.point: mount.type for mount in HostRoot().mounts()}
    for point, kind in reversed(last_at.items()):
        if kind == "hugetlbfs":
            unmount_below(Path(point))


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
