"""Durations in specs."""

from datetime import timedelta

import pytest

from hugetlb_quota.duration import MalformedDuration, parse, render


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600), ("1h30m", 5400), ("45s", 45), ("0s", 0), ("1m1m", 120)]
)
def test_durations_are_parsed(text: str, seconds: int) -> None:
    assert parse(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "10", "m", "-1m", "1.5h", "10 m", "1d", "9999999s"])
def test_malformed_durations_are_refused(text: str) -> None:
    with pytest.raises(MalformedDuration, match="is not a duration"):
        parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(600, "10m"), (5400, "1h30m"), (45, "45s"), (0, "0s"), (90061, "25h1m1s")]
)
def test_a_duration_survives_a_round_trip(seconds: int, text: str) -> None:
    assert render(timedelta(seconds=seconds)) == text
    assert parse(text) == timedelta(seconds=seconds)


def test_the_longest_duration_of_a_quota_survives_a_round_trip() -> None:
    longest = "999999h999999h"  # 16 characters at most
    assert render(parse(longest)) == longest
    assert render(parse("999999h60m")) == "999999h1h"
