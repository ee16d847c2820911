"""Decodes the rows of the reader, and refuses bytes that are not a charge list."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.node.charge_list import ChargeList
from hugetlb_quota.node.charge_rows import MalformedAnswer, decode
from hugetlb_quota.page_size import PageSize

SMALL, LARGE = PageSize(2 << 20), PageSize(1 << 30)
POD = "kubepods-pod1_2.slice"


class Row(NamedTuple):
    kind: int
    body: bytes
    name: bytes = b""


def size(index: int, page: int, used: int, listed: int) -> Row:
    return Row(1, struct.pack("=HHIQqq", 1, 32, index, page, used, listed))


def superblock(index: int, device: int, of: int, internal: int = 0) -> Row:
    return Row(2, struct.pack("=HHIIIII", 2, 24, index, device, of, internal, 0))


def node(
    number: int, inode: int, parent: int, name: bytes, *, at: int = 0, directory: int = 0
) -> Row:
    body = struct.pack(
        "=HHIQQQqIHH", 3, 56, at, number, inode, parent, 4 << 20, 1, directory, len(name)
    )
    return Row(3, body, name)


def region(number: int, start: int, end: int, cgroup: int) -> Row:
    return Row(4, struct.pack("=HHIQqqQ", 4, 40, 0, number, start, end, cgroup))


def private(number: int, start: int, pages: int, cgroup: int) -> Row:
    return Row(5, struct.pack("=HHIQqqQ", 5, 40, 0, number, start, pages, cgroup))


def folio(of: int, inode: int, cgroup: int, device: int) -> Row:
    return Row(6, struct.pack("=HHIQQII", 6, 32, of, inode, cgroup, device, 0))


def cgroup(id_: int, parent: int, name: bytes) -> Row:
    return Row(7, struct.pack("=HHIQQ", 7, 32, len(name), id_, parent), name)


def counter(id_: int, reserved: int, of: int = 0) -> Row:
    return Row(8, struct.pack("=HHIQqq", 8, 32, of, id_, reserved, 0))


CGROUPS = [
    cgroup(1, 0, b""),
    cgroup(10, 1, b"kubepods.slice"),
    cgroup(20, 10, POD.encode()),
    cgroup(30, 20, b"deep"),
    cgroup(40, 1, b"host"),
]
DIRECTORIES = [
    superblock(0, 21 << 20 | 7, 0),
    node(1, 100, 0, b"/", directory=1),
    node(2, 101, 100, b"a", directory=1),
    node(3, 102, 101, b"b \xff", directory=1),
]


def answer(*rows: Row) -> bytes:
    """Join the rows as the loader does: each kind in its section, then the names."""
    sections = [b""] * 9
    for row in rows:
        at = struct.pack("=Q", len(sections[8])) if row.kind in (3, 7) else b""
        sections[row.kind - 1] += row.body + at
        sections[8] += row.name
    return struct.pack("=9Q", *map(len, sections)) + b"".join(sections)


def decoded(*rows: Row, at_rest: bool = True, largest: int | None = None) -> ChargeList:
    return decode(answer(*rows), at_rest=at_rest, largest=largest)


def whole() -> list[Row]:
    return [
        size(0, SMALL.bytes, 13, 12),
        size(1, LARGE.bytes, 0, 0),
        *DIRECTORIES,
        *CGROUPS,
        node(4, 103, 102, b"file"),
        region(4, 0, 4, 30),
        region(4, 6, 7, 40),
        private(4, 2, 5, 20),
        folio(0, 103, 20, 21 << 20 | 7),
        folio(0, 0, 20, 0),
        counter(20, 11),
    ]


def test_decodes_every_row() -> None:
    charges = decoded(*whole())
    [file] = charges.files
    assert file.path == "/a/b \udcff/file"
    assert file.superblock.device == os.makedev(21, 7)
    assert (file.superblock.page_size, file.inode, file.linked) == (SMALL, 103, True)
    assert [(r.start, r.end, r.cgroup.path) for r in file.regions] == [
        (0, 4, f"/kubepods.slice/{POD}/deep"),
        (6, 7, "/host"),
    ]
    assert [(m.start, m.pages, m.cgroup.id) for m in file.private] == [(2, 5, 20)]
    assert [(owner.id, pages) for owner, pages in file.unreserved] == [(20, 1)]
    assert {(u.file, u.pages) for u in charges.unreserved} == {
        ((os.makedev(21, 7), 103), 1),
        (None, 1),
    }
    assert charges.unlisted == {SMALL: 1, LARGE: 0}
    assert charges.cgroups[20].reserved == {SMALL: 11}
    assert charges.cgroups[30].lineage == (1, 10, 20, 30)


def test_adds_up_charges_by_cgroup_and_by_pod() -> None:
    charges = decoded(*whole())
    assert charges.own == {30: {SMALL: 4}, 40: {SMALL: 1}, 20: {SMALL: 7}}
    # Without five pages of a private mapping and one unreserved page of private memory.
    assert charges.in_files == {30: {SMALL: 4}, 40: {SMALL: 1}, 20: {SMALL: 1}}
    assert charges.below(1) == {SMALL: 12}
    assert charges.below(10) == {SMALL: 11}
    assert charges.below(99) == {}
    assert charges.pods(frozenset({1})) == {"1-2": {SMALL: 11}, None: {SMALL: 1}}
    # The tree has kubelet's names, but is not where kubelet's tree is.
    assert charges.pods(frozenset({40})) == {None: {SMALL: 12}}
    assert charges.held == {os.makedev(21, 7): 11}


def test_a_list_is_at_rest_if_every_counter_agrees() -> None:
    assert decoded(*whole()).at_rest
    assert not decoded(*whole(), at_rest=False).at_rest
    # The total is right, but one cgroup's counter is not.
    assert not decoded(*whole()[:-1], counter(20, 10)).at_rest


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([size(0, 3 << 20, 0, 0)], "not a huge page size"),
        ([size(0, SMALL.bytes, 5, 5)], "0 pages of 2Mi, not 5"),
        ([size(0, SMALL.bytes, 0, 0), superblock(0, 1, 3), node(1, 2, 0, b"x")], "names 3"),
        ([*DIRECTORIES, region(4, 0, 1, 1)], "names 0"),
        ([size(0, SMALL.bytes, 13, 13), *whole()[1:], region(9, 0, 1, 20)], "node 9 is charged"),
        ([*whole(), region(4, 8, 9, 77)], "names 77"),
        ([*whole(), node(5, 104, 999, b"orphan")], "names \\(0, 999\\)"),
        ([region(4, 3, 3, 1)], r"\[3, 3\)"),
        ([region(4, -1, 3, 1)], r"\[-1, 3\)"),
        ([private(4, 0, 0, 1)], "0 pages from page 0"),
    ],
)
def test_says_which_row_is_wrong(rows: list[Row], why: str) -> None:
    with pytest.raises(MalformedAnswer, match=why):
        decoded(*rows)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda whole: whole[:-1], "bytes, and sections of"),
        (lambda whole: whole + b"x", "bytes, and sections of"),
        (lambda whole: b"", "72 bytes"),
        (lambda _: struct.pack("=9Q", 31, *[0] * 8) + bytes(31), "multiple of 32"),
        (lambda _: struct.pack("=9Q", 1 << 63, *[1 << 61] * 8), "bytes, and sections of"),
    ],
)
def test_says_how_the_sections_are_broken(change: Callable[[bytes], bytes], why: str) -> None:
    with pytest.raises(MalformedAnswer, match=why):
        decode(change(answer(*whole())), at_rest=True)


def test_refuses_a_name_beyond_the_names() -> None:
    row = cgroup(1, 0, b"abc")
    longer = row._replace(body=row.body[:4] + struct.pack("=I", 4) + row.body[8:])
    with pytest.raises(MalformedAnswer, match="ends at 4 of 3 bytes"):
        decoded(longer)


def test_returns_the_largest_files_first() -> None:
    rows = [*whole(), node(5, 104, 100, b"small"), node(6, 105, 100, b"large")]
    rows += [region(5, 0, 1, 40), region(6, 0, 9, 40)]
    rows[0] = size(0, SMALL.bytes, 22, 22)
    assert [f.path for f in decoded(*rows).files] == ["/large", "/a/b \udcff/file", "/small"]
    two = decoded(*rows, largest=2)
    assert [f.path for f in two.files] == ["/large", "/a/b \udcff/file"]
    assert two.own == decoded(*rows).own
    # Unreserved pages count: the file with ten is larger than the file with nine reserved pages.
    rows += [node(7, 106, 100, b"unreserved"), *[folio(0, 106, 40, 21 << 20 | 7)] * 10]
    rows[0] = size(0, SMALL.bytes, 32, 32)
    assert [f.path for f in decoded(*rows, largest=1).files] == ["/unreserved"]
    # If two files have one inode number, the pages belong to neither.
    rows += [node(8, 106, 100, b"segment")]
    assert [f.path for f in decoded(*rows, largest=1).files] == ["/large"]


def test_refuses_circles() -> None:
    with pytest.raises(MalformedAnswer, match="circle"):
        decoded(cgroup(1, 2, b"a"), cgroup(2, 1, b"b"))
    with pytest.raises(MalformedAnswer, match="circle"):
        decoded(
            size(0, SMALL.bytes, 0, 0),
            superblock(0, 1, 0),
            node(1, 2, 3, b"a", directory=1),
            node(2, 3, 2, b"b", directory=1),
            node(3, 4, 2, b"file"),
        )


@given(st.binary(max_size=2000), st.booleans())
def test_random_bytes_are_refused_or_empty(payload: bytes, framed: bool) -> None:
    if framed:
        parts = [len(payload) // 9] * 8
        payload = struct.pack("=9Q", *parts, len(payload) - sum(parts)) + payload
    try:
        charges = decode(payload, at_rest=True)
    except MalformedAnswer:
        return
    assert charges.own == {}


@given(st.data())
def test_a_list_with_changed_bytes_is_refused_or_adds_up(data: st.DataObject) -> None:
    payload = bytearray(answer(*whole()))
    for _ in range(data.draw(st.integers(1, 8))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        charges = decode(bytes(payload), at_rest=True)
    except MalformedAnswer:
        return
    for amounts in charges.own.values():
        for each, pages in amounts.items():
            assert pages > 0
            assert each in charges.unlisted


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.integers(1, 50), st.sampled_from([20, 30, 40])),
        max_size=30,
    )
)
def test_decodes_any_regions(pieces: list[tuple[int, int, int]]) -> None:
    at, rows, expected = 0, [], []
    for gap, length, owner in pieces:
        start = at + gap
        at = start + length
        rows.append(region(4, start, at, owner))
        expected.append((start, at, owner))
    total = sum(length for _, length, _ in pieces)
    charges = decoded(
        size(0, SMALL.bytes, total, total), *DIRECTORIES, *CGROUPS, node(4, 9, 100, b"f"), *rows
    )
    assert [(r.start, r.end, r.cgroup.id) for r in charges.files[0].regions] == expected
    assert charges.below(1).get(SMALL, 0) == total
