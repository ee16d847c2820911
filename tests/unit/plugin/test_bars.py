"""The arithmetic of bars."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.plugin.bars import cells, percent

WIDTHS = st.integers(0, 200)
LIMITS = st.integers(0, 2**70)
AMOUNTS: st.SearchStrategy[list[int]] = st.lists(st.integers(0, 2**70), min_size=1, max_size=5)


@given(WIDTHS, LIMITS, AMOUNTS)
def test_a_bar_is_never_longer_than_its_width(width: int, limit: int, amounts: list[int]) -> None:
    counts = cells(width, limit, amounts)
    assert len(counts) == len(amounts)
    assert all(count >= 0 for count in counts)
    assert sum(counts) <= width


@given(WIDTHS, LIMITS, AMOUNTS)
def test_exactly_the_amounts_above_zero_have_cells(
    width: int, limit: int, amounts: list[int]
) -> None:
    counts = cells(width, limit, amounts)
    assert all(count == 0 for count, amount in zip(counts, amounts, strict=True) if not amount)
    if width >= len(amounts):
        assert all(count > 0 for count, amount in zip(counts, amounts, strict=True) if amount)


@given(WIDTHS, LIMITS, AMOUNTS)
def test_a_bar_is_full_only_at_the_limit(width: int, limit: int, amounts: list[int]) -> None:
    filled: int = sum(cells(width, limit, amounts))
    used: int = sum(amounts)
    full = width > 0 and filled == width
    if used >= limit and used and width:
        assert full
    elif width > len(amounts):
        assert not full


@given(st.integers(8, 200), st.integers(1, 2**70), AMOUNTS)
def test_each_part_is_within_a_cell_of_its_share(
    width: int, limit: int, amounts: list[int]
) -> None:
    counts, used = cells(width, limit, amounts), sum(amounts)
    filled = sum(counts)
    for count, amount in zip(counts, amounts, strict=True):
        if amount:
            # Each amount above 0 gets a cell first, so the other amounts may get fewer.
            assert count <= max(1, filled * amount / used + 1)
            assert count >= filled * amount / used - len(amounts)


@given(st.integers(1, 60), st.integers(1, 1000), st.integers(0, 999))
def test_more_use_never_makes_the_bar_shorter(width: int, limit: int, used: int) -> None:
    assert sum(cells(width, limit, [used])) <= sum(cells(width, limit, [used + 1]))


@pytest.mark.parametrize(
    ("width", "limit", "amounts", "expected"),
    [
        (10, 100, [50, 0, 0], (5, 0, 0)),
        (10, 100, [1, 0, 0], (1, 0, 0)),
        (10, 100, [99, 0, 0], (9, 0, 0)),
        (10, 100, [60, 40, 0], (6, 4, 0)),
        (10, 100, [200, 0, 0], (10, 0, 0)),
        (10, 0, [5, 5, 0], (5, 5, 0)),
        (2, 100, [1, 1, 1], (1, 1, 0)),
        (10, 100, [0, 0, 0], (0, 0, 0)),
    ],
)
def test_examples(width: int, limit: int, amounts: list[int], expected: tuple[int, ...]) -> None:
    assert cells(width, limit, amounts) == expected


@given(st.integers(0, 2**70), st.integers(1, 2**70))
def test_only_a_full_quota_is_at_a_hundred_percent(used: int, limit: int) -> None:
    part = percent(used, limit)
    assert part is not None
    assert (part >= 100) == (used >= limit)
    assert (part == 0) == (used == 0)


def test_a_limit_of_zero_has_no_percentage() -> None:
    assert percent(0, 0) is None
