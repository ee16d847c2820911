"""The charge list by example: what the kernel does to a file, and what the list then says."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.charge_list import (
    Change,
    ChargeList,
    DamagedRows,
    FileKey,
    PageSizeDiffers,
    Row,
)
from hugetlb_quota.accounting.ranges import LAST_PAGE, MalformedRange, PageRange
from hugetlb_quota.page_size import PageSize

MIB = 1024**2
TWO_MIB, ONE_GIB = PageSize(2 * MIB), PageSize(1024 * MIB)
FILE, OTHER, GIBIBYTES = FileKey(25, 100), FileKey(25, 101), FileKey(26, 100)


@dataclass(frozen=True, slots=True)
class Owner:
    """As the agent's: a pod, and the quotas that it was charged to."""

    pod: str
    quotas: tuple[str, ...] = ("team",)


ANN, BEN, CAT = Owner("ann"), Owner("ben"), Owner("cat")
Charges = ChargeList[Owner]


def charged(*parts: tuple[int, int, Owner], file: FileKey = FILE) -> Charges:
    charges = Charges()
    for first, last, owner in parts:
        charges.charge(file, TWO_MIB, PageRange(first, last), owner)
    return charges


def held(charges: Charges, file: FileKey = FILE) -> list[tuple[int, int, Owner]]:
    return [(first, last, owner) for (first, last), owner in charges.held(file)]


def test_the_first_to_reserve_is_charged_and_the_next_only_for_what_is_left() -> None:
    charges = charged((0, 4, ANN))
    assert charges.would_charge(FILE, PageRange(2, 8)) == 4
    change = charges.charge(FILE, TWO_MIB, PageRange(2, 8), BEN)
    assert change == Change(FILE, TWO_MIB, {BEN: 4})
    assert held(charges) == [(0, 4, ANN), (4, 8, BEN)]


def test_who_maps_what_is_charged_already_pays_nothing_and_is_not_in_the_list() -> None:
    charges = charged((0, 4, ANN))
    assert not charges.charge(FILE, TWO_MIB, PageRange(0, 4), BEN)
    assert charges.by_owner() == {ANN: Charge({TWO_MIB: 8 * MIB})}


def test_one_charge_fills_every_hole_between_what_others_hold() -> None:
    charges = charged((2, 3, ANN), (5, 6, BEN))
    assert charges.charge(FILE, TWO_MIB, PageRange(0, 8), CAT).charged == 6
    assert held(charges) == [(0, 2, CAT), (2, 3, ANN), (3, 5, CAT), (5, 6, BEN), (6, 8, CAT)]


def test_ranges_of_one_owner_become_one_where_they_meet() -> None:
    charges = charged((0, 2, ANN), (4, 6, ANN), (2, 4, ANN))
    assert held(charges) == [(0, 6, ANN)]


def test_truncating_in_the_middle_of_a_range_keeps_what_lies_before() -> None:
    charges = charged((0, 6, ANN), (6, 9, BEN))
    assert charges.truncate(FILE, 4) == Change(FILE, TWO_MIB, {ANN: -2, BEN: -3})
    assert held(charges) == [(0, 4, ANN)]
    assert BEN not in charges.by_owner()


def test_truncating_to_a_greater_length_releases_nothing() -> None:
    charges = charged((0, 6, ANN))
    assert not charges.truncate(FILE, 6)
    assert not charges.truncate(FILE, LAST_PAGE)
    assert held(charges) == [(0, 6, ANN)]


def test_punching_splits_a_range_and_another_can_charge_the_hole() -> None:
    charges = charged((0, 6, ANN))
    assert charges.punch(FILE, PageRange(2, 4)).released == 2
    assert held(charges) == [(0, 2, ANN), (4, 6, ANN)]
    assert charges.charge(FILE, TWO_MIB, PageRange(0, 6), BEN).pages == {BEN: 2}
    assert held(charges) == [(0, 2, ANN), (2, 4, BEN), (4, 6, ANN)]


def test_a_dropped_file_is_forgotten_and_its_number_may_come_back_with_another_page_size() -> None:
    charges = charged((0, 6, ANN))
    assert charges.drop(FILE).released == 6
    assert (FILE in charges, len(charges), charges.by_owner()) == (False, 0, {})
    assert charges.charge(FILE, ONE_GIB, PageRange(0, 1), BEN).page_size == ONE_GIB


def test_a_file_does_not_change_its_page_size() -> None:
    charges = charged((0, 6, ANN))
    with pytest.raises(PageSizeDiffers, match=r"inode 100 of device 25 .* 2Mi .* 1Gi"):
        charges.charge(FILE, ONE_GIB, PageRange(6, 7), BEN)
    assert charges.by_owner() == {ANN: Charge({TWO_MIB: 12 * MIB})}


def test_a_moved_pod_takes_all_of_its_charges_in_all_files_along() -> None:
    charges = charged((0, 2, ANN), (2, 4, BEN))
    charges.charge(OTHER, TWO_MIB, PageRange(7, 8), ANN)
    charges.charge(GIBIBYTES, ONE_GIB, PageRange(0, 2), ANN)
    moved = charges.move(ANN, CAT)
    assert set(moved.files) == {FILE, OTHER, GIBIBYTES}
    assert moved.charges == {ANN: Charge({TWO_MIB: 6 * MIB, ONE_GIB: 2048 * MIB})}
    assert charges.pages_of(CAT) == {TWO_MIB: 3, ONE_GIB: 2}
    assert held(charges) == [(0, 2, CAT), (2, 4, BEN)]


def test_moving_to_a_neighbour_makes_one_range_of_two() -> None:
    charges = charged((0, 2, ANN), (2, 4, BEN), (4, 6, ANN))
    charges.move(BEN, ANN)
    assert held(charges) == [(0, 6, ANN)]


def test_a_deleted_quota_leaves_its_charges_to_the_parent_whoever_the_pod_was() -> None:
    teams = [Owner("ann", ("team", "tenant")), Owner("ben", ("team", "tenant"))]
    charges = charged((0, 2, teams[0]), (2, 4, teams[1]), (4, 6, CAT))

    def without_team(owner: Owner) -> Owner:
        return Owner(owner.pod, ("tenant",)) if owner.quotas == ("team", "tenant") else owner

    moved = charges.reparent(without_team)
    assert set(moved.charges) == set(teams)
    assert held(charges) == [
        (0, 2, Owner("ann", ("tenant",))),
        (2, 4, Owner("ben", ("tenant",))),
        (4, 6, CAT),
    ]


def test_owners_that_are_each_others_heirs_change_places() -> None:
    charges = charged((0, 2, ANN), (2, 5, BEN))
    charges.reparent({ANN: BEN, BEN: ANN}.__getitem__)
    assert held(charges) == [(0, 2, BEN), (2, 5, ANN)]
    assert (charges.pages_in(FILE, ANN), charges.pages_in(FILE, BEN)) == (3, 2)


def test_an_heir_that_cannot_be_named_moves_nobody() -> None:
    charges = charged((0, 2, ANN), (2, 5, BEN))
    with pytest.raises(KeyError):
        charges.reparent({ANN: CAT}.__getitem__)
    assert held(charges) == [(0, 2, ANN), (2, 5, BEN)]


def test_pages_known_by_number_go_from_the_end() -> None:
    charges = charged((0, 4, ANN), (4, 8, BEN))
    assert charges.release(FILE, 5).pages == {BEN: -4, ANN: -1}
    assert held(charges) == [(0, 3, ANN)]


def test_pages_known_by_number_go_from_the_end_of_the_named_owner_and_then_of_others() -> None:
    charges = charged((0, 3, ANN), (3, 6, BEN), (6, 9, CAT))
    assert charges.release(FILE, 2, first_from=ANN).pages == {ANN: -2}
    assert held(charges) == [(0, 1, ANN), (3, 6, BEN), (6, 9, CAT)]
    assert charges.release(FILE, 5, first_from=ANN).pages == {ANN: -1, CAT: -3, BEN: -1}
    assert held(charges) == [(3, 5, BEN)]


def test_no_more_pages_go_than_are_there() -> None:
    charges = charged((0, 3, ANN))
    assert charges.release(FILE, 99, first_from=BEN).released == 3
    assert not charges.release(FILE, 99)
    with pytest.raises(ValueError, match="-1 pages of the file with inode 100 of device 25"):
        charges.release(FILE, -1)


def test_largest_counts_bytes_and_not_pages() -> None:
    charges = charged((0, 4, ANN))
    charges.charge(OTHER, TWO_MIB, PageRange(0, 9), BEN)
    charges.charge(GIBIBYTES, ONE_GIB, PageRange(0, 1), BEN)
    assert [each.file for each in charges.largest(2)] == [GIBIBYTES, OTHER]
    assert charges.largest(1)[0].bytes == 1024 * MIB


@pytest.mark.parametrize("pages", [(-1, 3), (3, 2), (0, LAST_PAGE + 1)])
def test_pages_that_no_file_can_have_change_nothing(pages: tuple[int, int]) -> None:
    charges = charged((0, 4, ANN))
    before = list(charges.rows())
    with pytest.raises(MalformedRange, match="is no range of pages"):
        charges.charge(FILE, TWO_MIB, PageRange(*pages), BEN)
    with pytest.raises(MalformedRange):
        charges.would_charge(FILE, PageRange(*pages))
    with pytest.raises(MalformedRange):
        charges.punch(FILE, PageRange(*pages))
    with pytest.raises(MalformedRange):
        charges.truncate(FILE, -1)
    assert list(charges.rows()) == before


def test_the_last_page_of_the_longest_file_can_be_charged() -> None:
    charges = charged((LAST_PAGE - 1, LAST_PAGE, ANN), (0, 1, ANN))
    assert charges.pages_of(ANN) == {TWO_MIB: 2}
    assert charges.truncate(FILE, LAST_PAGE - 1).released == 1


def test_the_list_comes_back_from_its_rows() -> None:
    charges = charged((0, 2, ANN), (4, 6, BEN), (6, 7, ANN))
    charges.charge(GIBIBYTES, ONE_GIB, PageRange(3, 4), BEN)
    again = ChargeList.from_rows(charges.rows())
    assert list(again.rows()) == list(charges.rows())
    assert again.by_owner() == charges.by_owner()
    assert list(again.rows_of(GIBIBYTES)) == [Row(GIBIBYTES, ONE_GIB, 3, 4, BEN)]


@pytest.mark.parametrize(
    "damaged",
    [
        Row(FILE, TWO_MIB, 3, 5, BEN),
        Row(FILE, TWO_MIB, 0, 1, BEN),
        Row(FILE, TWO_MIB, 4, 4, BEN),
        Row(FILE, ONE_GIB, 4, 5, BEN),
        Row(FILE, TWO_MIB, 4, LAST_PAGE + 1, BEN),
    ],
    ids=["overlaps", "out of order", "empty", "another page size", "no file is so long"],
)
def test_rows_that_are_no_charge_list_are_refused(damaged: Row[Owner]) -> None:
    with pytest.raises(DamagedRows, match="inode 100 of device 25 cannot be"):
        ChargeList.from_rows([Row(FILE, TWO_MIB, 2, 4, ANN), damaged])


def test_rows_of_a_file_that_come_apart_are_refused() -> None:
    rows = [
        Row(file, TWO_MIB, page, page + 1, ANN) for page, file in enumerate((FILE, OTHER, FILE))
    ]
    with pytest.raises(DamagedRows):
        ChargeList.from_rows(rows)
