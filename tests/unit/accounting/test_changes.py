"""Changes that may not be stored yet: their lines, and which changes block another change."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from hugetlb_quota.accounting.changes import Change, MalformedChange, in_the_way
from hugetlb_quota.accounting.forest import Quota, QuotaKey

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def key(name: str) -> QuotaKey:
    return QuotaKey("ns", name)


def change(name: str, parent: str | None = None, since: int = 0) -> Change:
    return Change(key(name), key(parent) if parent else None, since, "request", NOW)


def quotas(*links: str) -> list[Quota]:
    """Quotas from links of the form ``child>parent``."""
    found = []
    for link in links:
        child, _, parent = link.partition(">")
        found.append(Quota(key(child), parent=key(parent) if parent else None))
    return found


@pytest.mark.parametrize("each", [change("a", "b", 7), change("a"), change("a", "b")])
def test_a_change_survives_a_round_trip(each: Change) -> None:
    assert Change.parse(each.line) == each
    assert Change.parse(f"{each.line} of a newer release") == each


@pytest.mark.parametrize("line", ["", "a b", "ns/a - many request 2026-11-22T12:00:00Z", "\0 " * 9])
def test_a_malformed_change_is_refused(line: str) -> None:
    with pytest.raises(MalformedChange):
        Change.parse(line)


def test_a_change_may_come_until_its_object_changed() -> None:
    creation = change("a", "b")
    assert creation.may_come({})
    assert not creation.may_come({key("a"): 3})
    changed = change("a", "b", since=3)
    assert changed.may_come({key("a"): 3})
    assert not changed.may_come({key("a"): 4})
    assert not changed.may_come({})


@pytest.mark.parametrize(
    ("mine", "other", "blocks"),
    [
        (change("x", "y"), change("y", "x"), True),
        (change("x", "y"), change("z", "w"), True),  # x > y > z > w > x
        (change("x", "y"), change("free"), False),
        (change("w"), change("x", "y"), True),  # x is below w
        (change("w"), change("new", "x"), True),  # so is a new quota below x
        (change("y"), change("x"), False),
        (change("x", "y"), change("x", "w"), False),  # the API server orders changes of one object
    ],
)
def test_changes_above_or_below_are_in_the_way(mine: Change, other: Change, blocks: bool) -> None:
    forest = quotas("y>z", "x>w", "w", "z", "free") if not mine.parent else quotas("y>z", "w>x")
    assert in_the_way(mine, [other], forest) == ((other.quota,) if blocks else ())


def test_a_sibling_is_not_in_the_way() -> None:
    others = [change(f"c{number}", "root") for number in range(9)]
    assert in_the_way(change("c", "root"), others, quotas("root")) == ()


def test_a_change_along_a_kept_attachment_is_in_the_way() -> None:
    held = Quota(key("x"), parent=key("other"), attached_to=key("root"))
    assert in_the_way(change("root"), [change("x", "other")], [held]) == (key("x"),)
