from __future__ import annotations

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
async def test_a_margin_is_kept_back_of_what_the_api_server_waits(
    timeout: str | None, seconds: float
) -> None:
    deadline = Deadline.of_request(timeout)
    assert deadline.seconds == pytest.approx(seconds)
    assert 0 < deadline.left() <= seconds
