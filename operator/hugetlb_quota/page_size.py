"""Huge page sizes and their three spellings.

Kubernetes writes ``hugepages-2Mi``, the cgroup controller ``hugetlb.2MB.max``
(mm/hugetlb_cgroup.c, ``mem_fmt``), sysfs ``hugepages-2048kB`` (mm/hugetlb.c,
``hugetlb_add_hstate``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from hugetlb_quota import quantity

#: The prefix of every huge page resource name.
RESOURCE_PREFIX = "hugepages-"

_CGROUP_FORM = re.compile(r"hugetlb\.(\d+)(KB|MB|GB)\.")
_SYSFS_FORM = re.compile(r"hugepages-(\d+)kB")
_CGROUP_UNITS = {"KB": 1024, "MB": 1024**2, "GB": 1024**3}


class UnknownPageSize(ValueError):
    """The name is not a huge page size of any Linux architecture."""

    def __init__(self, name: str) -> None:
        known = ", ".join(size.resource for size in PageSize.all())
        super().__init__(f"{name!r} is not a huge page size; the known sizes are {known}.")
        self.name = name


@dataclass(frozen=True, order=True, slots=True)
class PageSize:
    """A huge page size, in bytes; ordered from small to large."""

    bytes: int

    #: Every size that Linux registers on some architecture (x86, arm64 with each granule,
    #: riscv, s390, powerpc, loongarch).
    KNOWN: ClassVar[tuple[int, ...]] = tuple(
        kib * 1024
        for kib in (
            *(64, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536),
            *(262144, 524288, 1048576, 2097152, 16777216),
        )
    )

    def __post_init__(self) -> None:
        if self.bytes not in self.KNOWN:
            raise UnknownPageSize(f"{self.bytes} bytes")

    def __hash__(self) -> int:
        return self.bytes  # faster than the generated hash; every lookup in a Charge needs it

    @classmethod
    def all(cls) -> tuple[Self, ...]:
        """Every known size, smallest first."""
        return tuple(cls(size) for size in cls.KNOWN)

    @classmethod
    def from_resource(cls, name: str) -> Self:
        """From a Kubernetes resource name, ``hugepages-2Mi``.

        Two spellings of the same quantity are the same size (``hugepages-2048Ki``), as in
        Kubernetes' ``HugePageSizeFromResourceName``.

        :raises UnknownPageSize: for any other name.
        """
        if not name.startswith(RESOURCE_PREFIX):
            raise UnknownPageSize(name)
        try:
            return cls(quantity.parse(name.removeprefix(RESOURCE_PREFIX)))
        except ValueError as error:
            raise UnknownPageSize(name) from error

    @classmethod
    def from_cgroup_file(cls, name: str) -> Self:
        """From the name of a controller file, ``hugetlb.2MB.rsvd.max``.

        :raises UnknownPageSize: for any other name.
        """
        match = _CGROUP_FORM.match(name)
        if match is None:
            raise UnknownPageSize(name)
        return cls(int(match[1]) * _CGROUP_UNITS[match[2]])

    @classmethod
    def from_sysfs(cls, name: str) -> Self:
        """From the name of a directory in /sys/kernel/mm/hugepages, ``hugepages-2048kB``.

        :raises UnknownPageSize: for any other name.
        """
        match = _SYSFS_FORM.fullmatch(name)
        if match is None:
            raise UnknownPageSize(name)
        return cls(int(match[1]) * 1024)

    @property
    def resource(self) -> str:
        """The Kubernetes resource name, ``hugepages-2Mi``."""
        return RESOURCE_PREFIX + quantity.render(self.bytes)

    @property
    def cgroup(self) -> str:
        """The prefix of the cgroup controller's file names, ``hugetlb.2MB``."""
        for unit, size in reversed(_CGROUP_UNITS.items()):
            if self.bytes >= size:
                return f"hugetlb.{self.bytes // size}{unit}"
        raise AssertionError(f"a known page size is below 1 KiB: {self.bytes}")

    @property
    def sysfs(self) -> str:
        """The name of the directory in sysfs, ``hugepages-2048kB``."""
        return f"hugepages-{self.bytes // 1024}kB"

    def __str__(self) -> str:
        return quantity.render(self.bytes)
