"""The pages of one file and who holds each: sorted, disjoint ranges, merged where they meet.

The counterpart of the kernel's ``resv_map`` with its list of ``file_region`` (mm/hugetlb.c).
Kept as a step function, in which a hole is a holder like any other: each boundary says who
holds the pages from there to the next boundary. So charging, truncating, punching and moving
are one operation, :meth:`RangeMap.rewrite`, with different functions of the old holder.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final, Generic, NamedTuple, TypeVar

Holder = TypeVar("Holder")

#: No page index lies beyond: a file offset is a signed 64-bit number (``loff_t``) and the
#: smallest huge page has 64 KiB.
LAST_PAGE: Final = 2**63 // 65536

#: Boundaries in a block that was just divided. An insert moves the boundaries of one block: a
#: change in the midst of a million takes 4 us, and in one flat list, which moves megabytes, 240.
_BLOCK: Final = 256

#: Where the hole begins that lies before page 0, so that every page has a boundary before it.
_BEFORE: Final = -1


class PageRange(NamedTuple):
    """Pages ``first`` to ``last`` of a file, ``last`` not included; indices, not bytes."""

    first: int
    last: int

    @property
    def pages(self) -> int:
        """How many they are."""
        return self.last - self.first


class MalformedRange(ValueError):
    """Pages that no file can have."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__(
            f"[{first}, {last}) is no range of pages: it must begin at page 0 or later, end "
            f"where it begins or later, and end at page {LAST_PAGE} at the latest."
        )


class RangeMap(Generic[Holder]):
    """Who holds which pages of one file; holders are told apart by identity.

    ``None`` is nobody. Two ranges that meet have different holders, and none is empty.
    """

    # Blocks of boundaries: _starts[b][k] is the page from which on _holders[b][k] holds,
    # _heads[b] is _starts[b][0]. The first boundary of all is _BEFORE, and it and the last
    # one begin a hole.
    __slots__ = ("_heads", "_holders", "_starts", "pages")

    pages: int
    """How many pages somebody holds."""

    def __init__(self, ranges: Iterable[tuple[int, int, Holder]] = ()) -> None:
        """From ``(first, last, holder)``, in order and without overlap or empty ones."""
        starts = array("q", (_BEFORE,))
        holders: list[Holder | None] = [None]
        end = 0
        self.pages = 0
        for first, last, holder in ranges:
            if first > end and holders[-1] is not None:
                starts.append(end)
                holders.append(None)
            if holders[-1] is not holder:
                starts.append(first)
                holders.append(holder)
            self.pages += last - first
            end = last
        if holders[-1] is not None:
            starts.append(end)
            holders.append(None)
        self._heads: list[int] = []
        self._starts: list[array[int]] = []
        self._holders: list[list[Holder | None]] = []
        self._place(0, 0, starts, holders)

    def __iter__(self) -> Iterator[tuple[int, int, Holder]]:
        """Each range as ``(first, last, holder)``, in order; holes are left out."""
        first = _BEFORE
        holder: Holder | None = None
        for starts, holders in zip(self._starts, self._holders, strict=True):
            for start, following in zip(starts, holders, strict=True):
                if holder is not None:
                    yield first, start, holder
                first, holder = start, following

    def __reversed__(self) -> Iterator[tuple[int, int, Holder]]:
        """The same from the end of the file to its beginning."""
        last = 0  # The last boundary begins a hole, so this is never read.
        for starts, holders in zip(reversed(self._starts), reversed(self._holders), strict=True):
            for start, holder in zip(reversed(starts), reversed(holders), strict=True):
                if holder is not None:
                    yield start, last, holder
                last = start

    @property
    def first_holder(self) -> Holder:
        """Who holds the first page that is held; there must be one."""
        front = self._holders[0]
        holder = front[1] if len(front) > 1 else self._holders[1][0]
        assert holder is not None, "a hole follows the hole before page 0"
        return holder

    @property
    def sole(self) -> tuple[int, int, Holder] | None:
        """The range, when there is no other; None for none and for several."""
        if len(self._heads) > 3 or sum(map(len, self._starts)) != 3:
            return None
        return next(iter(self))

    def free(self, first: int, last: int) -> int:
        """How many pages of [``first``, ``last``) nobody holds."""
        free = 0
        block = bisect_right(self._heads, first) - 1
        index = bisect_right(self._starts[block], first) - 1
        start, holder = first, self._holders[block][index]
        for number in range(block, len(self._heads)):
            starts, holders = self._starts[number], self._holders[number]
            for position in range(index + 1, len(starts)):
                following = starts[position]
                if following >= last:
                    return free + (last - start if holder is None else 0)
                if holder is None:
                    free += following - start
                start, holder = following, holders[position]
            index = -1
        return free + last - start

    def tail(self, count: int, holder: Holder | None = None) -> int:
        """The page from which on ``count`` pages are held by ``holder``, or by anybody.

        0 when fewer are held.
        """
        for first, last, each in reversed(self):
            if holder is None or each is holder:
                if last - first >= count:
                    return last - count
                count -= last - first
        return 0

    def rewrite(
        self, first: int, last: int, heir: Callable[[Holder | None], Holder | None]
    ) -> dict[Holder | None, int]:
        """Give the pages [``first``, ``last``) from each holder to ``heir(holder)``.

        Returns how many pages each holder gave away, nobody (None) among them. ``first``
        must lie before ``last``. Nothing is changed when ``heir`` raises.
        """
        # As region_chg before region_add, first all that can fail: find the boundaries in
        # [low, high), and make those that will stand in their place.
        block = bisect_right(self._heads, first) - 1
        beyond = bisect_right(self._heads, last, block)
        starts, holders = self._joined(block, beyond)
        low = bisect_right(starts, first) - 1
        high = bisect_left(starts, last, low)
        inside = starts[low] < first
        # No page is at _BEFORE, so there is a block before one that begins with ``first``.
        before = (
            holders[low if inside else low - 1] if low or inside else self._holders[block - 1][-1]
        )
        given: dict[Holder | None, int] = {}
        gained = 0
        new_starts = array("q")
        new_holders: list[Holder | None] = []
        start = first
        for index in range(low, high):
            stop = starts[index + 1] if index + 1 < high else last
            holder = holders[index]
            successor = heir(holder)
            if successor is not holder:
                given[holder] = given.get(holder, 0) + stop - start
                gained += ((successor is not None) - (holder is not None)) * (stop - start)
            if successor is not before:
                new_starts.append(start)
                new_holders.append(successor)
                before = successor
            start = stop
        if not given:
            return given
        after = holders[high - 1]
        if high < len(starts) and starts[high] == last:
            after = holders[high]
            high += 1
        if after is not before:
            new_starts.append(last)
            new_holders.append(after)
        low += inside

        starts[low:high] = new_starts
        holders[low:high] = new_holders
        self.pages += gained
        if not low or beyond - block > 1 or len(starts) > 2 * _BLOCK:
            self._place(block, beyond, starts, holders)
        return given

    def _joined(self, block: int, beyond: int) -> tuple[array[int], list[Holder | None]]:
        """The block, if it is one, or a copy of several in one."""
        if beyond - block == 1:
            return self._starts[block], self._holders[block]
        starts = array("q")
        for each in self._starts[block:beyond]:
            starts.extend(each)
        return starts, list(chain.from_iterable(self._holders[block:beyond]))

    def _place(
        self, block: int, beyond: int, starts: array[int], holders: list[Holder | None]
    ) -> None:
        """Put boundaries in the place of some blocks: in none, one, or several of fair size."""
        pieces = len(starts) // _BLOCK if len(starts) > 2 * _BLOCK else 1
        size = -(-len(starts) // pieces) or 1
        cuts = range(0, len(starts), size)
        self._heads[block:beyond] = [starts[cut] for cut in cuts]
        self._starts[block:beyond] = [starts[cut : cut + size] for cut in cuts]
        self._holders[block:beyond] = [holders[cut : cut + size] for cut in cuts]
