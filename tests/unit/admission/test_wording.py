"""The parts that several sentences share: amounts, lists, and what is charged to a quota."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter, Shortfall
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.admission.wording import (
    LONGEST,
    amounts,
    bounded,
    charged,
    listed,
    names,
    no_room,
    retained_files,
)
from hugetlb_quota.page_size import PageSize

MIB, GIB = 1024**2, 1024**3
SMALL, LARGE = PageSize(2 * MIB), PageSize(GIB)
TENANT = QuotaKey("acme", "tenant")
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
#: A pod requests 256 MiB. Pods use 128 of the 256 MiB of acme/tenant.
SHORT = Shortfall(
    quota=TENANT,
    size=SMALL,
    requested=256 * MIB,
    pods=128 * MIB,
    retained=0,
    reserved=0,
    hard=256 * MIB,
)


def test_a_quota_without_enough_room_has_all_numbers() -> None:
    assert no_room(SHORT) == (
        "HugeTLBQuota acme/tenant has room for 128Mi: 128Mi of 256Mi is used (128Mi by pods);"
        " 128Mi is missing"
    )


def test_pods_retained_pages_and_reservations_are_separate_numbers() -> None:
    assert (
        "224Mi of 256Mi is used (128Mi by pods, 64Mi retained in files of pods that are gone, 32Mi"
        " reserved for pods being created); 224Mi is missing"
    ) in no_room(replace(SHORT, retained=64 * MIB, reserved=32 * MIB))


def test_an_empty_quota_has_no_list_of_charges() -> None:
    text = no_room(replace(SHORT, pods=0, hard=32 * MIB))
    assert "has room for 32Mi: 0 of 32Mi is used; 224Mi is missing" in text


@pytest.mark.parametrize(("used", "missing"), [(512, 512), (256, 256)])
def test_a_quota_used_up_to_its_limit_or_above_has_no_room(used: int, missing: int) -> None:
    text = no_room(replace(SHORT, pods=used * MIB))
    assert f"has no room: {used}Mi of 256Mi is used ({used}Mi by pods); {missing}Mi is" in text


def test_a_retained_file_is_listed_once_with_its_node_and_pod() -> None:
    first = RetainedFile("n1", "/mnt/a", "db/old", SMALL, 96 * MIB, frozenset())
    second = replace(first, node="n2", charged=2 * MIB)
    assert retained_files([first, second, first]) == (
        "/mnt/a on n1 (96Mi by pod db/old), /mnt/a on n2 (2Mi by pod db/old)"
    )


def reserved(number: int) -> Reservation:
    return Reservation(f"u{number}", f"db/p{number}", Charge({SMALL: 2 * MIB}), NOW)


def counter(
    pods: Charge = NOTHING, retained: Charge = NOTHING, *, reservations: int = 0
) -> Counter:
    held = tuple(reserved(number) for number in range(reservations))
    return Counter(TENANT, Charge({SMALL: GIB}), pods, retained, held)


def test_an_uncharged_quota_holds_nothing() -> None:
    assert charged(counter()) == "nothing"


def test_retained_and_reserved_charges_are_named_as_parts_of_the_whole() -> None:
    pods, left = Charge({SMALL: 64 * MIB}), Charge({SMALL: 8 * MIB})
    assert charged(counter(pods=pods)) == "64Mi of hugepages-2Mi"
    assert charged(counter(pods=pods, retained=left, reservations=1)) == (
        "74Mi of hugepages-2Mi, including 8Mi of hugepages-2Mi retained, including 2Mi of"
        " hugepages-2Mi in 1 reservation (db/p0)"
    )
    assert "4Mi of hugepages-2Mi in 2 reservations (db/p0, db/p1)" in charged(
        counter(reservations=2)
    )


def test_amounts_leave_out_sizes_with_nothing() -> None:
    both = Charge({LARGE: GIB, SMALL: 16 * MIB})
    assert amounts(both) == "16Mi of hugepages-2Mi, 1Gi of hugepages-1Gi"
    assert amounts(Charge({SMALL: 0, LARGE: GIB})) == "1Gi of hugepages-1Gi"
    assert amounts(Charge()) == ""


@pytest.mark.parametrize(("count", "end"), [(1, "q0"), (16, "q15"), (17, "q15 and 1 more")])
def test_a_list_shows_the_first_items_and_counts_the_others(count: int, end: str) -> None:
    items = [f"q{number}" for number in range(count)]
    assert listed(items).startswith("q0")
    assert listed(items).endswith(end)


def test_the_names_of_quotas_are_listed() -> None:
    assert names(iter([TENANT, QuotaKey("db", "leaf")])) == "acme/tenant, db/leaf"


def test_only_a_message_beyond_the_bound_is_cut() -> None:
    assert bounded("x" * LONGEST) == "x" * LONGEST
    assert bounded("x" * (LONGEST + 1)) == "x" * (LONGEST - 3) + "..."
