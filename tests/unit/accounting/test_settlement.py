"""Whatever was missed, what everyone is charged adds up to what the kernel counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.accounting.settlement import Claim, Files, settle

amounts = st.integers(0, 6)
claims = st.lists(
    st.builds(Claim, st.sampled_from("abcd"), amounts, certain=st.booleans(), limit=amounts),
    max_size=4,
    unique_by=lambda claim: claim.owner,
)
held = st.dictionaries(st.sampled_from("abcxy"), st.integers(1, 6), max_size=4)


def certain(owner: str, charge: int, limit: int = 8) -> Claim[str]:
    return Claim(owner, charge, certain=True, limit=limit)


def missed(owner: str, charge: int = 0, limit: int = 8) -> Claim[str]:
    return Claim(owner, charge, certain=False, limit=limit)


in_files = st.dictionaries(st.sampled_from("abcdxy"), amounts)
files = st.none() | st.builds(Files, in_files, in_files)


@given(held, amounts, claims, st.integers(0, 30), files)
def test_it_always_adds_up_to_the_kernels_total(
    before: dict[str, int],
    stray: int,
    claimed: list[Claim[str]],
    total: int,
    known: Files[str] | None,
) -> None:
    settled = settle(before, stray, claimed, total, known)
    assert sum(settled.held.values()) + settled.stray == total
    assert all(amount > 0 for amount in settled.held.values())
    assert settled.stray >= 0
    assert 0 <= settled.guessed <= total


@given(held, amounts, claims)
def test_what_was_seen_is_left_alone_when_the_kernel_agrees(
    before: dict[str, int], stray: int, claimed: list[Claim[str]]
) -> None:
    expected = dict(before)
    for claim in claimed:
        expected[claim.owner] = expected.get(claim.owner, 0) + claim.charge
    settled = settle(before, stray, claimed, sum(expected.values()) + stray)
    assert settled.held == {owner: amount for owner, amount in expected.items() if amount}
    assert (settled.stray, settled.guessed) == (stray, 0)


@given(held, amounts, claims, st.integers(0, 30))
def test_settled_again_it_stays(
    before: dict[str, int], stray: int, claimed: list[Claim[str]], total: int
) -> None:
    """A kill between settling and writing it down changes nothing."""
    once = settle(before, stray, claimed, total)
    again = settle(once.held, once.stray, (), total)
    assert (again.held, again.stray, again.guessed) == (once.held, once.stray, 0)


def test_the_only_end_that_was_missed_left_what_is_not_explained() -> None:
    settled = settle({"a": 2}, 0, [certain("b", 3), missed("c", charge=1)], total=9)
    assert (settled.held, settled.stray, settled.guessed) == ({"a": 2, "b": 3, "c": 4}, 0, 0)


def test_of_two_missed_ends_it_is_a_guess() -> None:
    settled = settle({}, 0, [missed("a", limit=3), missed("b")], total=5)
    assert (settled.held, settled.guessed) == ({"a": 3, "b": 2}, 5)


def test_what_nobody_can_have_left_is_stray() -> None:
    assert settle({}, 1, [missed("a", limit=4)], total=7).stray == 3
    assert settle({"a": 2}, 0, [], total=7).stray == 5


def test_a_pod_last_seen_alive_gave_back_what_was_its_own() -> None:
    settled = settle({"a": 2}, 0, [certain("b", 3), missed("c", charge=6)], total=7)
    assert (settled.held, settled.guessed) == ({"a": 2, "b": 3, "c": 2}, 0)


def test_what_was_freed_unseen_is_taken_from_what_counts_nowhere_then_from_the_oldest() -> None:
    settled = settle({"old": 4, "new": 4}, 3, [], total=6)
    assert (settled.held, settled.stray, settled.guessed) == ({"old": 2, "new": 4}, 0, 5)


def test_whose_file_is_gone_is_no_guess_when_only_one_left_any() -> None:
    settled = settle({"a": 4}, 0, [], total=1)
    assert (settled.held, settled.guessed) == ({"a": 1}, 0)
    assert settle({}, 4, [], total=1).guessed == 0


def test_a_pod_that_ended_before_under_the_same_name_is_charged_for_both() -> None:
    assert settle({"a": 2}, 0, [certain("a", 3)], total=5).held == {"a": 5}


def test_whose_files_are_gone_pays_and_it_is_no_guess() -> None:
    gone = Files(now={"old": 4, "new": 1}, before={"old": 4, "new": 4})
    settled = settle({"old": 4, "new": 4}, 3, [], 8, gone)
    assert (settled.held, settled.stray, settled.guessed) == ({"old": 4, "new": 1}, 3, 0)
    # One has something else beside, a segment, which is older than this.
    shorter = Files(now={"b": 2}, before={"b": 4})
    settled = settle({"a": 4, "b": 4}, 0, [], 6, shorter)
    assert (settled.held, settled.guessed) == ({"a": 4, "b": 2}, 0)


def test_what_is_in_no_file_known_may_be_a_segment() -> None:
    """Two hold more than is in files, and less than that is gone: whose is a guess."""
    same = {"a": 2, "b": 2}
    settled = settle({"a": 4, "b": 4}, 0, [], 6, Files(same, same))
    assert (settled.held, settled.guessed) == ({"a": 2, "b": 4}, 2)
    settled = settle({"a": 2, "b": 4}, 0, [], 4, Files(same, same))
    assert (settled.held, settled.guessed) == ({"a": 2, "b": 2}, 0)


def test_missed_ends_are_told_apart_by_their_files() -> None:
    there = Files(now={"a": 2, "b": 6}, before={})
    settled = settle({}, 0, [missed("a", 6), missed("b", 6)], 8, there)
    assert (settled.held, settled.guessed) == ({"a": 2, "b": 6}, 0)
    settled = settle({}, 0, [missed("a"), missed("b")], 8, there)
    assert (settled.held, settled.guessed) == ({"a": 2, "b": 6}, 0)


@given(held, amounts, claims, st.integers(0, 30), files)
def test_patient_it_is_never_less_than_the_kernels_total(
    before: dict[str, int],
    stray: int,
    claimed: list[Claim[str]],
    total: int,
    known: Files[str] | None,
) -> None:
    settled = settle(before, stray, claimed, total, known, patient=True)
    assert sum(settled.held.values()) + settled.stray == total + settled.unexplained
    assert settled.unexplained >= 0


def test_what_files_do_not_explain_stays_charged_until_they_do() -> None:
    known = Files({"a": 4, "b": 4}, {"a": 4, "b": 4})
    settled = settle({"a": 4, "b": 4}, 0, [], 6, known, patient=True)
    assert (settled.held, settled.unexplained) == ({"a": 4, "b": 4}, 2)
    later = Files({"a": 4, "b": 2}, known.now)
    settled = settle(settled.held, 0, [], 6, later, patient=True)
    assert (settled.held, settled.unexplained, settled.guessed) == ({"a": 4, "b": 2}, 0, 0)
