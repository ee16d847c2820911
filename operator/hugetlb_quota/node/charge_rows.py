"""Decodes the rows that the reader answers with into a ChargeList. Pure.

reader/rows.h has the format. Nothing in the bytes is trusted: :func:`decode` either returns a list
that agrees with itself or raises :class:`MalformedAnswer`.
"""

from __future__ import annotations

import heapq
import os
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from hugetlb_quota.node.charge_list import (
    Cgroup,
    ChargeList,
    File,
    PrivateMapping,
    Region,
    Superblock,
    Unreserved,
)
from hugetlb_quota.page_size import PageSize, UnknownPageSize
from hugetlb_quota.plural import number_of

#: The rows of each kind with their header, in the order of the sections; see reader/rows.h.
_SIZE: Final = struct.Struct("=4xIQqq")
_SUPER: Final = struct.Struct("=4xIIII4x")
_NODE: Final = struct.Struct("=4xIQQQqIHHQ")
_REGION: Final = struct.Struct("=4xIQqqQ")
_PRIVATE: Final = struct.Struct("=4xIQqqQ")
_FOLIO: Final = struct.Struct("=4xIQQI4x")
_CGROUP: Final = struct.Struct("=4xIQQQ")
_COUNTER: Final = struct.Struct("=4xIQqq")
_KINDS: Final = (_SIZE, _SUPER, _NODE, _REGION, _PRIVATE, _FOLIO, _CGROUP, _COUNTER)
#: The length of each section; the names are the last section.
_LENGTHS: Final = struct.Struct(f"={len(_KINDS) + 1}Q")

#: No path and no cgroup is deeper: a longer chain is a circle.
_DEEPEST: Final = 4096
#: The kernel's dev_t has 20 bits for the minor number.
_MINOR_BITS: Final = 20


class MalformedAnswer(ValueError):
    """The bytes are not a charge list; the sentence says why."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The reader's answer is not a charge list: {why}.")


class _Node(NamedTuple):
    """A row of a file or directory."""

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
    """All rows by kind, before they are joined."""

    names: bytes
    sizes: dict[int, tuple[PageSize, int, int]] = field(default_factory=dict)
    #: By index: device, index of the page size, 1 if internal.
    supers: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    #: By the node's number in this read.
    files: dict[int, tuple[int, ...]] = field(default_factory=dict)
    #: By index of the superblock and inode.
    directories: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    #: Superblock, node, first page, page after the last, cgroup.
    regions: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    #: Superblock, node, first page, pages, cgroup.
    private: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    #: The number of pages by page size, inode, cgroup and device.
    folios: Counter[tuple[int, int, int, int]] = field(default_factory=Counter)
    #: By ID: ID of the parent, name.
    cgroups: dict[int, tuple[int, str]] = field(default_factory=dict)
    #: By ID of the cgroup: index of the page size, pages reserved, pages faulted.
    counters: dict[int, list[tuple[int, int, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def name(self, at: int, length: int) -> str:
        """Return the name at ``at``. A program chose its bytes, so they may be any bytes."""
        if at + length > len(self.names):
            raise MalformedAnswer(
                f"a name ends at {at + length} of {number_of(len(self.names), 'byte')}"
            )
        return os.fsdecode(self.names[at : at + length])


def decode(payload: bytes, *, at_rest: bool, largest: int | None = None) -> ChargeList:
    """Return the charge list in ``payload``.

    :param at_rest: False if the reader saw the root's counters change.
    :param largest: the number of files to return, the largest first; None for all files.
    :raises MalformedAnswer: the bytes are cut off, contradict themselves or are out of bounds.
    """
    try:
        rows = _rows(payload)
        return _joined(rows, at_rest, largest)
    except (struct.error, UnknownPageSize) as error:
        raise MalformedAnswer(str(error)) from error
    except KeyError as error:
        raise MalformedAnswer(f"a row names {error}, which has no row") from error


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
    # The many rows stay tuples: the list needs only a sum of most files.
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
        raise MalformedAnswer(
            f"it has {number_of(len(payload), 'byte')}, and sections of {lengths}"
        )
    at, view = _LENGTHS.size, memoryview(payload)
    for length in lengths:
        yield view[at : at + length]
        at += length


def _joined(rows: _Rows, at_rest: bool, largest: int | None) -> ChargeList:
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
            found = number_of(totals[size], "page")
            raise MalformedAnswer(f"its rows have {found} of {size}, not {listed}")
    # The total alone proves nothing: two changes during the read may cancel each other out.
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
    """Return all pages by cgroup, the pages in files by cgroup, and the reserved pages by node."""
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
    """Return the pages by device: reserved for files and private mappings, or unreserved."""
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
    """Return the pages without a reservation: for each node, pages by cgroup.

    In an internal file system two files may have the same inode number, because a System V segment
    has its ID as number. The rows don't say which of the two has the pages: both are left out.
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
        raise MalformedAnswer(f"node {min(unknown)} is charged but is not a file")
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
    """Return the path of ``node``; ``paths`` caches the paths of directories."""
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


def _device(dev_t: int) -> int:
    """Return the ``st_dev`` for the kernel's own ``dev_t``."""
    return os.makedev(dev_t >> _MINOR_BITS, dev_t & ((1 << _MINOR_BITS) - 1))
