"""The line of a reservation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.reservation import Reservation, lifetime, parse, parse_all
from hugetlb_quota.page_size import PageSize

WORDS = st.from_regex(r"[!-~]{1,40}", fullmatch=True)
CHARGES = st.dictionaries(
    st.sampled_from(PageSize.all()), st.integers(min_value=0, max_value=2**70), max_size=3
).map(Charge)
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=0)
)


@given(
    st.builds(
        Reservation,
        uid=WORDS,
        pod=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        charge=CHARGES,
        expires=MOMENTS,
        request=WORDS.filter(lambda word: word != "-") | st.just(""),
        since=st.integers(min_value=0, max_value=2**63),
        counted=WORDS | st.just(""),
    )
)
def test_a_reservation_survives_a_round_trip(reservation: Reservation) -> None:
    read = parse(reservation.line)
    assert read == reservation
    assert read.line == reservation.line


def test_a_line_is_readable_text() -> None:
    charge = Charge({PageSize(2 * 1024**2): 64 * 1024**2, PageSize(1024**3): 1024**3})
    east = datetime(2026, 11, 22, 14, 0, 0, 5, tzinfo=timezone(timedelta(hours=2)))
    # The time is rounded up, so the reservation never ends early.
    assert Reservation("uid", "db/pg-0", charge, east, "request", 7).line == (
        "uid db/pg-0 2Mi:64Mi,1Gi:1Gi 2026-11-22T12:00:01Z request 7"
    )


def test_an_identity_has_a_seventh_word() -> None:
    line = "uid db/pg-0 2Mi:64Mi 2026-11-22T12:00:00Z request 7"
    assert parse(line).counted == ""
    identity = parse(line).as_identity("worker-1")
    assert identity.line == f"{line} worker-1"
    assert parse(identity.line) == identity
    # Further words stay, unless the identity changes.
    newer = parse(f"{line} worker-1 and more")
    assert newer == identity
    assert newer.as_identity("worker-1").line == f"{line} worker-1 and more"
    assert newer.as_identity("-").line == f"{line} -"


@pytest.mark.parametrize(
    "lines",
    [
        ["", "a", "uid db/pg-0 2Mi:64Mi soon request 0", "u p 3Mi:3Mi 2026-11-22T12:00:00Z r 0"],
        [{"uid": "u", "pod": "db/pg-0"}, None, 7, ["u"]],
        "no list",
        {"no": "list"},
    ],
)
def test_malformed_lines_are_separated(lines: Any) -> None:
    good = "u db/pg-0 - 2026-11-22T12:00:00Z r 0 and more"
    read, unreadable = parse_all([*lines, good] if isinstance(lines, list) else lines)
    assert [each.line for each in read] == ([good] if isinstance(lines, list) else [])
    assert len(unreadable) == (len(lines) if isinstance(lines, list) else 1)
    assert all(isinstance(line, str) for line in unreadable)


def test_a_missing_list_has_no_reservations() -> None:
    assert parse_all(None) == ((), ())


def test_a_reservation_lives_no_longer_than_any_write_of_kube_apiserver() -> None:
    assert lifetime(timedelta(seconds=60)) == timedelta(seconds=34)
    assert lifetime(timedelta(seconds=20)) == timedelta(seconds=20)


def test_the_line_of_a_reservation_has_a_mark_when_the_life_is_over() -> None:
    line = "uid db/pg-0 2Mi:64Mi 2026-11-22T12:00:00Z request 7"
    held = parse(line)
    assert not held.is_over
    over = held.as_over()
    assert over.line == "uid db/pg-0 2Mi:64Mi 1970-01-01T00:00:00Z request 7"
    assert parse(over.line).is_over
    assert parse(over.line).id == held.id
    # Earlier releases may have made an identity of the reservation.
    assert parse(over.as_identity("?").line).counted == "?"
