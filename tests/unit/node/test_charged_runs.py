"""Runs of charged pages, found by questions about ranges alone."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.node.charged_ranges import charged_runs


@given(st.lists(st.booleans(), max_size=80), st.integers(0, 5))
def test_the_runs_are_exactly_the_charged_pages(pages: list[bool], first: int) -> None:
    asked = 0

    def is_charged(start: int, end: int) -> bool:
        nonlocal asked
        asked += 1
        assert start < end <= first + len(pages)
        return all(pages[start - first : end - first])

    runs = list(charged_runs(is_charged, first, first + len(pages)))
    assert [page for start, end in runs for page in range(start, end)] == [
        number for number, charged in enumerate(pages, first) if charged
    ]
    # The longest: no two touch.
    assert all(left[1] < right[0] for left, right in pairwise(runs))


def test_a_large_file_that_is_charged_as_a_whole_takes_few_questions() -> None:
    asked = []

    def is_charged(start: int, end: int) -> bool:
        asked.append((start, end))
        return end <= 1_000_000

    assert list(charged_runs(is_charged, 0, 1_000_100)) == [(0, 1_000_000)]
    assert len(asked) < 200
