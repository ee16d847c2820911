"""A mount namespace of its own for all that tests and demo mount.

An agent follows every hugetlbfs of its host's mount namespace. In one of its own it meets those
of its own run alone, and they go with the run's last process, whatever ended it.
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
    """Take this thread, and all that it starts from now on, into a new mount namespace.

    Call it before there is another thread. Needs CAP_SYS_ADMIN; raises OSError.
    """
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare the mount namespace")
    private = ctypes.c_ulong(_MS_REC | _MS_PRIVATE)
    _checked(_libc.mount(b"none", b"/", None, private, None), "make / private")
    # Copies of others' hugetlbfs would keep their files, and be followed by this run's agents.
    last_at = {mount.point: mount.type for mount in HostRoot().mounts()}
    for point, kind in reversed(last_at.items()):
        if kind == "hugetlbfs":
            unmount_below(Path(point))


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
