"""The files of the hugetlb controller in one cgroup (mm/hugetlb_cgroup.c).

Each function opens and closes its file: an open descriptor would outlive the cgroup. Amounts are
bytes. A limit of None means "max": no limit.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from hugetlb_quota.page_size import PageSize

#: Beyond ``rsvd.max`` mmap(2) fails with ENOMEM. Beyond ``max`` a program dies of SIGBUS when the
#: program touches a page.
Limit = Literal["rsvd.max", "max"]

_LONGEST: Final = 4096
_UNLIMITED: Final = 2**63


class CgroupError(Exception):
    """An error of one cgroup; it says nothing about other cgroups."""

    def __init__(self, cgroup: Path, sentence: str) -> None:
        super().__init__(sentence)
        self.cgroup = cgroup


class CgroupGone(CgroupError):
    """The cgroup was removed meanwhile, for example because its pod ended."""

    def __init__(self, cgroup: Path) -> None:
        super().__init__(cgroup, f"The cgroup {cgroup} is gone.")


class NotControlled(CgroupError):
    """The cgroup exists but has no files of the hugetlb controller."""

    def __init__(self, cgroup: Path, size: PageSize) -> None:
        super().__init__(
            cgroup,
            f"The cgroup {cgroup} has no {size.cgroup} files, so nothing limits its huge pages;"
            f" write +hugetlb to {cgroup.parent}/cgroup.subtree_control to enable the controller.",
        )


class LimitBelowUse(CgroupError):
    """The kernel refused to set a limit to ``value`` bytes, because more is in use."""

    def __init__(self, cgroup: Path, size: PageSize, limit: Limit, value: int | None) -> None:
        super().__init__(
            cgroup,
            f"{cgroup}/{size.cgroup}.{limit} can't be lowered to {value} bytes:"
            " more is in use; the limit falls when the pod gives huge pages back.",
        )
        self.size = size
        self.limit = limit
        self.value = value


class OwnNamespace(CgroupError):
    """The cgroup is the root of this process's cgroup namespace, so its limits are read-only."""

    def __init__(self, cgroup: Path) -> None:
        super().__init__(
            cgroup,
            f"{cgroup} is the root of the agent's own cgroup namespace, and the kernel lets no"
            " process write the limits of its namespace's root (nsdelegate).",
        )


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes of one page size: reserved by mappings, and faulted in."""

    reserved: int
    faulted: int

    @property
    def most(self) -> int:
        """The larger amount: reserved pages may not be faulted, and MAP_NORESERVE faults others."""
        return max(self.reserved, self.faulted)


def read_limit(cgroup: Path, size: PageSize, limit: Limit) -> int | None:
    """Return one limit of ``cgroup`` in bytes, or None for no limit.

    :raises CgroupGone: the cgroup was removed.
    :raises NotControlled: the cgroup has no hugetlb files.
    :raises CgroupError: the file can't be read.
    """
    text = _read(cgroup, size, limit)
    if text == "max":
        return None
    # A cgroup without a limit may show PAGE_COUNTER_MAX in bytes instead of "max". The kernel
    # shows "max" only for the largest whole number of huge pages.
    return value if (value := int(text)) < _UNLIMITED - size.bytes else None


def write_limit(cgroup: Path, size: PageSize, limit: Limit, value: int | None) -> None:
    """Set one limit of ``cgroup`` to ``value`` bytes; None removes the limit.

    :raises LimitBelowUse: more than ``value`` is in use.
    :raises OwnNamespace: the cgroup is the root of this process's cgroup namespace.
    :raises CgroupGone: the cgroup was removed.
    :raises NotControlled: the cgroup has no hugetlb files.
    :raises CgroupError: the file can't be written.
    """
    path = f"{cgroup}/{size.cgroup}.{limit}"
    try:
        # Unbuffered: a buffered file would raise EBUSY only in close(), or lose the error.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"max" if value is None else b"%d" % value)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise LimitBelowUse(cgroup, size, limit, value) from error
        # Missing file permissions give EACCES, and root needs no file permissions.
        if error.errno == errno.EPERM:
            raise OwnNamespace(cgroup) from error
        raise _explained(error, cgroup, size, path) from error


def read_use(cgroup: Path, size: PageSize) -> Use:
    """Return the bytes of ``size`` that ``cgroup`` and all cgroups below use.

    :raises CgroupGone: the cgroup was removed.
    :raises NotControlled: the cgroup has no hugetlb files.
    :raises CgroupError: a file can't be read.
    """
    return Use(int(_read(cgroup, size, "rsvd.current")), int(_read(cgroup, size, "current")))


def read_refusals(cgroup: Path, size: PageSize) -> int:
    """Return how often the kernel refused a charge in ``cgroup`` or below, in mmap or at a touch.

    :raises CgroupGone: the cgroup was removed.
    :raises NotControlled: the cgroup has no hugetlb files.
    :raises CgroupError: the file can't be read.
    """
    found = dict(line.split() for line in _read(cgroup, size, "events").splitlines())
    return int(found.get("max", 0))


def is_populated(cgroup: Path) -> bool:
    """Return True if a process is in ``cgroup`` or below; False also if the cgroup is gone.

    :raises CgroupError: the kernel's file can't be read.
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
    # ENODEV: the cgroup was removed after open (fs/kernfs/file.c, kernfs_get_active).
    if error.errno in (errno.ENOENT, errno.ENODEV):
        return CgroupGone(cgroup) if _is_controlled(cgroup) else NotControlled(cgroup, size)
    return CgroupError(cgroup, f"{path} can't be used: {error.strerror}.")


def _is_controlled(cgroup: Path) -> bool:
    """Return True if the controller is enabled for ``cgroup``, or if the cgroup is gone.

    The cgroup's own files prove nothing: the kernel removes the files first and the directory
    a moment later (kernel/cgroup/cgroup.c, cgroup_destroy_locked).
    """
    try:
        enabled = (cgroup.parent / "cgroup.subtree_control").read_text().split()
    except OSError:
        return True  # the parent is gone too
    return "hugetlb" in enabled or not cgroup.is_dir()
