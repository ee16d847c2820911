"""The files of the hugetlb controller in one cgroup (mm/hugetlb_cgroup.c).

A file is opened, used and closed at once: a descriptor that stays open would outlive
the cgroup. Amounts are bytes; a limit of None is the kernel's "max", no limit.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from hugetlb_quota.page_size import PageSize

#: ``rsvd.max`` fails mmap(2) with ENOMEM; ``max`` kills with SIGBUS at the touch.
Limit = Literal["rsvd.max", "max"]

_LONGEST: Final = 4096
_UNLIMITED: Final = 2**63


class CgroupError(Exception):
    """Something about one cgroup; the others are not concerned."""

    def __init__(self, cgroup: Path, sentence: str) -> None:
        super().__init__(sentence)
        self.cgroup = cgroup


class CgroupGone(CgroupError):
    """The cgroup was removed meanwhile, as happens when a pod ends."""

    def __init__(self, cgroup: Path) -> None:
        super().__init__(cgroup, f"The cgroup {cgroup} is gone.")


class NotControlled(CgroupError):
    """The cgroup is there, without files of the hugetlb controller."""

    def __init__(self, cgroup: Path, size: PageSize) -> None:
        super().__init__(
            cgroup,
            f"The cgroup {cgroup} has no {size.cgroup} files, so nothing limits its huge pages;"
            f" enable the controller: write +hugetlb to {cgroup.parent}/cgroup.subtree_control.",
        )


class LimitBelowUse(CgroupError):
    """The kernel refused a limit (bytes) because more than that is in use."""

    def __init__(self, cgroup: Path, size: PageSize, limit: Limit, value: int | None) -> None:
        super().__init__(
            cgroup,
            f"{cgroup}/{size.cgroup}.{limit} can't be lowered to {value} bytes:"
            " more is in use; it falls when the pod gives huge pages back.",
        )
        self.size = size
        self.limit = limit
        self.value = value


class OwnNamespace(CgroupError):
    """The cgroup is the root of this process' own cgroup namespace, whose limits it may not set."""

    def __init__(self, cgroup: Path) -> None:
        super().__init__(
            cgroup,
            f"{cgroup} is the root of the agent's own cgroup namespace, and the kernel lets nobody"
            " write the limits of that (nsdelegate).",
        )


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes of one page size: promised to mappings, and faulted in."""

    reserved: int
    faulted: int

    @property
    def most(self) -> int:
        """The larger: MAP_NORESERVE faults what was not reserved, a reservation comes first."""
        return max(self.reserved, self.faulted)


def read_limit(cgroup: Path, size: PageSize, limit: Limit) -> int | None:
    """One limit of ``cgroup``.

    :raises CgroupGone: when it was removed.
    :raises NotControlled: when it has no hugetlb files.
    """
    text = _read(cgroup, size, limit)
    if text == "max":
        return None
    # A cgroup that was never limited shows PAGE_COUNTER_MAX in bytes, which is not quite
    # the largest whole number of huge pages, the value that reads as "max".
    return value if (value := int(text)) < _UNLIMITED - size.bytes else None


def write_limit(cgroup: Path, size: PageSize, limit: Limit, value: int | None) -> None:
    """Set one limit of ``cgroup``.

    :raises LimitBelowUse: when more than ``value`` is in use.
    :raises OwnNamespace: when it is the root of our own cgroup namespace.
    :raises CgroupGone: when it was removed.
    :raises NotControlled: when it has no hugetlb files.
    """
    path = f"{cgroup}/{size.cgroup}.{limit}"
    try:
        # Unbuffered: a buffered file would meet EBUSY in close(), or swallow it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"max" if value is None else b"%d" % value)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise LimitBelowUse(cgroup, size, limit, value) from error
        # By permissions alone it would be EACCES, and root is not asked for those.
        if error.errno == errno.EPERM:
            raise OwnNamespace(cgroup) from error
        raise _explained(error, cgroup, size, path) from error


def read_use(cgroup: Path, size: PageSize) -> Use:
    """What ``cgroup`` and all below it use of ``size``.

    :raises CgroupGone: when it was removed.
    :raises NotControlled: when it has no hugetlb files.
    """
    return Use(int(_read(cgroup, size, "rsvd.current")), int(_read(cgroup, size, "current")))


def read_refusals(cgroup: Path, size: PageSize) -> int:
    """How often a charge in ``cgroup`` or below did not fit: a reservation, or at the touch.

    :raises CgroupGone: when it was removed.
    :raises NotControlled: when it has no hugetlb files.
    """
    found = dict(line.split() for line in _read(cgroup, size, "events").splitlines())
    return int(found.get("max", 0))


def is_populated(cgroup: Path) -> bool:
    """Whether a process is in ``cgroup`` or below; none is when it is gone.

    :raises CgroupError: when it can't be told.
    """
    path = cgroup / "cgroup.events"
    try:
        return "populated 0" not in path.read_text()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise CgroupError(cgroup, f"{path} can't be read: {error.strerror}.") from error


def _read(cgroup: Path, size: PageSize, file: str) -> str:
    path = f"{cgroup}/{size.cgroup}.{file}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, _LONGEST).decode().strip()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _explained(error, cgroup, size, path) from error


def _explained(error: OSError, cgroup: Path, size: PageSize, path: str) -> Exception:
    # ENODEV: removed between open and read, or write (fs/kernfs/file.c, kernfs_get_active).
    if error.errno in (errno.ENOENT, errno.ENODEV):
        return CgroupGone(cgroup) if _is_controlled(cgroup) else NotControlled(cgroup, size)
    return CgroupError(cgroup, f"{path} can't be used: {error.strerror}.")


def _is_controlled(cgroup: Path) -> bool:
    """Whether the controller is enabled for ``cgroup``, or was while it was there.

    Not by looking at the cgroup itself: a removal takes the files first and the
    directory a moment later (kernel/cgroup/cgroup.c, cgroup_destroy_locked).
    """
    try:
        enabled = (cgroup.parent / "cgroup.subtree_control").read_text().split()
    except OSError:
        return True  # gone too
    return "hugetlb" in enabled or not cgroup.is_dir()
