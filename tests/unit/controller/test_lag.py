"""The lag is the age of the oldest change that no status shows."""

from __future__ import annotations

from hugetlb_quota.controller.lag import Lag


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_change_there_is_no_lag() -> None:
    lag = Lag(Clock())
    lag.begin()
    lag.end()
    assert lag.seconds() == 0


def test_the_oldest_change_decides_until_a_count_has_ended() -> None:
    lag = Lag(clock := Clock())
    lag.changed()
    clock.now = 103.0
    lag.changed()
    assert lag.seconds() == 3
    lag.begin()
    clock.now = 104.0
    assert lag.seconds() == 4
    lag.end()
    assert lag.seconds() == 0


def test_a_change_during_a_count_waits_for_the_next_count() -> None:
    lag = Lag(clock := Clock())
    lag.begin()
    lag.changed()
    lag.end()
    clock.now = 102.0
    assert lag.seconds() == 2
    lag.begin()
    lag.end()
    assert lag.seconds() == 0


def test_a_failed_write_shows_no_change_until_a_later_count_succeeds() -> None:
    lag = Lag(clock := Clock())
    lag.changed()
    lag.begin()
    lag.failed()
    lag.end()
    clock.now = 110.0
    assert lag.seconds() == 10
    lag.begin()
    lag.end()
    assert lag.seconds() == 0


def test_counts_are_numbered_and_timed() -> None:
    lag = Lag(clock := Clock())
    for seconds in (1.0, 2.0):
        lag.begin()
        clock.now += seconds
        lag.end()
    assert (lag.counts, lag.took) == (2, 3)
