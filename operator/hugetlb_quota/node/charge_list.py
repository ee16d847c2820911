"""The kernel's charge list: which pages of which hugetlbfs files are charged to which cgroup.

``reader/`` reads it in the kernel, ``charge_reader`` asks for it; here is what it means. All
amounts are huge pages. Cgroups may be gone already: while pages are charged to one, the
kernel keeps its ID, its name and those above it.
"""

from __future__ import annotations

import heapq
import os
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from hugetlb_quota.node import kubepods
from hugetlb_quota.page_size import PageSize, UnknownPageSize

#: As in reader/rows.h: the rows of each kind, with their header, in the order of the sections.
_SIZE: Final = struct.Struct("=4xIQqq")
_SUPER: Final = struct.Struct("=4xIIII4x")
_NODE: Final = struct.Struct("=4xIQQQqIHHQ")
_REGION: Final = struct.Struct("=4xIQqqQ")
_PRIVATE: Final = struct.Struct("=4xIQqqQ")
_FOLIO: Final = struct.Struct("=4xIQQI4x")
_CGROUP: Final = struct.Struct("=4xIQQQ")
_COUNTER: Final = struct.Struct("=4xIQqq")
_KINDS: Final = (_SIZE, _SUPER, _NODE, _REGION, _PRIVATE, _FOLIO, _CGROUP, _COUNTER)
#: How long each section is; the last are the names.
_LENGTHS: Final = struct.Struct(f"={len(_KINDS) + 1}Q")

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
    as there is one.
    ``reserved`` and ``faulted`` count it and all below it (rsvd.current and current).
    """

    id: int
    path: str
    lineage: tuple[int, ...]
    reserved: Mapping[PageSize, int]
    faulted: Mapping[PageSize, int]

    def is_below(self, ancestor: int) -> bool:
        """Whether it is the cgroup of that ID, or below it."""
        return ancestor in self.lineage

    def pod(self, parents: frozenset[int]) -> str | None:
        """The UID in the name of the pod's cgroup that it is, or is below; None: of no pod.

        ``parents`` are the IDs of the directories that kubepods is in: a tree elsewhere that is
        named like kubelet's is another's.
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
    of a System V segment is its ID. ``unreserved`` are pages that were charged when they were
    touched, as no reservation was made for them.
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

    ``files`` are those that hold most, the largest first. ``own`` is by cgroup ID what is
    charged to just that cgroup, ``in_files`` the part of it that no process need hold: all but
    private memory. ``held`` is by device what is reserved or allocated on each file system.
    ``at_rest`` says that the root's counters stood still while it
    was read, and that each cgroup's equals what is listed. ``unlisted`` is by how much the
    root's counters passed the list: charges that came meanwhile, or that are in nothing the
    reader looks at. ``mappings_left_out``: there are more mappings than the reader looks at (a
    million), so private ones may be missing; all else is whole.
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
        """What is charged to the cgroup of that ID and all below it."""
        sums: Counter[PageSize] = Counter()
        for id_, amounts in self.own.items():
            if self.cgroups[id_].is_below(ancestor):
                sums.update(amounts)
        return dict(sums)

    def pods(self, parents: frozenset[int]) -> dict[str | None, dict[PageSize, int]]:
        """By UID what is charged to pods, live or gone; under None what is to no pod.

        ``parents`` are the IDs of the directories that kubepods is in.
        """
        sums: dict[str | None, Counter[PageSize]] = defaultdict(Counter)
        for id_, amounts in self.own.items():
            sums[self.cgroups[id_].pod(parents)].update(amounts)
        return {uid: dict(amounts) for uid, amounts in sums.items()}


class _Node(NamedTuple):
    """A row of a file or directory, as it is."""

    superblock: int
    number: int
    inode: int
    parent: int
    bytes: int
    links: int
    directory: int
    name_length: int
    name_at: int


@dataclass(slots=True)
class _Rows:
    """What the rows say, before one is put in relation to another."""

    names: bytes
    sizes: dict[int, tuple[PageSize, int, int]] = field(default_factory=dict)
    #: Device, index of the page size, whether it is internal.
    supers: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    #: By the number of the node in this read.
    files: dict[int, tuple[int, ...]] = field(default_factory=dict)
    #: By superblock and inode.
    directories: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    #: Superblock, node, the first page and the one after the last, cgroup.
    regions: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    #: Superblock, node, the first page, pages, cgroup.
    private: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    #: Pages by page size, inode, cgroup, device.
    folios: Counter[tuple[int, int, int, int]] = field(default_factory=Counter)
    #: Parent, name.
    cgroups: dict[int, tuple[int, str]] = field(default_factory=dict)
    #: Page size, pages reserved, pages faulted.
    counters: dict[int, list[tuple[int, int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def name(self, at: int, length: int) -> str:
        """Whatever bytes a program chose."""
        if at + length > len(self.names):
            raise MalformedAnswer(f"a name ends at {at + length} of {len(self.names)} bytes")
        return os.fsdecode(self.names[at : at + length])


def decode(payload: bytes, *, at_rest: bool, largest: int | None = None) -> ChargeList:
    """What an answer of the reader says, with so many of the ``largest`` files; None: with all.

    :raises MalformedAnswer: when it is none: cut off, at odds with itself, out of bounds.
    """
    try:
        rows = _rows(payload)
        return _related(rows, at_rest, largest)
    except (struct.error, UnknownPageSize) as error:
        raise MalformedAnswer(str(error)) from error
    except KeyError as error:
        raise MalformedAnswer(f"a row names {error}, which no other is about") from error


def _rows(payload: bytes) -> _Rows:
    *sections, names = _sections(payload)
    sizes, supers, nodes, regions, private, folios, cgroups, counters = (
        kind.iter_unpack(section) for kind, section in zip(_KINDS, sections, strict=True)
    )
    rows = _Rows(bytes(names))
    for index, page, used, listed in sizes:
        rows.sizes[index] = (PageSize(page), used, listed)
    for index, device, size, internal in supers:
        rows.supers[index] = (device, size, internal)
    # The long ones stay as they come: of most files nothing but a sum is asked.
    for row in nodes:
        if row[6]:
            rows.directories[row[0], row[2]] = row
        else:
            rows.files[row[1]] = row
    rows.regions = list(regions)
    rows.private = list(private)
    rows.folios.update(folios)
    for length, id_, parent, at in cgroups:
        rows.cgroups[id_] = (parent, rows.name(at, length))
    for index, id_, reserved, faulted in counters:
        rows.counters[id_].append((index, reserved, faulted))
    return rows


def _sections(payload: bytes) -> Iterator[memoryview]:
    lengths = _LENGTHS.unpack_from(payload)
    if _LENGTHS.size + sum(lengths) != len(payload):
        raise MalformedAnswer(f"it has {len(payload)} bytes, and sections of {lengths}")
    at, view = _LENGTHS.size, memoryview(payload)
    for length in lengths:
        yield view[at : at + length]
        at += length


def _related(rows: _Rows, at_rest: bool, largest: int | None) -> ChargeList:
    own, in_files, held = _sums(rows)
    unreserved = _unreserved_in(rows)
    for node, amounts in unreserved.items():
        held[node] += amounts.total()
    cgroups = _cgroups(rows)
    totals: Counter[PageSize] = Counter()
    hierarchical: Counter[tuple[int, PageSize]] = Counter()
    for id_, by_size in own.items():
        totals.update(by_size)
        for size, pages in by_size.items():
            for each in cgroups[id_].lineage:
                hierarchical[each, size] += pages
    for size, _, listed in rows.sizes.values():
        if totals[size] != listed:
            raise MalformedAnswer(f"its rows have {totals[size]} pages of {size}, not {listed}")
    # The total alone may be right by chance: two who changed meanwhile may make up for each other.
    agree = all(
        hierarchical[id_, size] == pages
        for id_, cgroup in cgroups.items()
        for size, pages in cgroup.reserved.items()
    )
    return ChargeList(
        files=_files(rows, cgroups, held, unreserved, largest),
        unreserved=tuple(_unreserved(rows, cgroups)),
        cgroups=cgroups,
        own=own,
        in_files=in_files,
        held=_held(rows),
        unlisted={size: used - listed for size, used, listed in rows.sizes.values()},
        at_rest=at_rest and agree,
    )


_Sums = dict[int, Counter[PageSize]]


def _sums(rows: _Rows) -> tuple[_Sums, _Sums, Counter[int]]:
    """Pages by cgroup, those in files, and by node what is reserved in its file."""
    reserved: Counter[tuple[int, int]] = Counter()
    private: Counter[tuple[int, int]] = Counter()
    held: Counter[int] = Counter()
    for superblock, node, start, end, cgroup in rows.regions:
        if not 0 <= start < end:
            raise MalformedAnswer(f"a region is [{start}, {end})")
        reserved[superblock, cgroup] += end - start
        held[node] += end - start
    for superblock, _, start, pages, cgroup in rows.private:
        if start < 0 or pages <= 0:
            raise MalformedAnswer(f"a private mapping has {pages} pages from page {start}")
        private[superblock, cgroup] += pages
    in_files: _Sums = defaultdict(Counter)
    for (superblock, cgroup), pages in reserved.items():
        in_files[cgroup][rows.sizes[rows.supers[superblock][1]][0]] += pages
    own: _Sums = defaultdict(Counter)
    for (size, inode, cgroup, _), pages in rows.folios.items():
        (in_files if inode else own)[cgroup][rows.sizes[size][0]] += pages
    for (superblock, cgroup), pages in private.items():
        own[cgroup][rows.sizes[rows.supers[superblock][1]][0]] += pages
    for cgroup, amounts in in_files.items():
        own[cgroup].update(amounts)
    return dict(own), dict(in_files), held


def _held(rows: _Rows) -> Counter[int]:
    """Pages by device: reserved, by files and private mappings, or touched without."""
    by_super: Counter[int] = Counter()
    for superblock, _, start, end, _ in rows.regions:
        by_super[superblock] += end - start
    for superblock, _, _, pages, _ in rows.private:
        by_super[superblock] += pages
    devices: Counter[int] = Counter()
    for superblock, pages in by_super.items():
        devices[_device(rows.supers[superblock][0])] += pages
    for (_, inode, _, device), pages in rows.folios.items():
        if inode:
            devices[_device(device)] += pages
    return devices


def _unreserved_in(rows: _Rows) -> dict[int, Counter[int]]:
    """By node what is in its file without a reservation: pages by cgroup.

    In the kernel's own file systems two files may have one inode number: that of a System V
    segment is its ID. Which of the two has the pages can't be told then.
    """
    devices = {device: index for index, (device, _, _) in rows.supers.items()}
    pages: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for (_, inode, cgroup, device), count in rows.folios.items():
        if inode and device in devices:
            pages[devices[device], inode][cgroup] += count
    found: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for number, node in rows.files.items() if pages else ():
        if (key := (node[0], node[2])) in pages:
            found[key].append(number)
    return {numbers[0]: pages[key] for key, numbers in found.items() if len(numbers) == 1}


def _unreserved(rows: _Rows, cgroups: Mapping[int, Cgroup]) -> Iterator[Unreserved]:
    for (size, inode, cgroup, device), pages in rows.folios.items():
        file = (_device(device), inode) if inode else None
        yield Unreserved(rows.sizes[size][0], cgroups[cgroup], pages, file)


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
        return Cgroup(id_, "/", (id_,), reserved, faulted)
    above = found[parent]
    path = f"{above.path.rstrip('/')}/{name}"
    return Cgroup(id_, path, (*above.lineage, id_), reserved, faulted)


def _files(
    rows: _Rows,
    cgroups: Mapping[int, Cgroup],
    held: Counter[int],
    unreserved: Mapping[int, Mapping[int, int]],
    largest: int | None,
) -> tuple[File, ...]:
    charged = held.keys() | {row[1] for row in rows.private}
    if unknown := charged - rows.files.keys():
        raise MalformedAnswer(f"node {min(unknown)} is charged and no file")
    most = len(rows.files) if largest is None else largest
    order = heapq.nlargest(most, rows.files, key=held.__getitem__)
    kept = set(order)
    regions, private = defaultdict(list), defaultdict(list)
    for _, node, start, end, cgroup in rows.regions:
        if node in kept:
            regions[node].append(Region(start, end, cgroups[cgroup]))
    for _, node, start, pages, cgroup in rows.private:
        if node in kept:
            private[node].append(PrivateMapping(start, pages, cgroups[cgroup]))
    supers = {
        index: Superblock(_device(device), rows.sizes[size][0], bool(internal))
        for index, (device, size, internal) in rows.supers.items()
    }
    paths: dict[tuple[int, int], str] = {}
    return tuple(
        File(
            supers[node.superblock],
            node.inode,
            _path(rows, node, paths),
            node.links > 0,
            node.bytes,
            tuple(regions[node.number]),
            tuple(private[node.number]),
            tuple((cgroups[id_], pages) for id_, pages in unreserved.get(node.number, {}).items()),
        )
        for node in (_Node(*rows.files[number]) for number in order)
    )


def _path(rows: _Rows, node: _Node, paths: dict[tuple[int, int], str]) -> str:
    """``paths`` are those of directories, found before."""
    name = rows.name(node.name_at, node.name_length)
    if not node.parent:
        return name
    key, names = (node.superblock, node.parent), []
    while key not in paths:
        above = _Node(*rows.directories[key])
        if not above.parent:
            paths[key] = ""
            break
        names.append((key, rows.name(above.name_at, above.name_length)))
        key = (node.superblock, above.parent)
        if len(names) > _DEEPEST:
            raise MalformedAnswer(f"the directories above inode {node.inode} lead in a circle")
    path = paths[key]
    for each, part in reversed(names):
        path = paths[each] = f"{path}/{part}"
    return f"{path}/{name}"


def _device(kernels: int) -> int:
    return os.makedev(kernels >> _MINOR_BITS, kernels & ((1 << _MINOR_BITS) - 1))
