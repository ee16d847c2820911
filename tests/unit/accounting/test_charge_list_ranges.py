"""The ranges of a file that has thousands of them, in blocks of the size that is used."""

from __future__ import annotations

import random

import pytest

from hugetlb_quota.accounting import ranges
from hugetlb_quota.accounting.ranges import RangeMap

PAGES = 6000


def touched(seed: int) -> tuple[RangeMap[str], dict[int, str]]:
    """A file touched by three in random order, a third of its pages left alone."""
    draw = random.Random(seed)
    range_map: RangeMap[str] = RangeMap()
    pages: dict[int, str] = {}
    for page in draw.sample(range(PAGES), 2 * PAGES // 3):
        pages[page] = draw.choice("abc")
        heir: dict[str | None, str] = {None: pages[page]}
        assert range_map.rewrite(page, page + 1, heir.__getitem__) == {None: 1}
    return range_map, pages


def pages_of(range_map: RangeMap[str]) -> dict[int, str]:
    return {page: holder for first, last, holder in range_map for page in range(first, last)}


def test_no_page_is_lost_between_blocks() -> None:
    range_map, pages = touched(seed=1)
    assert len(range_map._heads) > 5
    assert max(map(len, range_map._starts)) <= 2 * ranges._BLOCK
    assert pages_of(range_map) == pages
    assert range_map.pages == len(pages)
    for first, last in ((0, PAGES), (1000, 5000), (2999, 3000)):
        free = sum(page not in pages for page in range(first, last))
        assert range_map.free(first, last) == free


def test_one_rewrite_over_many_blocks_changes_what_it_says() -> None:
    range_map, pages = touched(seed=2)
    given = range_map.rewrite(500, 5500, lambda holder: None if holder == "b" else holder)
    gone = [page for page, holder in pages.items() if holder == "b" and 500 <= page < 5500]
    assert given == {"b": len(gone)}
    assert pages_of(range_map) == {page: pages[page] for page in pages if page not in gone}


def test_a_rewrite_that_fails_on_its_way_changes_nothing() -> None:
    range_map, pages = touched(seed=3)
    asked: list[str | None] = []

    def heir(holder: str | None) -> str | None:
        asked.append(holder)
        if len(asked) > 1000:
            raise LookupError(holder)
        return "d"

    with pytest.raises(LookupError):
        range_map.rewrite(0, PAGES, heir)
    assert pages_of(range_map) == pages
    assert range_map.pages == len(pages)


def test_when_everything_is_one_holders_again_one_range_is_left() -> None:
    range_map, _ = touched(seed=4)
    range_map.rewrite(0, PAGES, lambda _: "d")
    assert range_map.sole == (0, PAGES, "d")
    assert len(range_map._heads) == 1
