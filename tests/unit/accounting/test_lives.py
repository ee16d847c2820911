"""What a pod's cgroup holds is shared out among its lives: to the byte, and to the right one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.lives import charged_beside, former_life, pod_of, share_out
from hugetlb_quota.page_size import PageSize

SIZES = (PageSize(2 << 20), PageSize(1 << 30))
charges = st.builds(
    lambda *pages: Charge({s: n * s.bytes for s, n in zip(SIZES, pages, strict=True)}),
    st.integers(0, 6),
    st.integers(0, 6),
)
in_files = st.dictionaries(st.sampled_from("abc"), charges)


def pages(count: int) -> Charge:
    return Charge({SIZES[0]: count * SIZES[0].bytes})


@given(charges, in_files)
def test_it_adds_up_to_what_the_kernel_says(held: Charge, filled: dict[str, Charge]) -> None:
    parts, rest = share_out(held, filled)
    assert parts.keys() == filled.keys()
    assert Charge.total([*parts.values(), rest]).without_zeros() == held.without_zeros()


@given(charges, in_files)
def test_no_former_life_has_more_than_is_still_in_its_files(
    held: Charge, filled: dict[str, Charge]
) -> None:
    parts, _ = share_out(held, filled)
    assert not any(part.beyond(filled[owner]) for owner, part in parts.items())


@given(charges, in_files)
def test_the_present_life_has_nothing_before_the_former_have_all_of_theirs(
    held: Charge, filled: dict[str, Charge]
) -> None:
    parts, rest = share_out(held, filled)
    for size in rest:
        assert all(part.of(size) == filled[owner].of(size) for owner, part in parts.items())


@given(charges, in_files, charges)
def test_what_else_it_takes_is_the_present_lifes(
    held: Charge, filled: dict[str, Charge], more: Charge
) -> None:
    """So a former quota never pays for what came after."""
    held += Charge.total(filled.values())
    before, rest = share_out(held, filled)
    after, grown = share_out(held + more, filled)
    assert after == before
    assert grown == (rest + more).without_zeros()


def test_the_first_life_comes_first() -> None:
    parts, rest = share_out(pages(3), {"first": pages(2), "second": pages(4)})
    assert (parts, rest) == ({"first": pages(2), "second": pages(1)}, NOTHING)


def test_a_former_life_is_an_owner_of_its_own_and_its_pods() -> None:
    first = former_life("uid", ())
    second = former_life("uid", {"uid", first})
    assert len({"uid", first, second}) == 3
    assert {pod_of(owner) for owner in ("uid", first, second)} == {"uid"}
    assert pod_of("") == ""


def test_while_the_pod_runs_its_demand_has_it_all_where_it_is_governed_still() -> None:
    assert charged_beside(("a", "b"), ("b", "c")) == ("a",)
    assert charged_beside(("a",), ("a", "b")) == ()
    assert charged_beside(("b", "a"), ()) == ("a", "b")
