"""The ledger changes its sums by the difference between an old and a new count."""

from __future__ import annotations

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import ChargedPod, Identities, Retained
from hugetlb_quota.controller.counting.count import Count, Held
from hugetlb_quota.controller.counting.ledger import Ledger

ROOT, LEFT, RIGHT = (QuotaKey("ns", name) for name in ("root", "left", "right"))
FOREST = Forest(
    [Quota(ROOT, uid="of-root"), *(Quota(key, parent=ROOT, uid=key.name) for key in (LEFT, RIGHT))],
    {},
)


def pages(amount: str) -> Charge:
    return Charge.from_resources({"hugepages-2Mi": amount})


def pod(uid: str, amount: str, *quotas: QuotaKey) -> ChargedPod:
    return ChargedPod(uid, pages(amount), frozenset(quotas), version=7)


def count(
    *pods: ChargedPod, held: tuple[Held, ...] = (), retained: tuple[Retained, ...] = ()
) -> Count:
    return Count(pods, held, retained, (), Identities(), frozenset())


def ledger_of(*pods: ChargedPod) -> Ledger:
    ledger = Ledger()
    ledger.use_forest(FOREST)
    ledger.update(None, count(*pods))
    ledger.pop_changed()
    return ledger


def test_a_pod_of_two_quotas_is_charged_to_their_parent_once() -> None:
    ledger = ledger_of(pod("a", "4Mi", LEFT, RIGHT))
    assert [ledger.tally(key).pods for key in (ROOT, LEFT, RIGHT)] == [pages("4Mi")] * 3


def test_an_update_replaces_only_the_given_uids() -> None:
    ledger = ledger_of(pod("a", "4Mi", LEFT), pod("b", "2Mi", RIGHT))
    ledger.update({"a"}, count(retained=(Retained("a", pages("2Mi"), frozenset({LEFT})),)))
    assert ledger.pop_changed() == {ROOT, LEFT}
    assert ledger.pop_changed() == set()
    assert (ledger.tally(LEFT).pods, ledger.tally(LEFT).retained) == (NOTHING, pages("2Mi"))
    assert (ledger.tally(ROOT).pods, ledger.tally(ROOT).retained) == (pages("2Mi"), pages("2Mi"))


def test_the_same_result_changes_no_quota() -> None:
    ledger = ledger_of(pod("a", "4Mi", LEFT))
    ledger.update({"a"}, count(pod("a", "4Mi", LEFT)))
    assert ledger.pop_changed() == set()


def test_charges_follow_a_new_forest() -> None:
    ledger = ledger_of(pod("a", "4Mi", LEFT))
    ledger.use_forest(Forest([Quota(ROOT), Quota(LEFT)], {}))
    assert ledger.tally(ROOT).pods == NOTHING
    assert ledger.tally(LEFT).pods == pages("4Mi")
    assert ROOT in ledger.pop_changed()


def test_held_pods_are_held_on_the_whole_chain() -> None:
    held = Held(pod("a", "4Mi", LEFT), frozenset({"node"}))
    ledger = ledger_of()
    ledger.update({"a"}, count(held.pod, held=(held,)))
    assert ledger.quotas_with_held() == {ROOT, LEFT}
    assert ledger.held(ROOT) == (held,)


def test_a_tally_shows_the_versions_of_pods_and_of_quotas_below() -> None:
    ledger = ledger_of(pod("a", "4Mi", LEFT))
    generation = FOREST[LEFT].generation
    assert dict(ledger.tally(ROOT).seen) == {"a": 7, "left": generation, "right": generation}
    assert dict(ledger.tally(RIGHT).seen) == {}


def test_differences_name_each_quota_with_both_charges() -> None:
    mine, other = ledger_of(pod("a", "4Mi", LEFT)), ledger_of(pod("a", "2Mi", LEFT))
    assert [sentence.partition(":")[0] for sentence in mine.differences(other)] == [
        "HugeTLBQuota ns/left is charged {'hugepages-2Mi'",
        "HugeTLBQuota ns/root is charged {'hugepages-2Mi'",
    ]
    assert mine.differences(ledger_of(pod("a", "4Mi", LEFT))) == []
