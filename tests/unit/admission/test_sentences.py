"""The sentences that refuse a pod or a quota."""

from __future__ import annotations

from datetime import UTC, datetime

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter, Shortfall
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.admission import quota_sentences, request_sentences
from hugetlb_quota.admission.pod_sentences import over_quota
from hugetlb_quota.admission.wording import LONGEST
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


def test_a_refusal_has_all_numbers_and_says_what_to_do() -> None:
    assert over_quota("acme-db/pg-0", [short(TENANT, 64, 192, 32, 256)]) == (
        "pod acme-db/pg-0 asks for 64Mi of hugepages-2Mi, but HugeTLBQuota acme/tenant has room"
        " for 32Mi: 224Mi of 256Mi is used (192Mi by pods, 32Mi reserved for pods being created);"
        " 32Mi is missing. Ask for less, stop pods that use huge pages under acme/tenant, or have"
        " its limit raised."
    )


def test_a_refusal_names_the_retained_files_and_says_to_truncate_them() -> None:
    file = RetainedFile("worker-1", "/dev/hugepages/rte_0", "db/old", SMALL, 96 * MIB, frozenset())
    message = over_quota("a/p", [short(TENANT, 64, 128, 0, 256, retained=96)], {TENANT: [file]})
    assert (
        "Retained in /dev/hugepages/rte_0 on worker-1 (96Mi by pod db/old). Ask for less,"
        " truncate or remove files of pods that are gone, stop pods" in message
    )


def test_a_charge_that_waits_for_a_report_is_named_once() -> None:
    sentence = "64Mi of an ended pod stays charged."
    shorts = [short(TENANT, 64, 256, 0, 256)]
    message = over_quota("a/p", shorts, {}, {TENANT: sentence, QuotaKey("b", "c"): "No."})
    assert f"64Mi is missing. {sentence} Ask for less," in message
    assert "No." not in message


def test_a_refusal_names_every_quota_that_refuses() -> None:
    message = over_quota("a/p", [short(LEAF, 64, 0, 32, 64), short(TENANT, 64, 64, 0, 64)])
    assert "HugeTLBQuota acme-db/leaf has room for 32Mi" in message
    assert ", and HugeTLBQuota acme/tenant has no room" in message
    assert message.endswith("under acme-db/leaf, acme/tenant, or have their limits raised.")


def test_each_page_size_has_its_own_numbers() -> None:
    message = over_quota("a/p", [short(LEAF, 1024, 0, 0, 0, LARGE), short(LEAF, 64, 64, 0, 64)])
    assert message.startswith(
        "pod a/p asks for 64Mi of hugepages-2Mi, but HugeTLBQuota acme-db/leaf"
    )
    assert (
        "; and for 1Gi of hugepages-1Gi, but HugeTLBQuota acme-db/leaf has no room: 0 of 0"
        in message
    )
    assert "under acme-db/leaf, or have its limit raised." in message


def test_many_long_names_are_cut_and_the_first_quotas_stay() -> None:
    quotas = [QuotaKey("n" * 63, f"{index:03}" + "q" * 250) for index in range(48)]
    message = over_quota("a/p", [short(each, 64, 0, 0, 32) for each in quotas])
    assert len(message) <= LONGEST
    assert str(quotas[0]) in message


def test_the_refusal_to_delete_a_charged_quota_names_the_charges() -> None:
    held = Reservation("u", "acme-db/pg-0", Charge({SMALL: 64 * MIB}), datetime.now(UTC))
    counter = Counter(
        TENANT, Charge({SMALL: GIB}), Charge({SMALL: 192 * MIB}), reservations=(held,)
    )
    message = quota_sentences.charged_delete(counter)
    assert "HugeTLBQuota acme/tenant can't be deleted" in message
    assert "256Mi of hugepages-2Mi, including 64Mi of hugepages-2Mi in 1 reservation" in message
    assert "(acme-db/pg-0)" in message


def test_the_refusal_to_delete_says_what_to_do_about_each_kind_of_charge() -> None:
    pods, left = Charge({SMALL: 64 * MIB}), Charge({SMALL: 8 * MIB})
    by_pods = quota_sentences.charged_delete(Counter(TENANT, Charge(), pods))
    assert by_pods.endswith("To delete it, stop the pods that use them.")
    file = RetainedFile("n", "/mnt/a", "db/old", SMALL, 8 * MIB, frozenset())
    retained = quota_sentences.charged_delete(Counter(TENANT, Charge(), retained=left), [file])
    assert (
        "retained. Retained in /mnt/a on n (8Mi by pod db/old). To delete it, truncate" in retained
    )
    assert "stop the pods" not in retained
    both = quota_sentences.charged_delete(Counter(TENANT, Charge(), pods, left))
    assert "stop the pods that use them; and truncate or remove the files, or set" in both
    assert "Retained in" not in both
    assert "A reservation ends" not in both


def test_the_warning_about_a_wider_selector_shows_no_negative_room() -> None:
    full = Counter(LEAF, Charge({SMALL: 64 * MIB}), Charge({SMALL: 128 * MIB}))
    text = quota_sentences.selects_more(LEAF, [full, Counter(TENANT, Charge({LARGE: GIB}))])
    assert (
        "acme-db/leaf has room for 0 of hugepages-2Mi, acme/tenant has room for 1Gi of"
        " hugepages-1Gi. The condition" in text
    )


def test_the_warning_about_a_deleted_quota_says_who_pays_for_its_files() -> None:
    left = Counter(LEAF, Charge(), retained=Charge({SMALL: 8 * MIB}))
    assert "is charged to HugeTLBQuota acme/tenant" in quota_sentences.reparented(left, TENANT)
    assert "charged to no quota" in quota_sentences.reparented(left, None)


def test_one_quota_and_one_request_have_a_singular() -> None:
    leaf, other = Counter(LEAF, Charge()), Counter(QuotaKey("acme-db", "other"), Charge())
    one = quota_sentences.charged_children(TENANT, [leaf])
    assert "charged to a quota below it:" in one
    assert one.endswith("Delete this quota first, or give it another spec.parentRef.")
    two = quota_sentences.charged_children(TENANT, [leaf, other])
    assert "charged to quotas below it:" in two
    assert two.endswith("Delete these quotas first, or give them another spec.parentRef.")
    lost = quota_sentences.loses_children(TENANT, [LEAF])
    assert lost.endswith("change spec.parentRef of this quota.")
    lost = quota_sentences.loses_children(TENANT, [LEAF, other.quota])
    assert lost.endswith("change spec.parentRef of each of these quotas.")
    busy = quota_sentences.others_under_way(TENANT, [LEAF, other.quota])
    assert "are being changed at the same time" in busy
    assert "1 request already waits for" in request_sentences.overloaded("pod a/p", 1, 30)
    assert "2 requests already wait for" in request_sentences.overloaded("pod a/p", 2, 30)
