"""The host's cgroup namespace: a container has one of its own, and sees and may less in it.

Where cgroup2 is mounted with nsdelegate, as systemd does, the kernel lets nobody write the
limits of the root of their own cgroup namespace (kernel/cgroup/cgroup.c,
``cgroup_file_write``): for the agent that is its own container, of whose pod it is to keep
the limits too. In the host's namespace there is no such root among the pods.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from hugetlb_quota.node.host import HostRoot

_CLONE_NEWCGROUP: Final = 0x02000000
#: The inode of the first cgroup namespace (include/linux/proc_ns.h, PROC_CGROUP_INIT_INO).
_FIRST: Final = 0xEFFFFFFB
_OWN: Final = "/proc/self/ns/cgroup"

_libc: Final = ctypes.CDLL(None, use_errno=True)


def enter_hosts(host: HostRoot) -> str:
    """Take this thread into the cgroup namespace of the host's init; why not, if not.

    Call it before there are other threads or processes: those that exist stay where they
    are, and those made later follow.

    It takes CAP_SYS_ADMIN in the user namespace that the host's cgroup namespace belongs to,
    and CAP_SYS_PTRACE to open it. An agent without these (reading the kernel's charge list
    needs neither) stays in its own namespace: then its own container keeps the limit of its
    pod alone, which :class:`~hugetlb_quota.node.cgroup.OwnNamespace` and the condition Ready
    tell, and nothing else is amiss.

    :returns: a sentence; "" when this thread is in the host's namespace.
    """
    path = host.at("/proc/1/ns/cgroup")
    try:
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.path.samestat(os.fstat(namespace), os.stat(_OWN)):  # noqa: PTH116
                return ""
            if _libc.setns(namespace, _CLONE_NEWCGROUP) != 0:
                raise OSError(number := ctypes.get_errno(), os.strerror(number))
        finally:
            os.close(namespace)
    except OSError as error:
        if os.stat(_OWN).st_ino == _FIRST:  # noqa: PTH116 - there is no other to enter
            return ""
        return (
            f"The host's cgroup namespace {path} can't be entered ({error.strerror}); it takes"
            " CAP_SYS_ADMIN and CAP_SYS_PTRACE."
        )
    return ""
