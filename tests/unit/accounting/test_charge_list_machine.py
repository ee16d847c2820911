"""The charge list against an array of pages, over all operations in any order."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hugetlb_quota.accounting import ranges
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.charge_list import (
    Change,
    ChargeList,
    FileCharge,
    FileKey,
    Moved,
    PageSizeDiffers,
)
from hugetlb_quota.accounting.ranges import PageRange, RangeMap
from hugetlb_quota.page_size import PageSize

TWO_MIB, ONE_GIB = PageSize(2 * 1024**2), PageSize(1024**3)
PAGE_SIZES = {
    FileKey(1, 10): TWO_MIB,
    FileKey(1, 11): TWO_MIB,
    FileKey(2, 10): ONE_GIB,
}
PAGES = 16

files = st.sampled_from(list(PAGE_SIZES))
owners = st.sampled_from("abcd")
# Ranges of one page are the common case; empty ones must be harmless.
page_ranges = st.builds(
    lambda first, count: PageRange(first, first + count),
    st.integers(0, PAGES),
    st.one_of(st.just(1), st.integers(0, PAGES)),
)
# Pages touched one by one, in any order, by several.
touches = st.lists(
    st.tuples(st.integers(0, PAGES), owners), min_size=PAGES // 2, max_size=2 * PAGES
)
# A few pages seven times out of eight, or files would be empty most of the time.
few_pages = st.integers(0, PAGES // 4)
counts = st.one_of(*[few_pages] * 7, st.integers(0, 2 * PAGES))


def merged_ranges(owned: dict[int, str]) -> list[tuple[PageRange, str]]:
    """The longest ranges of one owner each, in order."""
    merged: list[tuple[PageRange, str]] = []
    for page, owner in sorted(owned.items()):
        if merged and merged[-1][0].last == page and merged[-1][1] == owner:
            merged[-1] = PageRange(merged[-1][0].first, page + 1), owner
        else:
            merged.append((PageRange(page, page + 1), owner))
    return merged


class ChargeListMachine(RuleBasedStateMachine):
    """The model is a dictionary of the owner of every page of every file."""

    def __init__(self) -> None:
        super().__init__()
        self.charges: ChargeList[str] = ChargeList()
        self.pages: dict[FileKey, dict[int, str]] = {file: {} for file in PAGE_SIZES}

    # Blocks of a few boundaries, so that a small file has many and every seam is crossed; and
    # files with many ranges to begin with, which random single charges seldom reach.
    @initialize(
        block=st.sampled_from([1, 2, 3, 512]),
        touched=st.fixed_dictionaries(dict.fromkeys(PAGE_SIZES, touches)),
    )
    def begin(self, block: int, touched: dict[FileKey, list[tuple[int, str]]]) -> None:
        self.patch = mock.patch.object(ranges, "_BLOCK", block)
        self.patch.start()
        for file, pages in touched.items():
            self.charge_page_by_page(file, pages)

    def teardown(self) -> None:
        self.patch.stop()

    def released(self, file: FileKey, gone: list[int]) -> Change[str]:
        """What the list must answer when the pages ``gone`` are released."""
        counts = Counter(self.pages[file].pop(page) for page in gone)
        size = PAGE_SIZES[file] if gone else None
        return Change(file, size, {owner: -count for owner, count in counts.items()})

    @rule(file=files, pages=page_ranges, owner=owners)
    def charge(self, file: FileKey, pages: PageRange, owner: str) -> None:
        new = [page for page in range(*pages) if page not in self.pages[file]]
        assert self.charges.would_charge(file, pages) == len(new)
        change = self.charges.charge(file, PAGE_SIZES[file], pages, owner)
        self.pages[file].update(dict.fromkeys(new, owner))
        assert change == (
            Change(file, PAGE_SIZES[file], {owner: len(new)}) if new else Change(file, None, {})
        )
        assert (change.charged, change.released, bool(change)) == (len(new), 0, bool(new))

    @rule(file=files, touched=touches)
    def charge_page_by_page(self, file: FileKey, touched: list[tuple[int, str]]) -> None:
        for page, owner in touched:
            self.charge(file, PageRange(page, page + 1), owner)

    @rule(file=files, pages=page_ranges, owner=owners)
    def charge_of_another_page_size(self, file: FileKey, pages: PageRange, owner: str) -> None:
        other = ONE_GIB if PAGE_SIZES[file] == TWO_MIB else TWO_MIB
        if self.pages[file]:
            with pytest.raises(PageSizeDiffers):
                self.charges.charge(file, other, pages, owner)

    @rule(file=files, length=counts.map(lambda count: max(0, PAGES - count)))
    def truncate(self, file: FileKey, length: int) -> None:
        gone = [page for page in self.pages[file] if page >= length]
        change = self.charges.truncate(file, length)
        assert change == self.released(file, gone)
        assert (change.charged, change.released) == (0, len(gone))

    @rule(file=files, pages=page_ranges)
    def punch(self, file: FileKey, pages: PageRange) -> None:
        gone = [page for page in self.pages[file] if page in range(*pages)]
        assert self.charges.punch(file, pages) == self.released(file, gone)

    @rule(file=files)
    def drop(self, file: FileKey) -> None:
        assert self.charges.drop(file) == self.released(file, list(self.pages[file]))

    @rule(file=files, count=counts, first_from=st.none() | owners)
    def release(self, file: FileKey, count: int, first_from: str | None) -> None:
        backwards = sorted(self.pages[file], reverse=True)
        theirs = [page for page in backwards if self.pages[file][page] == first_from]
        others = [page for page in backwards if self.pages[file][page] != first_from]
        change = self.charges.release(file, count, first_from)
        assert change == self.released(file, (theirs + others)[:count])

    def inherited(self, heirs: dict[str, str]) -> Moved[str]:
        """What the list must answer when every owner's pages go to its heir."""
        before, charges = self.pages, self.by_owner()
        self.pages = {
            file: {page: heirs.get(owner, owner) for page, owner in owned.items()}
            for file, owned in before.items()
        }
        moving = {owner for owner, heir in heirs.items() if owner != heir}
        touched = {file for file, owned in before.items() if moving & set(owned.values())}
        return Moved(
            tuple(touched),
            {owner: charge for owner, charge in charges.items() if owner in moving},
        )

    @rule(owner=owners, to=owners)
    def move(self, owner: str, to: str) -> None:
        moved, expected = self.charges.move(owner, to), self.inherited({owner: to})
        assert (set(moved.files), moved.charges) == (set(expected.files), expected.charges)
        assert len(moved.files) == len(set(moved.files))
        assert bool(moved) == bool(moved.files)

    @rule(heirs=st.dictionaries(owners, owners))
    def reparent(self, heirs: dict[str, str]) -> None:
        moved = self.charges.reparent(lambda owner: heirs.get(owner, owner))
        expected = self.inherited(heirs)
        assert (set(moved.files), moved.charges) == (set(expected.files), expected.charges)

    @rule(heirs=st.dictionaries(owners, owners), fatal=owners)
    def reparent_that_fails_changes_nothing(self, heirs: dict[str, str], fatal: str) -> None:
        def heir_of(owner: str) -> str:
            if owner == fatal:
                raise LookupError(owner)
            return heirs.get(owner, owner)

        if fatal in self.by_owner():
            with pytest.raises(LookupError):
                self.charges.reparent(heir_of)

    @rule()
    def restart(self) -> None:
        self.charges = ChargeList.from_rows(list(self.charges.rows()))

    def by_owner(self) -> dict[str, Charge]:
        """The model's totals in bytes."""
        return {
            owner: Charge(
                {size: size.bytes * count for size, count in self.pages_of(owner).items()}
            )
            for owner in {owner for owned in self.pages.values() for owner in owned.values()}
        }

    def pages_of(self, owner: str) -> Counter[PageSize]:
        return Counter(
            PAGE_SIZES[file]
            for file, owned in self.pages.items()
            for each in owned.values()
            if each == owner
        )

    @invariant()
    def every_page_has_its_owner_in_merged_ranges(self) -> None:
        for file, owned in self.pages.items():
            merged = merged_ranges(owned)
            assert list(self.charges.held(file)) == merged
            assert [(row.file, row.page_size) for row in self.charges.rows_of(file)] == [
                (file, PAGE_SIZES[file])
            ] * len(merged)
            assert (file in self.charges) == bool(owned)

    @invariant()
    def totals_are_the_sums(self) -> None:
        assert self.charges.by_owner() == self.by_owner()
        for owner in "abcd":
            assert self.charges.pages_of(owner) == self.pages_of(owner)
            theirs = {
                FileCharge(file, PAGE_SIZES[file], list(owned.values()).count(owner))
                for file, owned in self.pages.items()
                if owner in owned.values()
            }
            assert set(self.charges.files_of(owner)) == theirs
            for file, owned in self.pages.items():
                held = list(owned.values()).count(owner)
                assert self.charges.pages_in(file, owner) == held

    @invariant()
    def largest_are_the_first_by_bytes(self) -> None:
        by_bytes = sorted(
            (
                FileCharge(file, PAGE_SIZES[file], len(owned))
                for file, owned in self.pages.items()
                if owned
            ),
            key=lambda each: (-each.bytes, each.file),
        )
        for count in range(4):
            assert self.charges.largest(count) == by_bytes[:count]
        assert len(self.charges) == len(by_bytes)

    @invariant()
    def blocks_are_sound_and_one_range_is_no_map(self) -> None:
        for kept in self.charges._files.values():
            if not isinstance(kept, RangeMap):
                continue
            assert len(list(kept)) > 1
            assert kept._heads == [starts[0] for starts in kept._starts]
            assert all(0 < len(starts) <= 2 * ranges._BLOCK for starts in kept._starts)
            starts = [start for block in kept._starts for start in block]
            holders = [holder for block in kept._holders for holder in block]
            assert starts == sorted(set(starts))
            assert all(one is not next_ for one, next_ in pairwise(holders))
            assert list(map(len, kept._starts)) == list(map(len, kept._holders))
            assert (starts[0], holders[0], holders[-1]) == (-1, None, None)
            assert kept.pages == sum(last - first for first, last, _ in kept)
            assert list(reversed(kept)) == list(kept)[::-1]


TestChargeList = ChargeListMachine.TestCase
TestChargeList.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
