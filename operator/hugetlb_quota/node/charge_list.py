"""The kernel's charge list: which pages of which hugetlbfs files are charged to which cgroup.

``reader/`` reads it in the kernel, ``charge_reader`` asks for it; here is what it means. All
amounts are huge pages. Cgroups may be gone already: while pages are charged to one, the
kernel keeps its ID, its name and those above it.
"""

from __future__ import annotations

import os
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from hugetlb_quota.node import kubepods
from hugetlb_quota.page_size import PageSize, UnknownPageSize

#: As in reader/rows.h.
_HEADER: Final = struct.Struct("=HHI")
_SIZE: Final = struct.Struct("=Qqq")
_SUPER: Final = struct.Struct("=IIII")
_NODE: Final = struct.Struct("=QQQqIHH")
_REGION: Final = struct.Struct("=QqqQ")
_PRIVATE: Final = struct.Struct("=QqqQ")
_FOLIO: Final = struct.Struct("=QQII")
_CGROUP: Final = struct.Struct("=QQ")
_COUNTER: Final = struct.Struct("=Qqq")

#: No path and no cgroup is deeper; a chain that is longer leads in a circle.
_DEEPEST: Final = 4096
#: A kernel's dev_t has 20 bits of minor number.
_MINOR_BITS: Final = 20


class MalformedAnswer(ValueError):
    """Bytes that are no charge list; the sentence says what was amiss."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The reader's answer is no charge list: {why}.")


@dataclass(frozen=True, slots=True)
class Superblock:
    """One hugetlbfs, mounted or not; ``device`` is as in ``st_dev``.

    ``internal`` is the kernel's own: memfds, System V segments and anonymous mappings are
    files there.
    """

    device: int
    page_size: PageSize
    internal: bool


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup that something is charged to, or one above it.

    ``path`` is below the root of cgroup2, as /proc/PID/cgroup prints it. ``lineage`` are the
    IDs from the root down to its own; the ID is the inode number of its directory, as long
    as there is one. ``pod`` is the UID in the name of the pod's cgroup that it is or is below.
    ``reserved`` and ``faulted`` count it and all below it (rsvd.current and current).
    """

    id: int
    path: str
    lineage: tuple[int, ...]
    pod: str | None
    reserved: Mapping[PageSize, int]
    faulted: Mapping[PageSize, int]

    def is_below(self, ancestor: int) -> bool:
        """Whether it is the cgroup of that ID, or below it."""
        return ancestor in self.lineage


@dataclass(frozen=True, slots=True)
class Region:
    """Pages ``[start, end)`` of a file, charged to ``cgroup`` when they were reserved."""

    start: int
    end: int
    cgroup: Cgroup


@dataclass(frozen=True, slots=True)
class PrivateMapping:
    """A private mapping's reservation: it ends with the mapping, not with the file's pages.

    ``start`` is the page of the file at which it begins.
    """

    start: int
    pages: int
    cgroup: Cgroup


@dataclass(frozen=True, slots=True)
class File:
    """A file on hugetlbfs.

    ``path`` is whole, from the root of its file system: ``/`` and more where it was made there,
    a bare name in an internal one (``memfd:NAME``, ``SYSV00000000``, ``anon_hugepage``).
    ``linked`` is whether it still has a name; a file without one lives as long as it is open
    or mapped. ``bytes`` is its length. ``inode`` is unique in file systems that are mounted; that
    of a System V segment is its ID.
    """

    superblock: Superblock
    inode: int
    path: str
    linked: bool
    bytes: int
    regions: tuple[Region, ...]
    private: tuple[PrivateMapping, ...]


@dataclass(frozen=True, slots=True)
class Unreserved:
    """Pages that were charged when they were touched, as no reservation was made for them.

    ``file`` is the device and inode of the file that has them; None: private memory.
    """

    page_size: PageSize
    cgroup: Cgroup
    pages: int
    file: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class ChargeList:
    """All that is charged for huge pages on the host.

    ``at_rest`` says that the root's counters stood still while it was read, and that each
    cgroup's equals what is listed. ``unlisted`` is by how much the root's counters passed the
    list: charges that came meanwhile, or that are in nothing the reader looks at.
    """

    files: tuple[File, ...]
    unreserved: tuple[Unreserved, ...]
    cgroups: Mapping[int, Cgroup]
    unlisted: Mapping[PageSize, int]
    at_rest: bool
    reads: int = 1
    seconds: float = 0.0

    def charges(self) -> Iterator[tuple[PageSize, Cgroup, int]]:
        """Every charge: of which size, whose, how many pages; a cgroup comes several times."""
        for file in self.files:
            size = file.superblock.page_size
            for region in file.regions:
                yield size, region.cgroup, region.end - region.start
            for mapping in file.private:
                yield size, mapping.cgroup, mapping.pages
        for each in self.unreserved:
            yield each.page_size, each.cgroup, each.pages

    def charged(self) -> dict[int, dict[PageSize, int]]:
        """By cgroup ID what is charged to just that cgroup."""
        sums: dict[int, dict[PageSize, int]] = {}
        for size, cgroup, pages in self.charges():
            of = sums.setdefault(cgroup.id, {})
            of[size] = of.get(size, 0) + pages
        return sums

    def below(self, ancestor: int) -> dict[PageSize, int]:
        """What is charged to the cgroup of that ID and all below it."""
        sums: dict[PageSize, int] = {}
        for id_, amounts in self.charged().items():
            if self.cgroups[id_].is_below(ancestor):
                for size, pages in amounts.items():
                    sums[size] = sums.get(size, 0) + pages
        return sums

    def pods(self, roots: frozenset[int]) -> dict[str, dict[PageSize, int]]:
        """By UID what is charged to pods below the kubepods with these IDs, live or gone."""
        sums: dict[str, dict[PageSize, int]] = {}
        for id_, amounts in self.charged().items():
            cgroup = self.cgroups[id_]
            if cgroup.pod is None or roots.isdisjoint(cgroup.lineage):
                continue
            of = sums.setdefault(cgroup.pod, {})
            for size, pages in amounts.items():
                of[size] = of.get(size, 0) + pages
        return sums


class _Node(NamedTuple):
    superblock: int
    inode: int
    parent: int
    bytes: int
    links: int
    name: str


@dataclass(slots=True)
class _Rows:
    """What the rows say, before one is put in relation to another."""

    sizes: dict[int, tuple[PageSize, int, int]] = field(default_factory=dict)
    supers: dict[int, tuple[int, int, bool]] = field(default_factory=dict)
    #: By the number of the node in this read.
    files: dict[int, _Node] = field(default_factory=dict)
    regions: dict[int, list[tuple[int, int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    private: dict[int, list[tuple[int, int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    #: By superblock and inode.
    directories: dict[tuple[int, int], _Node] = field(default_factory=dict)
    folios: dict[tuple[int, int, int, int], int] = field(default_factory=lambda: defaultdict(int))
    cgroups: dict[int, tuple[int, str]] = field(default_factory=dict)
    counters: dict[int, list[tuple[int, int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    count: int = 0


def decode(payload: bytes, *, at_rest: bool, rows: int, reads: int, seconds: float) -> ChargeList:
    """The list that ``rows`` rows of the reader say.

    :raises MalformedAnswer: when they are none: cut off, at odds with each other, out of bounds.
    """
    try:
        read = _read(payload)
        if read.count != rows:
            raise MalformedAnswer(f"it has {read.count} rows, and should have {rows}")
        return _related(read, at_rest, reads, seconds)
    except (struct.error, UnknownPageSize) as error:
        raise MalformedAnswer(str(error)) from error
    except KeyError as error:
        raise MalformedAnswer(f"a row names {error}, which no other is about") from error


def _read(payload: bytes) -> _Rows:
    rows = _Rows()
    take = {
        1: _take_size, 2: _take_super, 3: _take_node, 4: _take_region,
        5: _take_private, 6: _take_folio, 7: _take_cgroup, 8: _take_counter,
    }  # fmt: skip
    at, end, head = 0, len(payload), _HEADER.size
    while at < end:
        kind, length, index = _HEADER.unpack_from(payload, at)
        if kind not in take or length < head or length % 8 or at + length > end:
            raise MalformedAnswer(f"a row of kind {kind} has {length} bytes at {at} of {end}")
        take[kind](rows, index, payload[at + head : at + length])
        at += length
        rows.count += 1
    return rows


def _take_size(rows: _Rows, index: int, row: bytes) -> None:
    page, used, listed = _SIZE.unpack(row)
    rows.sizes[index] = (PageSize(page), used, listed)


def _take_super(rows: _Rows, index: int, row: bytes) -> None:
    device, size, internal, _ = _SUPER.unpack(row)
    rows.supers[index] = (device, size, bool(internal))


def _take_node(rows: _Rows, index: int, row: bytes) -> None:
    number, inode, parent, length, links, directory, name = _NODE.unpack_from(row)
    node = _Node(index, inode, parent, length, links, _text(row, _NODE.size, name))
    if directory:
        rows.directories[index, inode] = node
    else:
        rows.files[number] = node


def _take_region(rows: _Rows, _: int, row: bytes) -> None:
    node, start, end, cgroup = _REGION.unpack(row)
    if not 0 <= start < end:
        raise MalformedAnswer(f"a region is [{start}, {end})")
    rows.regions[node].append((start, end, cgroup))


def _take_private(rows: _Rows, _: int, row: bytes) -> None:
    node, start, pages, cgroup = _PRIVATE.unpack(row)
    if start < 0 or pages <= 0:
        raise MalformedAnswer(f"a private mapping has {pages} pages from page {start}")
    rows.private[node].append((start, pages, cgroup))


def _take_folio(rows: _Rows, index: int, row: bytes) -> None:
    inode, cgroup, device, _ = _FOLIO.unpack(row)
    rows.folios[index, cgroup, device, inode] += 1


def _take_cgroup(rows: _Rows, index: int, row: bytes) -> None:
    id_, parent = _CGROUP.unpack_from(row)
    rows.cgroups[id_] = (parent, _text(row, _CGROUP.size, index))


def _take_counter(rows: _Rows, index: int, row: bytes) -> None:
    cgroup, reserved, faulted = _COUNTER.unpack(row)
    rows.counters[cgroup].append((index, reserved, faulted))


def _text(row: bytes, start: int, length: int) -> str:
    if start + length > len(row):
        raise MalformedAnswer(f"a name of {length} bytes is in a row of {len(row)}")
    # Names are whatever bytes a program chose.
    return os.fsdecode(row[start : start + length])


def _related(rows: _Rows, at_rest: bool, reads: int, seconds: float) -> ChargeList:
    cgroups = _cgroups(rows)
    files = tuple(_files(rows, cgroups))
    unreserved = tuple(
        Unreserved(
            rows.sizes[size][0],
            cgroups[cgroup],
            pages,
            (_device(device), inode) if inode else None,
        )
        for (size, cgroup, device, inode), pages in rows.folios.items()
    )
    unlisted = {size: used - listed for size, used, listed in rows.sizes.values()}
    result = ChargeList(files, unreserved, cgroups, unlisted, at_rest, reads, seconds)
    totals, hierarchical = _sums(result)
    for size, _, listed in rows.sizes.values():
        if totals[size] != listed:
            raise MalformedAnswer(f"its rows have {totals[size]} pages of {size}, not {listed}")
    # The total alone may be right by chance: two who changed meanwhile may make up for each other.
    agree = all(
        hierarchical[id_, size] == pages
        for id_, cgroup in cgroups.items()
        for size, pages in cgroup.reserved.items()
    )
    return result if agree or not at_rest else replace(result, at_rest=False)


def _sums(charges: ChargeList) -> tuple[Counter[PageSize], Counter[tuple[int, PageSize]]]:
    """Pages by size, and by cgroup and size, what is below the cgroup included."""
    totals: Counter[PageSize] = Counter()
    hierarchical: Counter[tuple[int, PageSize]] = Counter()
    for id_, amounts in charges.charged().items():
        for size, pages in amounts.items():
            totals[size] += pages
            for each in charges.cgroups[id_].lineage:
                hierarchical[each, size] += pages
    return totals, hierarchical


def _cgroups(rows: _Rows) -> dict[int, Cgroup]:
    found: dict[int, Cgroup] = {}
    for id_ in rows.cgroups:
        chain = [id_]
        while chain[-1] not in found and (above := rows.cgroups[chain[-1]][0]):
            chain.append(above)
            if len(chain) > _DEEPEST:
                raise MalformedAnswer(f"the cgroups above {id_} lead in a circle")
        for each in reversed(chain):
            if each not in found:
                found[each] = _cgroup(rows, each, found)
    return found


def _cgroup(rows: _Rows, id_: int, found: Mapping[int, Cgroup]) -> Cgroup:
    parent, name = rows.cgroups[id_]
    reserved, faulted = {}, {}
    for index, promised, touched in rows.counters.get(id_, ()):
        size = rows.sizes[index][0]
        reserved[size], faulted[size] = promised, touched
    if not parent:
        return Cgroup(id_, "/", (id_,), None, reserved, faulted)
    above = found[parent]
    path = f"{above.path.rstrip('/')}/{name}"
    # Any cgroup below a pod's is that pod's, however deep.
    pod = above.pod or ((at := kubepods.place(path)) and at.pod) or None
    return Cgroup(id_, path, (*above.lineage, id_), pod, reserved, faulted)


def _files(rows: _Rows, cgroups: Mapping[int, Cgroup]) -> Iterator[File]:
    supers = {
        index: Superblock(_device(device), rows.sizes[size][0], internal)
        for index, (device, size, internal) in rows.supers.items()
    }
    for number in (*rows.regions, *rows.private):
        if number not in rows.files:
            raise MalformedAnswer(f"node {number} is charged and no file")
    paths: dict[tuple[int, int], str] = {}
    for number, node in rows.files.items():
        yield File(
            supers[node.superblock],
            node.inode,
            _path(rows, node, paths),
            node.links > 0,
            node.bytes,
            tuple(Region(s, e, cgroups[c]) for s, e, c in rows.regions.get(number, ())),
            tuple(PrivateMapping(s, n, cgroups[c]) for s, n, c in rows.private.get(number, ())),
        )


def _path(rows: _Rows, node: _Node, paths: dict[tuple[int, int], str]) -> str:
    """``paths`` are those of directories, found before."""
    if not node.parent:
        return node.name
    key, names = (node.superblock, node.parent), []
    while key not in paths:
        above = rows.directories[key]
        if not above.parent:
            paths[key] = ""
            break
        names.append((key, above.name))
        key = (node.superblock, above.parent)
        if len(names) > _DEEPEST:
            raise MalformedAnswer(f"the directories above inode {node.inode} lead in a circle")
    path = paths[key]
    for each, name in reversed(names):
        path = paths[each] = f"{path}/{name}"
    return f"{path}/{node.name}"


def _device(kernels: int) -> int:
    return os.makedev(kernels >> _MINOR_BITS, kernels & ((1 << _MINOR_BITS) - 1))
