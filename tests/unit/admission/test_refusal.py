from __future__ import annotations

from datetime import UTC, datetime

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter, Shortfall
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.admission import refusal
from hugetlb_quota.page_size import PageSize

MIB = 1024**2
GIB = 1024**3
SMALL, LARGE = PageSize(2 * MIB), PageSize(GIB)
TENANT = QuotaKey("acme", "tenant")
LEAF = QuotaKey("acme-db", "leaf")


def short(
    quota: QuotaKey,
    requested: int,
    pods: int,
    reserved: int,
    hard: int,
    size: PageSize = SMALL,
    retained: int = 0,
) -> Shortfall:
    return Shortfall(
        quota=quota,
        size=size,
        requested=requested * MIB,
        pods=pods * MIB,
        retained=retained * MIB,
        reserved=reserved * MIB,
        hard=hard * MIB,
    )


def test_over_one_quota_it_tells_every_number_and_what_to_do() -> None:
    assert refusal.over_quota("acme-db/pg-0", [short(TENANT, 64, 192, 32, 256)]) == (
        "pod acme-db/pg-0 asks for 64Mi of hugepages-2Mi, but HugeTLBQuota acme/tenant has room"
        " for 32Mi: 224Mi of 256Mi is used (192Mi by pods, 32Mi reserved for pods being created);"
        " 32Mi is missing. Ask for less, stop pods that use huge pages under acme/tenant, or have"
        " its limit raised."
    )


def test_what_pods_left_in_files_is_told_apart() -> None:
    told = refusal.over_quota("a/p", [short(TENANT, 64, 128, 0, 256, retained=96)])
    assert "(128Mi by pods, 96Mi retained in files of pods that are gone)" in told


def test_it_tells_which_files_hold_what_is_retained_and_to_truncate_them() -> None:
    file = RetainedFile("worker-1", "/dev/hugepages/rte_0", "db/old", SMALL, 96 * MIB, frozenset())
    told = refusal.over_quota(
        "a/p", [short(TENANT, 64, 128, 0, 256, retained=96)], {TENANT: [file]}
    )
    assert (
        "Retained in /dev/hugepages/rte_0 on worker-1 (96Mi by pod db/old). Ask for less,"
        " truncate or remove files of pods that are gone, stop pods" in told
    )


def test_what_is_held_for_want_of_a_report_is_told_once() -> None:
    sentence = "64Mi of an ended pod stays charged."
    shorts = [short(TENANT, 64, 256, 0, 256)]
    told = refusal.over_quota("a/p", shorts, {}, {TENANT: sentence, QuotaKey("b", "c"): "No."})
    assert f"64Mi is missing. {sentence} Ask for less," in told
    assert "No." not in told


def test_an_empty_quota_tells_of_no_users() -> None:
    told = refusal.over_quota("a/p", [short(TENANT, 64, 0, 0, 32)])
    assert "has room for 32Mi: 0 of 32Mi is used; 32Mi is missing." in told


def test_a_quota_used_beyond_its_limit_has_no_room() -> None:
    told = refusal.over_quota("a/p", [short(TENANT, 64, 512, 0, 256)])
    assert "has no room: 512Mi of 256Mi is used (512Mi by pods); 320Mi is missing" in told


def test_every_quota_that_refuses_is_named() -> None:
    told = refusal.over_quota("a/p", [short(LEAF, 64, 0, 32, 64), short(TENANT, 64, 64, 0, 64)])
    assert "HugeTLBQuota acme-db/leaf has room for 32Mi" in told
    assert ", and HugeTLBQuota acme/tenant has no room" in told
    assert told.endswith("under acme-db/leaf, acme/tenant, or have their limits raised.")


def test_each_size_is_told_apart() -> None:
    told = refusal.over_quota(
        "a/p", [short(LEAF, 1024, 0, 0, 0, LARGE), short(LEAF, 64, 64, 0, 64)]
    )
    assert told.startswith("pod a/p asks for 64Mi of hugepages-2Mi, but HugeTLBQuota acme-db/leaf")
    assert (
        "; and for 1Gi of hugepages-1Gi, but HugeTLBQuota acme-db/leaf has no room: 0 of 0" in told
    )
    assert "under acme-db/leaf, or have its limit raised." in told


def test_many_long_names_stay_within_bounds_and_the_nearest_come_first() -> None:
    quotas = [QuotaKey("n" * 63, f"{index:03}" + "q" * 250) for index in range(48)]
    told = refusal.over_quota("a/p", [short(each, 64, 0, 0, 32) for each in quotas])
    assert len(told) <= refusal.LONGEST
    assert str(quotas[0]) in told


def test_deleting_while_charged_names_what_is_charged() -> None:
    held = Reservation("u", "acme-db/pg-0", Charge({SMALL: 64 * MIB}), datetime.now(UTC))
    counter = Counter(
        TENANT, Charge({SMALL: GIB}), Charge({SMALL: 192 * MIB}), reservations=(held,)
    )
    told = refusal.charged_delete(counter)
    assert "HugeTLBQuota acme/tenant can't be deleted" in told
    assert "256Mi of hugepages-2Mi, of which 64Mi of hugepages-2Mi in 1 reservation" in told
    assert "(acme-db/pg-0)" in told
