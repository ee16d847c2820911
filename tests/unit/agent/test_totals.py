"""Estimates from counters: each gone pod is within the bound, and the rest belongs to no pod."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent import totals
from hugetlb_quota.agent.totals import Totals, count, estimate, reserved
from hugetlb_quota.page_size import PageSize

SMALL, LARGE = PageSize(2 << 20), PageSize(1 << 30)
SIZES = (SMALL, LARGE)


def charge(pages: int) -> Charge:
    return Charge({SMALL: pages * SMALL.bytes})


def write(cgroup: Path, pages: int) -> Path:
    """Make a cgroup that has reserved ``pages`` of 2 MiB, and none of 1 GiB."""
    cgroup.mkdir(parents=True, exist_ok=True)
    for size, used in ((SMALL, pages * SMALL.bytes), (LARGE, 0)):
        for name in ("rsvd.current", "current"):
            (cgroup / f"{size.cgroup}.{name}").write_text(f"{used}\n")
    return cgroup


def test_reads_what_a_cgroup_has_reserved(tmp_path: Path) -> None:
    assert reserved(write(tmp_path / "pod", 3), SIZES).without_zeros() == charge(3)
    assert reserved(tmp_path / "gone", SIZES) == Charge()


def test_the_bound_is_what_kubepods_has_beyond_its_pods(tmp_path: Path) -> None:
    write(tmp_path / "kubepods", 10)
    write(tmp_path / "kubepods/poda", 3)
    write(tmp_path / "kubepods/burstable/podb", 2)
    write(tmp_path / "kubepods/burstable/poda", 1)  # the same UID at another level
    found = count([tmp_path], SIZES)
    assert {uid: each.without_zeros() for uid, each in found.pods.items()} == {
        "a": charge(4),
        "b": charge(2),
    }
    assert found.bound.without_zeros() == charge(4)


def test_takes_the_largest_bound_if_no_two_readings_are_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounds = iter([2, 9, 5, *range(10, 20)])
    monkeypatch.setattr(totals, "_ATTEMPTS", 2)
    monkeypatch.setattr(totals, "_count_once", lambda *_: Totals({}, charge(next(bounds))))
    assert count([], SIZES) == Totals({}, charge(9))


def test_charges_the_rest_of_the_bound_to_pods_with_an_unseen_end() -> None:
    held, more = {"seen": charge(4), "unseen": charge(2)}, {"unseen": charge(30)}
    assert estimate(held, more, charge(10)) == ({"seen": charge(4), "unseen": charge(6)}, Charge())
    assert estimate(held, {}, charge(10)) == ({"seen": charge(4), "unseen": charge(2)}, charge(4))


amounts = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 20).map(charge))


@given(held=amounts, more=amounts, bound=st.integers(0, 40).map(charge))
def test_no_gone_pod_is_charged_more_than_it_may_hold(
    held: dict[str, Charge], more: dict[str, Charge], bound: Charge
) -> None:
    charged, rest = estimate(held, more, bound)
    for uid, each in charged.items():
        may = held.get(uid, Charge()) + more.get(uid, Charge())
        assert each.of(SMALL) <= may.of(SMALL)
    total = Charge.total(charged.values())
    assert (total + rest).of(SMALL) >= bound.of(SMALL)  # no part of the bound is lost
