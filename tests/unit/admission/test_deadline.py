from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hugetlb_quota.admission.deadline import Deadline


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        ("10s", 9.5),
        ("2.5s", 2.0),
        ("500ms", 0.25),
        ("1m0s", 29.5),
        (None, 9.5),
        ("", 9.5),
        ("soon", 9.5),
        ("-5s", 9.5),
    ],
)
async def test_the_deadline_is_before_the_api_servers_timeout(
    timeout: str | None, seconds: float
) -> None:
    deadline = Deadline.of_request(timeout)
    assert deadline.seconds == pytest.approx(seconds)
    assert 0 < deadline.left() <= seconds


async def test_the_api_request_ends_a_lifetime_after_the_deadline() -> None:
    now = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    ends = Deadline.after(9.0).request_ends(now, timedelta(seconds=60))
    assert timedelta(seconds=68) < ends - now <= timedelta(seconds=69)


async def test_a_timeout_is_never_0() -> None:
    assert Deadline.after(-1.0).left() == 0.0
    assert Deadline.after(-1.0).timeout() > 0.0
