"""The kernel's charge list: which pages of which hugetlbfs files are charged to which cgroup.

``charge_reader`` gets the list from the kernel, and ``charge_rows`` decodes it into these types.
All amounts are huge pages. A cgroup in the list may be gone: while pages are charged to a cgroup,
the kernel keeps its ID, its name and its ancestors.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from hugetlb_quota.node import kubepods
from hugetlb_quota.page_size import PageSize


@dataclass(frozen=True, slots=True)
class Superblock:
    """One hugetlbfs, mounted or not.

    ``device`` is its ``st_dev``. ``internal`` is True for the file systems that the kernel mounts
    for itself: their files are memfds, System V segments and anonymous mappings.
    """

    device: int
    page_size: PageSize
    internal: bool


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup that pages are charged to, or an ancestor of such a cgroup.

    ``id`` is the inode number of the cgroup's directory while the directory exists. ``path``
    starts at the root of cgroup2, as in /proc/PID/cgroup. ``lineage`` are the IDs from the root
    down to this cgroup. ``reserved`` (rsvd.current) and ``faulted`` (current) count the pages of
    this cgroup and all cgroups below.
    """

    id: int
    path: str
    lineage: tuple[int, ...]
    reserved: Mapping[PageSize, int]
    faulted: Mapping[PageSize, int]

    def is_below(self, ancestor: int) -> bool:
        """Return True if this cgroup has the ID ``ancestor``, or is below that cgroup."""
        return ancestor in self.lineage

    def pod(self, parents: frozenset[int]) -> str | None:
        """Return the UID in the name of the pod's cgroup that holds this cgroup; None if no pod's.

        ``parents`` are the IDs of the directories that hold kubepods. A tree elsewhere with the
        same names is not kubelet's.
        """
        names = self.path.split("/")[1:]
        for depth, id_ in enumerate(self.lineage):
            if id_ in parents and (uid := kubepods.pod_of(names[depth:])) is not None:
                return uid
        return None


@dataclass(frozen=True, slots=True)
class Region:
    """Pages ``[start, end)`` of a file, charged to ``cgroup`` when they were reserved."""

    start: int
    end: int
    cgroup: Cgroup


@dataclass(frozen=True, slots=True)
class PrivateMapping:
    """The reservation of a private mapping, which ends with the mapping.

    ``start`` is the first page of the file that is mapped.
    """

    start: int
    pages: int
    cgroup: Cgroup


@dataclass(frozen=True, slots=True)
class File:
    """A file on a hugetlbfs.

    ``inode`` is unique in a file system that is mounted; the inode number of a System V segment
    is the segment's ID. ``path`` starts at the root of the file system with ``/``. In an internal
    file system the path is only a name: ``memfd:NAME``, ``SYSV00000000``, ``anon_hugepage``.
    ``linked`` is False if the file has no name any more: such a file lives while a process has it
    open or mapped. ``bytes`` is the file's length. ``unreserved`` are pages without a reservation,
    charged when they were touched, by cgroup.
    """

    superblock: Superblock
    inode: int
    path: str
    linked: bool
    bytes: int
    regions: tuple[Region, ...]
    private: tuple[PrivateMapping, ...]
    unreserved: tuple[tuple[Cgroup, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Unreserved:
    """Pages without a reservation, charged when they were touched.

    ``file`` is the device and inode of their file; None for private memory.
    """

    page_size: PageSize
    cgroup: Cgroup
    pages: int
    file: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class ChargeList:
    """All charges of huge pages on the host.

    ``files`` are the files that hold most, the largest first. ``own`` are the pages by the ID of
    the cgroup that is charged, without cgroups below. ``in_files`` is the part of ``own`` that can
    outlive all processes: everything except private memory. ``held`` are the pages reserved or
    allocated on each file system, by device.

    ``at_rest`` is True if the root's counters did not change during the read, and each cgroup's
    counter equals the listed charges. ``unlisted`` is what the root's counters have beyond the
    list: charges that came during the read, or that the reader does not look at.

    ``mappings_left_out`` is True if there are more mappings than the reader looks at (a million).
    Private mappings may then be missing; everything else is complete. ``reads`` and ``seconds``
    say how often and how long the reader read.
    """

    files: tuple[File, ...]
    unreserved: tuple[Unreserved, ...]
    cgroups: Mapping[int, Cgroup]
    own: Mapping[int, Mapping[PageSize, int]]
    in_files: Mapping[int, Mapping[PageSize, int]]
    held: Mapping[int, int]
    unlisted: Mapping[PageSize, int]
    at_rest: bool
    mappings_left_out: bool = False
    reads: int = 1
    seconds: float = 0.0

    def below(self, ancestor: int) -> dict[PageSize, int]:
        """Return the pages charged to the cgroup with the ID ``ancestor`` and to all below."""
        sums: Counter[PageSize] = Counter()
        for id_, amounts in self.own.items():
            if self.cgroups[id_].is_below(ancestor):
                sums.update(amounts)
        return dict(sums)

    def pods(self, parents: frozenset[int]) -> dict[str | None, dict[PageSize, int]]:
        """Return the pages charged to each pod, live or gone, by UID; None for all other cgroups.

        ``parents`` are the IDs of the directories that hold kubepods.
        """
        sums: dict[str | None, Counter[PageSize]] = defaultdict(Counter)
        for id_, amounts in self.own.items():
            sums[self.cgroups[id_].pod(parents)].update(amounts)
        return {uid: dict(amounts) for uid, amounts in sums.items()}
