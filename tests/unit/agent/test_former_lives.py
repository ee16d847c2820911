"""What a pod filled stays with the quotas that were charged, whatever happens to the agent."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.charge_list import ChargeList, FileKey
from hugetlb_quota.accounting.ranges import PageRange
from hugetlb_quota.agent.ledger import Known, Ledger
from hugetlb_quota.agent.memory import Account, Memory, RememberedFile
from hugetlb_quota.page_size import PageSize

SIZE = PageSize(2 << 20)
BOOT = "6687db17"
DEMAND = Charge({SIZE: 64 * SIZE.bytes})


def pages(count: int) -> Charge:
    return Charge({SIZE: count * SIZE.bytes})


class Files:
    """Files that are there, and who is charged for them, as far as it was written down."""

    def __init__(self, memory: Memory) -> None:
        self.charges: ChargeList[str] = ChargeList.from_rows(
            row for file in memory.files for row in file.rows
        )
        self._changed = set[FileKey]()

    def charge_of(self, uid: str) -> Charge:
        return self.charges.charge_of(uid)

    def move(self, owner: str, to: str) -> None:
        self._changed.update(self.charges.move(owner, to).files)

    def fill(self, number: int, count: int, owner: str) -> None:
        file = FileKey(1, number)
        self.charges.charge(file, SIZE, PageRange(0, count), owner)
        self._changed.add(file)

    def remove(self, number: int) -> None:
        self.charges.drop(FileKey(1, number))
        self._changed.add(FileKey(1, number))

    def changes(self) -> Mapping[FileKey, RememberedFile | None]:
        now = datetime.now(UTC)
        return {
            file: RememberedFile(
                file, str(file.inode), 1, 0, now, (), tuple(self.charges.rows_of(file))
            )
            if file in self.charges
            else None
            for file in self._changed
        }

    def saved(self) -> None:
        self._changed.clear()


class Node:
    """One pod, the agent's books, and what the kernel counts for the pod."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.memory = Memory.open(state, BOOT)
        self.files, self.ledger = Files(self.memory), Ledger(self.memory)
        self.ledger.settle((), {}, {}, self.files)
        self.save()
        self.quotas: tuple[str, ...] = ("ns/a",)
        self.held = 0
        self.own = 0

    def save(self) -> None:
        self.ledger.note_files(self.files)
        if self.ledger.save(self.files.changes()):
            self.files.saved()

    def known(self, *, over: bool = False) -> dict[str, Known]:
        return {"p": Known("ns", "pod", self.quotas, DEMAND, over)}

    def look(self) -> None:
        self.ledger.seen("p", pages(self.held + self.own), empty=False)
        self.ledger.settle({"p"}, self.known(), {}, self.files)
        self.save()

    def move(self, *quotas: str) -> None:
        self.quotas = quotas
        self.ledger.govern(self.known(), self.files)

    def fill(self, number: int, count: int) -> None:
        self.files.fill(number, count, "p")
        self.held += count

    def end(self, *, seen: bool = True) -> None:
        if seen:
            self.ledger.seen("p", pages(self.held), empty=True)
        self.ledger.settle((), self.known(over=True), pages(self.held), self.files)
        self.save()

    def kill(self) -> None:
        """All that was not written down is lost."""
        self.memory.close()
        self.memory = Memory.open(self.state, BOOT)
        self.files, self.ledger = Files(self.memory), Ledger(self.memory)

    def retained(self) -> dict[str, int]:
        return _by_quotas(self.ledger.gone)

    def former(self) -> dict[str, int]:
        return _by_quotas(self.ledger.former)


def _by_quotas(accounts: Iterable[Account]) -> dict[str, int]:
    rows = Counter[str]()
    for each in accounts:
        rows[",".join(each.quotas)] += each.charge.of(SIZE) // SIZE.bytes
    return dict(rows)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    node.memory.close()


def test_a_former_life_is_no_part_of_what_the_dead_left_until_its_pod_is(node: Node) -> None:
    node.fill(1, 2)
    node.look()
    node.move("ns/b")
    node.look()
    assert (node.former(), node.retained()) == ({"ns/a": 2}, {})
    node.fill(2, 3)
    node.end()
    assert (node.former(), node.retained()) == ({}, {"ns/a": 2, "ns/b": 3})
    assert not node.ledger.guessed


def test_anonymous_memory_ends_with_the_pod_and_is_nobodys(node: Node) -> None:
    node.fill(1, 2)
    node.own = 5
    node.look()
    node.move("ns/b")
    node.look()
    assert node.former() == {"ns/a": 2}
    node.end(seen=False)
    assert node.retained() == {"ns/a": 2}
    assert not node.ledger.guessed


def test_no_more_is_told_of_a_former_life_than_the_kernel_counts_for_the_pod(node: Node) -> None:
    """MAP_NORESERVE: the list has more than is charged."""
    node.files.fill(1, 4, "p")
    node.held = 3
    node.look()
    node.move("ns/b")
    node.look()
    assert node.former() == {"ns/a": 3}
    node.end()
    assert node.retained() == {"ns/a": 3}


def test_where_the_total_cannot_be_told_it_is_split_the_same(node: Node) -> None:
    node.fill(1, 2)
    node.look()
    node.move("ns/b")
    node.fill(2, 3)
    node.ledger.seen("p", pages(5), empty=True)
    node.ledger.end_certain((), node.known(over=True), node.files)
    assert (node.former(), node.retained()) == ({}, {"ns/a": 2, "ns/b": 3})


def test_a_former_quota_that_goes_has_its_heir(node: Node) -> None:
    node.fill(1, 2)
    node.look()
    node.move("ns/b")
    node.look()
    node.ledger.reparent({"ns/a": "ns/root"})
    assert node.former() == {"ns/root": 2}
    # Made anew under its name it is another.
    node.move("ns/a")
    node.fill(2, 1)
    node.move("ns/b")
    node.look()
    assert node.former() == {"ns/root": 2, "ns/a": 1}


def test_a_pod_that_goes_back_and_forth_has_as_many_lives_as_it_had_quotas(node: Node) -> None:
    for number in range(1, 9):
        node.fill(number, 1)
        node.look()
        node.move("ns/b" if number % 2 else "ns/a")
    node.look()
    assert len(node.ledger.lives("p")) == 3
    assert node.former() == {"ns/a": 4, "ns/b": 4}


def test_a_former_life_without_files_is_forgotten(node: Node) -> None:
    node.fill(1, 2)
    node.look()
    node.move("ns/b")
    node.files.remove(1)
    node.held = 0
    node.look()
    assert node.ledger.lives("p") == ("p",)


def test_a_write_that_fails_leaves_no_half_of_it(node: Node) -> None:
    node.fill(1, 2)
    node.look()
    (count,) = node.memory._database.execute("PRAGMA page_count").fetchone()
    node.memory._database.execute(f"PRAGMA max_page_count = {count}")
    node.fill(2, 1)
    long = {"p": replace(node.known()["p"], quotas=("ns/b",), name="n" * 100_000)}
    node.ledger.govern(long, node.files)
    node.save()
    assert any("can't be written down" in problem for problem in node.ledger.problems)
    node.kill()
    node.held = 2  # the file that was not written down is told by nobody here
    node.move("ns/b")
    node.look()
    assert node.former() == {"ns/a": 2}


class Lives(RuleBasedStateMachine):
    """A pod that is moved, fills and removes files; an agent that is killed at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.node = Node(Path(self.directory.name))
        self.files: dict[int, tuple[str, int]] = {}
        self.ended = False
        self.node.look()

    def teardown(self) -> None:
        self.node.memory.close()
        self.directory.cleanup()

    def charged(self) -> dict[str, int]:
        rows = Counter[str]()
        for quotas, count in self.files.values():
            rows[quotas] += count
        return dict(rows)

    @precondition(lambda self: not self.ended)
    @rule(count=st.integers(1, 3))
    def fill(self, count: int) -> None:
        number = max(self.files, default=0) + 1
        self.files[number] = (",".join(self.node.quotas), count)
        self.node.fill(number, count)
        self.node.look()

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.files)))
        self.node.held -= self.files.pop(number)[1]
        self.node.files.remove(number)
        if self.ended:
            self.node.end(seen=False)

    @precondition(lambda self: not self.ended)
    @rule(quotas=st.sets(st.sampled_from(("ns/a", "ns/b", "ns/c")), min_size=1))
    def move(self, quotas: set[str]) -> None:
        self.node.move(*sorted(quotas))

    @rule()
    def kill(self) -> None:
        quotas = self.node.quotas
        self.node.kill()
        for file in list(self.node.files.charges.files()):
            if file.file.inode not in self.files:
                self.node.files.remove(file.file.inode)
        self.node.quotas = quotas
        if self.ended:
            self.node.end(seen=False)
        else:
            self.node.look()

    @precondition(lambda self: not self.ended)
    @rule()
    def look(self) -> None:
        self.node.look()
        told, now = self.node.former(), ",".join(self.node.quotas)
        for quotas, count in self.charged().items():
            if quotas != now:
                assert told[quotas] == count

    @precondition(lambda self: not self.ended)
    @rule(seen=st.booleans())
    def end(self, seen: bool) -> None:
        self.ended = True
        self.node.look()
        self.node.end(seen=seen)
        assert self.node.retained() == self.charged()

    @precondition(lambda self: self.ended)
    @rule()
    def what_it_left_stays(self) -> None:
        assert self.node.retained() == self.charged()
        assert not self.node.former()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
