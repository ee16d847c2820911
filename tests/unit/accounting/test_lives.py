"""How long a program has watched each reservation."""

from __future__ import annotations

from datetime import timedelta

from hugetlb_quota.accounting.lives import Lives
from hugetlb_quota.accounting.reservation import ReservationId

FIRST, SECOND = ReservationId("pod-1", "r-1"), ReservationId("pod-2", "r-2")


def test_a_life_is_over_when_it_was_watched_from_its_beginning_to_its_end() -> None:
    lives = Lives(timedelta(seconds=34))
    assert not lives.is_over(FIRST, 1e9)  # never seen
    lives.note([FIRST], 100.0)
    lives.note([FIRST, SECOND], 110.0)
    assert sorted(lives.ends()) == [134.0, 144.0]
    assert not lives.is_over(FIRST, 133.9)
    assert lives.is_over(FIRST, 134.0)
    assert not lives.is_over(SECOND, 143.9)


def test_a_life_begins_again_if_the_reservation_was_absent() -> None:
    lives = Lives(timedelta(seconds=34))
    lives.note([FIRST], 100.0)
    lives.note([], 110.0)
    lives.note([FIRST], 120.0)
    assert lives.end(FIRST) == 154.0
