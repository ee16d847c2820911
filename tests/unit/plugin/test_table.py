"""Ages in tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hugetlb_quota.plugin import table


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0s"), (59, "59s"), (65, "1m5s"), (600, "10m"), (7200, "2h"), (90061, "1d1h"), (-5, "0s")],
)
def test_an_age_has_one_or_two_units(seconds: int, expected: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert table.age(now - timedelta(seconds=seconds), now) == expected


def test_an_unknown_time_has_no_age() -> None:
    assert table.age(None, datetime(2026, 1, 1, tzinfo=UTC)) == "-"
