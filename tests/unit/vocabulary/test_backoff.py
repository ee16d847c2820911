"""Exponential backoff between failed attempts."""

from __future__ import annotations

from hugetlb_quota.backoff import Backoff


def test_each_wait_doubles_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.next() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_success_resets_the_wait() -> None:
    backoff = Backoff(0.5, 3.0)
    backoff.next()
    backoff.next()
    backoff.reset()
    assert (backoff.next(), backoff.next()) == (0.5, 1.0)


def test_a_first_wait_beyond_the_longest_is_the_longest() -> None:
    assert Backoff(5.0, 3.0).next() == 3.0
