"""Whatever was not seen: once looked at, the book says of files and pods what the kernel does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.charge_list import FileKey
from hugetlb_quota.accounting.ranges import PageRange
from hugetlb_quota.agent.file_book import SYSTEM, FileBook
from hugetlb_quota.node.hugetlbfs import FileState, Superblock
from hugetlb_quota.page_size import PageSize

SIZE = PageSize(2 << 20)
MOUNT = Superblock(1, 1, SIZE, None, 0, "/huge", Path("/huge"))
PAGES = 6
PODS = ("a", "b", "c")
names = st.sampled_from(("x", "y", "z"))
pods = st.sampled_from(PODS)
ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)).map(
    lambda each: PageRange(each[0], min(PAGES, each[0] + each[1]))
)
seen = st.booleans()


def pages(count: int) -> Charge:
    return Charge({SIZE: count * SIZE.bytes}).without_zeros()


class Kernel:
    """What the kernel knows: which pod each page of each file is charged to."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.files: dict[int, dict[int, str]] = {}

    def file(self, name: str) -> int:
        if name not in self.names:
            self.names[name] = len(self.files) + 2
            self.files[self.names[name]] = {}
        return self.names[name]

    def state(self, name: str) -> FileState:
        inode = self.names[name]
        # Nothing is touched: neither length nor pages tell of what is charged.
        return FileState(MOUNT.device, inode, name, 0, 0, 1, 0)

    def runs(self, inode: int, end: int) -> list[PageRange]:
        return [PageRange(p, p + 1) for p in sorted(self.files[inode]) if p < end]

    def charge(self, pod: str) -> Charge:
        held = (owner for charged in self.files.values() for owner in charged.values())
        return pages(sum(owner == pod for owner in held))


class Node(RuleBasedStateMachine):
    """Pods reserve pages; the book is told of some of it."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel()
        self.book = FileBook()
        self.book.follow(MOUNT)
        self.gone: set[str] = set()
        self.unseen = False

    def key(self, inode: int) -> FileKey:
        return FileKey(MOUNT.device, inode)

    @rule(pod=pods, name=names, reserved=ranges, opened=seen, mapped=seen)
    def reserve(self, pod: str, name: str, reserved: PageRange, opened: bool, mapped: bool) -> None:
        if pod in self.gone:
            return
        inode = self.kernel.file(name)
        if opened:
            self.book.opened(self.key(inode), pod)
        if mapped:
            first, last = (page * SIZE.bytes for page in reserved)
            self.book.mapped(self.key(inode), first, last, pod)
        for page in range(*reserved):
            self.kernel.files[inode].setdefault(page, pod)
        if opened:
            self.book.closed(self.key(inode))
        else:
            self.unseen = True
        self.found(name)

    @rule(name=names)
    def found(self, name: str) -> None:
        if name in self.kernel.names:
            self.book.found(MOUNT, self.kernel.state(name))
            self.book.doubt(self.key(self.kernel.names[name]))

    @rule(name=names, hole=ranges, told=seen)
    def punch(self, name: str, hole: PageRange, told: bool) -> None:
        inode = self.kernel.file(name)
        for page in range(*hole):
            self.kernel.files[inode].pop(page, None)
        if told:
            self.found(name)

    @rule(name=names, told=seen)
    def unlink(self, name: str, told: bool) -> None:
        if (inode := self.kernel.names.pop(name, None)) is not None:
            self.kernel.files[inode] = {}
            if told:
                self.book.vanished(MOUNT, name)

    @rule(one=names, other=names)
    def rename(self, one: str, other: str) -> None:
        if one in self.kernel.names and one != other:
            if (displaced := self.kernel.names.get(other)) is not None:
                self.kernel.files[displaced] = {}
            self.kernel.names[other] = self.kernel.names.pop(one)
            self.found(other)

    @rule(pod=pods)
    def end(self, pod: str) -> None:
        self.gone.add(pod)

    @precondition(lambda self: self.gone == set(PODS))
    @rule()
    def begin_anew(self) -> None:
        # Others of the same names would be charged for what these left.
        for charged in self.kernel.files.values():
            charged.clear()
        self.rest()
        self.gone.clear()

    @rule()
    def restart(self) -> None:
        """Another agent, that remembers what this one wrote."""
        remembered = [file for file in self.book.changes().values() if file is not None]
        self.book = FileBook(remembered)
        self.book.follow(MOUNT)
        for name in self.kernel.names:
            self.book.found(MOUNT, self.kernel.state(name))
        self.book.forget_remembered()

    @rule()
    def verify(self) -> None:
        while (file := self.book.next_unverified()) is not None:
            end = self.book.end_of(file)
            self.book.verified(file, self.kernel.runs(file.inode, end))

    @rule()
    def look(self) -> None:
        live = {pod: self.kernel.charge(pod) for pod in PODS if pod not in self.gone}
        left = {pod: self.kernel.charge(pod) for pod in self.gone}
        self.book.reconcile({pod: each for pod, each in left.items() if each}, live)

    def rest(self) -> None:
        """Look at everything as often as it takes."""
        for name in (*self.kernel.names, *self.book.paths_on(MOUNT)):
            if name in self.kernel.names:
                self.found(name)
            else:
                self.book.vanished(MOUNT, name)
        for _ in range(5):
            self.verify()
            self.look()

    @precondition(lambda self: self.gone == set(PODS))
    @rule()
    def all_is_settled_when_all_are_gone(self) -> None:
        self.rest()
        for inode, charged in self.kernel.files.items():
            listed = self.book.file(self.key(inode))
            assert charged == {} or listed is not None
        shares: dict[str, int] = {}
        for share in self.book.largest():
            shares[share.path] = shares.get(share.path, 0) + share.charged // SIZE.bytes
        assert shares == {
            name: len(charged)
            for name, inode in self.kernel.names.items()
            if (charged := self.kernel.files[inode])
        }
        assert {pod: self.book.charge_of(pod).without_zeros() for pod in PODS} == {
            pod: self.kernel.charge(pod) for pod in PODS
        }
        assert not self.book.orphaned
        assert not self.book.charge_of(SYSTEM)


Node.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestNode = Node.TestCase


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def book() -> FileBook:
    book = FileBook()
    book.follow(MOUNT)
    return book


def verify(book: FileBook, kernel: Kernel) -> None:
    while (file := book.next_unverified()) is not None:
        book.verified(file, kernel.runs(file.inode, max(100, book.end_of(file))))


def reserve(book: FileBook, kernel: Kernel, pod: str, name: str, *charged: int) -> FileKey:
    """Pages of a process that is gone before anybody has seen what it maps."""
    inode = kernel.file(name)
    file = FileKey(MOUNT.device, inode)
    book.opened(file, pod)
    for page in charged:
        kernel.files[inode].setdefault(page, pod)
    book.found(MOUNT, kernel.state(name))
    book.closed(file)
    return file


def test_the_only_one_who_opened_a_file_is_charged_at_once(book: FileBook, kernel: Kernel) -> None:
    reserve(book, kernel, "a", "x", 1, 2)
    verify(book, kernel)
    assert book.charge_of("a") == pages(2)


def test_who_opens_it_after_that_is_charged_for_nothing_of_it(
    book: FileBook, kernel: Kernel
) -> None:
    reserve(book, kernel, "a", "x", 1, 2)
    verify(book, kernel)
    reserve(book, kernel, "b", "x", 2, 3, 4)
    verify(book, kernel)
    assert (book.charge_of("a"), book.charge_of("b")) == (pages(2), pages(2))


def test_of_two_who_opened_it_the_one_is_charged_that_left_as_much(
    book: FileBook, kernel: Kernel
) -> None:
    file = FileKey(MOUNT.device, kernel.file("x"))
    book.opened(file, "b")
    reserve(book, kernel, "a", "x", 1, 2)
    verify(book, kernel)
    assert book.orphaned == pages(2)
    book.reconcile({"a": pages(2)}, {"b": pages(0)})
    assert (book.charge_of("a"), book.orphaned) == (pages(2), pages(0))


def test_nobody_else_is_charged_while_one_who_opened_it_is_there(
    book: FileBook, kernel: Kernel
) -> None:
    file = FileKey(MOUNT.device, kernel.file("x"))
    book.opened(file, "c")
    reserve(book, kernel, "a", "x", 1)
    verify(book, kernel)
    book.reconcile({"b": pages(1)}, {"a": pages(1), "c": pages(0)})
    assert not book.charge_of("b")
    book.reconcile({"a": pages(1), "b": pages(1)}, {"c": pages(0)})
    assert book.charge_of("a") == pages(1)


def test_what_a_gone_pod_cannot_have_left_is_anothers(book: FileBook, kernel: Kernel) -> None:
    inode = kernel.file("x")
    book.found(MOUNT, kernel.state("x"))
    book.mapped(FileKey(MOUNT.device, inode), 0, 3 * SIZE.bytes, "a")
    kernel.files[inode] = {0: "b", 1: "b", 2: "a"}
    verify(book, kernel)
    assert book.charge_of("a") == pages(3)
    left = {"a": pages(1), "b": pages(2)}
    for _ in range(2):
        book.reconcile(left, {})
        verify(book, kernel)
    book.reconcile(left, {})
    assert (book.charge_of("a"), book.charge_of("b")) == (pages(1), pages(2))


def test_a_file_with_two_names_is_there_until_both_are_gone(book: FileBook, kernel: Kernel) -> None:
    inode = kernel.file("x")
    for name in ("x", "y"):
        book.found(MOUNT, kernel.state("x")._replace(path=name, links=2))
    book.mapped(FileKey(MOUNT.device, inode), 0, SIZE.bytes, "a")
    assert book.vanished(MOUNT, "y")
    book.found(MOUNT, kernel.state("x"))
    assert book.charge_of("a") == pages(1)
    assert [share.path for share in book.largest()] == ["x"]
    assert not book.vanished(MOUNT, "x")
    assert not book.charge_of("a")


def test_a_file_system_that_was_moved_takes_its_files_along(book: FileBook, kernel: Kernel) -> None:
    file = reserve(book, kernel, "a", "x", 1)
    verify(book, kernel)
    moved = replace(MOUNT, point="/again", path=Path("/again"))
    book.follow(moved)
    known = book.file(file)
    assert known is not None
    assert (known.superblock, book.charge_of("a")) == (moved, pages(1))
    assert book.next_unverified() == file
    book.forget(moved)
    assert (book.superblocks, book.count) == ((), 0)


def test_a_name_may_outlive_its_file_in_the_book(book: FileBook, kernel: Kernel) -> None:
    file = FileKey(MOUNT.device, kernel.file("x"))
    for name in ("x", "y", "z"):  # y is z by now; that it was is told of at the next look
        book.found(MOUNT, kernel.state("x")._replace(path=name, links=2))
    book.vanished(MOUNT, "x")
    book.found(MOUNT, kernel.state("x")._replace(path="z", links=1))
    book.vanished(MOUNT, "z")
    assert book.file(file) is None
    assert not book.vanished(MOUNT, "y")
    assert not book.paths_on(MOUNT)


def test_a_file_may_take_the_name_of_one_that_is_not_in_the_book(
    book: FileBook, kernel: Kernel
) -> None:
    file = FileKey(MOUNT.device, kernel.file("x"))
    for name in ("x", "y"):
        book.found(MOUNT, kernel.state("x")._replace(path=name, links=2))
    book.vanished(MOUNT, "y")
    book.lost_count()  # x is found again only by the look that follows
    assert book.file(file) is None
    kernel.file("y")
    book.found(MOUNT, kernel.state("y")._replace(path="x"))
    assert book.paths_on(MOUNT) == {"x"}


def test_a_file_that_took_anothers_name_is_not_that_one(book: FileBook, kernel: Kernel) -> None:
    for name, pod in (("x", "a"), ("y", "b")):
        reserve(book, kernel, pod, name, 1)
    verify(book, kernel)
    kernel.names["y"] = kernel.names.pop("x")
    book.found(MOUNT, kernel.state("y"))
    assert (book.charge_of("a"), book.charge_of("b")) == (pages(1), pages(0))


def test_it_is_known_once_which_pages_beyond_the_end_are_charged(
    book: FileBook, kernel: Kernel
) -> None:
    inode = kernel.file("x")
    book.found(MOUNT, kernel.state("x"))
    kernel.files[inode] = {400: "a"}
    for _ in range(2):
        verify(book, kernel)
        book.reconcile({"a": pages(1)}, {})
    verify(book, kernel)
    assert book.charge_of("a") == pages(1)
    book.reconcile({"a": pages(2)}, {})
    assert not book.is_verified  # sought for the other one
    assert book.unlisted == {}
    verify(book, kernel)
    book.reconcile({"a": pages(2)}, {})
    assert book.is_verified
    assert book.unlisted == {"a": pages(1)}  # it is in no file


def test_a_file_of_holes_takes_no_longer_to_ask_about_than_the_largest_node(
    book: FileBook, kernel: Kernel
) -> None:
    file = FileKey(MOUNT.device, kernel.file("x"))
    book.found(MOUNT, kernel.state("x")._replace(size=1 << 60))
    far = (1 << 60) - SIZE.bytes
    for at in (0, far):
        book.mapped(file, at, at + SIZE.bytes, "a")
    asked = book.end_of(file)
    assert asked <= 1 << 20
    assert book.next_unverified() == file
    book.verified(file, [])  # the first was given back; of the last it is not known
    assert book.charge_of("a") == pages(1)


def test_an_answer_from_before_a_page_was_charged_is_none(book: FileBook, kernel: Kernel) -> None:
    file = FileKey(MOUNT.device, kernel.file("x"))
    for pod in ("a", "b"):
        book.opened(file, pod)
    book.found(MOUNT, kernel.state("x"))
    assert book.next_unverified() == file
    before = kernel.runs(file.inode, book.end_of(file))
    kernel.files[file.inode] = {0: "a"}
    book.mapped(file, 0, SIZE.bytes, "a")
    book.verified(file, before)
    assert book.charge_of("a") == pages(1)
    verify(book, kernel)
    assert book.charge_of("a") == pages(1)


def test_who_opened_it_since_it_was_asked_about_may_be_charged(
    book: FileBook, kernel: Kernel
) -> None:
    file = reserve(book, kernel, "a", "x", 1)
    verify(book, kernel)
    book.doubt(file)
    assert book.next_unverified() == file
    before = kernel.runs(file.inode, PAGES)
    reserve(book, kernel, "b", "x", 2)
    book.verified(file, before)
    verify(book, kernel)
    assert (book.charge_of("b"), book.orphaned) == (pages(1), pages(0))


def test_one_that_is_gone_and_left_nothing_is_charged_for_nothing(
    book: FileBook, kernel: Kernel
) -> None:
    file = FileKey(MOUNT.device, kernel.file("x"))
    book.opened(file, "a")
    book.found(MOUNT, kernel.state("x"))
    book.reconcile({}, {"b": pages(1)})
    kernel.files[file.inode] = {0: "b"}
    verify(book, kernel)
    assert not book.charge_of("a")
    assert book.orphaned == pages(1)


def test_who_came_and_went_and_left_nothing_is_not_remembered_for_ever(
    book: FileBook, kernel: Kernel
) -> None:
    file = FileKey(MOUNT.device, kernel.file("x"))
    book.found(MOUNT, kernel.state("x"))
    book.opened(file, "server")  # and keeps it open
    for client in map(str, range(100)):
        book.opened(file, client)
        book.closed(file)
        book.reconcile({"left": pages(1)}, {"server": pages(0), client: pages(0)})
    book.opened(file, "left")
    book.closed(file)
    book.reconcile({"left": pages(1)}, {"server": pages(0)})
    verify(book, kernel)
    known = book.file(file)
    assert known is not None
    assert known.candidates == ["server", "left"]


def test_what_no_pod_can_have_made_is_the_systems_until_one_left_more(
    book: FileBook, kernel: Kernel
) -> None:
    inode = kernel.file("x")
    kernel.files[inode] = {0: "a", 1: "a"}
    book.found(MOUNT, kernel.state("x")._replace(size=2 * SIZE.bytes))
    verify(book, kernel)
    book.reconcile({}, {"a": pages(2)})
    assert (book.charge_of(SYSTEM), book.orphaned) == (pages(2), pages(0))
    for _ in range(2):
        book.reconcile({"a": pages(2)}, {})
        verify(book, kernel)
    book.reconcile({"a": pages(2)}, {})
    assert (book.charge_of(SYSTEM), book.charge_of("a")) == (pages(0), pages(2))
