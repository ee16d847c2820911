"""Proposal: a changed quota against all other quotas. test_quotas.py has the decisions."""

from __future__ import annotations

from typing import Any

import pytest

from hugetlb_quota.admission.proposal import Proposal, selector_fault
from hugetlb_quota.kube.quotas import QuotaObject
from tests.unit.admission.fake_api import quota

Json = dict[str, Any]
ALL: Json = {}
NOBODY: Json = {
    "matchLabels": {"a": "x"},
    "matchExpressions": [{"key": "a", "operator": "DoesNotExist"}],
}
#: The labels of each namespace.
LABELS = {"app": {"team": "a"}, "web": {"team": "b"}}


def made(name: str, mib: int | None = None, parent: str | None = None, **more: Any) -> QuotaObject:
    """A quota with a limit of ``mib`` MiB; ``used`` of ``more`` is charged by pods, in MiB."""
    hard = {} if mib is None else {"hugepages-2Mi": f"{mib}Mi"}
    pods = {"hugepages-2Mi": f"{more.pop('used', 0)}Mi"}
    raw = quota(name, hard, parent=parent, pods=pods, **more)
    raw["metadata"] |= {"uid": f"uid-of-{name}", "resourceVersion": "5"}
    return QuotaObject.from_json(raw)


def proposed(old: QuotaObject | None, new: QuotaObject, *others: QuotaObject) -> Proposal:
    return Proposal(old, new, [*others, *([] if old is None else [old])], LABELS)


def warnings(old: QuotaObject | None, new: QuotaObject, *others: QuotaObject) -> str:
    """The warnings of a change that is allowed."""
    proposal = proposed(old, new, *others)
    assert proposal.refusal() == ""
    return " ".join(proposal.warnings)


def refusal(old: QuotaObject | None, new: QuotaObject, *others: QuotaObject) -> str:
    message = proposed(old, new, *others).refusal()
    assert message
    return message


ROOT = made("db/root", 256)


def test_a_charge_moves_if_a_charged_quota_gets_another_parent() -> None:
    old = made("db/q", 64, "db/root", used=2)
    assert proposed(old, made("db/q", 64, used=2), ROOT).charge_moves
    assert not proposed(old, made("db/q", 32, "db/root", used=2), ROOT).charge_moves
    assert not proposed(made("db/q", 64, "db/root"), made("db/q", 64), ROOT).charge_moves
    assert not proposed(None, made("db/q", 64, used=2), ROOT).charge_moves


def test_the_joined_ancestors_are_those_that_the_quota_does_not_have_yet() -> None:
    others = ROOT, made("db/top", parent="db/root"), made("db/mid", parent="db/top")
    below_root = made("db/q", parent="db/root")
    to_mid = proposed(below_root, made("db/q", parent="db/mid"), *others)
    assert [str(each.key) for each in to_mid.joined()] == ["db/mid", "db/top"]
    to_nowhere = proposed(below_root, made("db/q"), *others)
    assert to_nowhere.joined() == ()


def test_the_forest_has_the_changed_quota_as_it_was_and_as_it_will_be() -> None:
    proposal = proposed(made("db/q", parent="db/root"), made("db/q"), ROOT)
    found = sorted((each.key.name, str(each.parent)) for each in proposal.forest())
    assert found == [("q", "None"), ("q", "db/root"), ("root", "None")]


def test_a_limit_cannot_be_raised_above_the_limit_of_an_ancestor() -> None:
    old, new = made("db/q", 64, "db/root"), made("db/q", 512, "db/root")
    assert "512Mi of hugepages-2Mi is above the 256Mi of db/root" in refusal(old, new, ROOT)


def test_a_limit_above_the_ancestors_does_not_move_to_another_parent() -> None:
    old, new = made("db/q", 512, "db/root"), made("db/q", 512, "db/other")
    assert "above the 128Mi of db/other" in refusal(old, new, ROOT, made("db/other", 128))


def test_a_limit_below_a_childs_limit_may_be_raised_and_not_lowered() -> None:
    child = made("db/child", 512, "db/q")
    raised = warnings(made("db/q", 64), made("db/q", 128), child)
    assert "db/child has 512Mi of hugepages-2Mi, above the 128Mi of db/q" in raised
    lowered = refusal(made("db/q", 64), made("db/q", 32), child)
    assert "leave db/child with 512Mi of hugepages-2Mi, above the 32Mi of db/q" in lowered


def test_a_child_that_a_wider_selector_attaches_may_have_a_higher_limit() -> None:
    old, new = made("db/q", 64), made("db/q", 64, children=ALL)
    assert "app/child has 512Mi" in warnings(old, new, made("app/child", 512, "db/q"))


def test_a_stored_cycle_can_be_broken() -> None:
    old, new = made("db/q", 64, "db/child"), made("db/q", 64)
    assert "db/child has 128Mi" in warnings(old, new, made("db/child", 128, "db/q"))


def test_an_uncharged_quota_may_wait_for_a_new_parent() -> None:
    old, new = made("db/q", 64, "db/root"), made("db/q", 64, "db/later")
    assert "db/q is not attached yet" in warnings(old, new, ROOT)


def test_only_a_changed_limit_below_the_use_is_a_warning() -> None:
    old = made("db/q", 64, used=32)
    assert "now limits hugepages-2Mi to 30Mi" in warnings(old, made("db/q", 30, used=32))
    assert warnings(old, made("db/q", 32, used=32)) == ""
    above = made("db/q", 30, used=32)
    assert warnings(above, made("db/q", 30, used=32, children=ALL)) == ""


def test_a_wider_selector_of_a_waiting_quota_warns_of_its_own_room() -> None:
    old = made("db/q", 64, "db/later", selector={"matchLabels": {"a": "x"}})
    text = warnings(old, made("db/q", 64, "db/later"), ROOT)
    assert "db/q has room for 64Mi of hugepages-2Mi. The condition" in text


def test_only_the_children_that_are_no_longer_selected_are_lost() -> None:
    children = [made("app/one", parent="db/q"), made("web/two", parent="db/q")]
    narrow = {"matchLabels": {"team": "a"}}
    text = warnings(made("db/q", children=ALL), made("db/q", children=narrow), *children)
    assert "no longer be the parent of web/two, and" in text


def test_a_child_that_was_not_selected_before_is_not_lost_again() -> None:
    """The child is still charged to the quota, because it had been attached."""
    child = made("web/two", parent="db/q", attached_to="db/q")
    narrow = {"matchLabels": {"team": "a"}}
    assert warnings(made("db/q", children=narrow), made("db/q"), child) == ""


@pytest.mark.parametrize("field", ["selector", "children"])
def test_an_unchanged_selector_that_nothing_can_match_is_not_checked(field: str) -> None:
    fields: Json = {field: NOBODY}
    old, new = made("db/q", 64, **fields), made("db/q", 32, **fields)
    assert selector_fault(old, new) == ""
    assert "because it requires the label a and its absence" in selector_fault(None, new)
    assert selector_fault(made("db/q", 64), new) == selector_fault(None, new)
