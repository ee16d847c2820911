"""What is reclaimed, and what is kept in any doubt."""

from datetime import UTC, datetime, timedelta

import pytest

from hugetlb_quota.accounting.reclaim import GoneOwner, is_due

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TEN = timedelta(minutes=10)
WAITS = {"ns/asks": TEN, "ns/asks-later": 2 * TEN}


def gone(minutes: int, *quotas: str) -> GoneOwner:
    return GoneOwner(quotas, NOW - timedelta(minutes=minutes))


@pytest.mark.parametrize(
    ("owners", "due"),
    [
        ([gone(10, "ns/asks")], True),
        ([gone(9, "ns/asks")], False),
        ([gone(15, "ns/asks", "ns/asks-later")], False),
        ([gone(20, "ns/asks", "ns/asks-later")], True),
        ([gone(99, "ns/asks", "ns/keeps")], False),
        ([gone(99, "ns/asks"), gone(99, "ns/keeps")], False),
        ([gone(99, "ns/asks"), gone(1, "ns/asks")], False),
        ([gone(99, "ns/asks"), None], False),
        ([gone(99)], False),
        ([], False),
    ],
    ids=[
        "long enough",
        "not yet",
        "the longest wait counts",
        "all have waited",
        "one quota keeps",
        "another pod's quota keeps",
        "another pod went later",
        "somebody lives",
        "no quota is charged",
        "nobody is charged",
    ],
)
def test_a_file_is_due(owners: list[GoneOwner | None], due: bool) -> None:
    assert is_due(owners, WAITS, NOW) is due
