"""Chains and broken links."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.accounting.forest import (
    LONGEST_CHAIN,
    Cycle,
    Detached,
    ForeignParent,
    Forest,
    ParentNotFound,
    Quota,
    QuotaKey,
)
from hugetlb_quota.accounting.selector import Selector


def key(name: str) -> QuotaKey:
    namespace, _, name = name.rpartition("/")
    return QuotaKey(namespace or "ns", name)


def quota(name: str, parent: str | None = None, children: Selector | None = None) -> Quota:
    return Quota(key(name), parent=key(parent) if parent else None, child_namespaces=children)


def names(quotas: tuple[Quota, ...]) -> list[str]:
    return [quota.key.name for quota in quotas]


def test_a_chain_goes_from_the_leaf_to_the_root() -> None:
    forest = Forest([quota("root"), quota("mid", "root"), quota("leaf", "mid")], {})
    assert names(forest.chain(key("leaf"))) == ["leaf", "mid", "root"]
    assert names(forest.children(key("root"))) == ["mid"]


def test_a_missing_parent_is_named_with_the_quota_that_names_it() -> None:
    forest = Forest([quota("mid", "gone"), quota("leaf", "mid")], {})
    with pytest.raises(ParentNotFound, match=r"ns/mid names the parent ns/gone"):
        forest.chain(key("leaf"))
    assert names(forest.attached(key("leaf"))) == ["leaf", "mid"]


def test_a_cycle_is_shown_as_a_path() -> None:
    forest = Forest([quota("a", "b"), quota("b", "a")], {})
    with pytest.raises(Cycle, match="lead in a cycle: ns/a -> ns/b -> ns/a;"):
        forest.chain(key("a"))
    assert names(forest.attached(key("a"))) == ["a", "b"]


def test_a_quota_that_is_its_own_parent_is_a_cycle() -> None:
    forest = Forest([quota("a", "a")], {})
    with pytest.raises(Cycle, match="ns/a -> ns/a"):
        forest.chain(key("a"))


def held(attached_to: str | None, *, selects: bool = False, parent: str = "top/a") -> Forest:
    """mid/leaf below mid/m. ``selects``: whether top/a lets the namespace of mid/m attach."""
    selector = Selector.from_json({"matchLabels": {"tenant": "acme"}})
    middle = replace(
        quota("mid/m", parent), attached_to=None if attached_to is None else key(attached_to)
    )
    forest = [quota("top/a", None, selector), quota("top/b", None, Selector()), middle]
    labels = {"mid": {"tenant": "acme"}} if selects else {}
    return Forest([*forest, quota("mid/leaf", "mid/m")], labels)


def test_a_charged_quota_stays_attached_when_it_may_no_longer_attach() -> None:
    forest = held("top/a")
    assert names(forest.attached(key("mid/leaf"))) == ["leaf", "m", "a"]
    assert names(forest.children(key("top/a"))) == ["m"]
    with pytest.raises(ForeignParent, match="top/a does not let quotas of namespace mid"):
        forest.chain(key("mid/leaf"))
    assert names(held(None).attached(key("mid/leaf"))) == ["leaf", "m"]


def test_a_new_parent_that_refuses_leaves_the_charges_with_the_former() -> None:
    forest = held("top/b", parent="top/a")
    assert names(forest.attached(key("mid/leaf"))) == ["leaf", "m", "b"]
    assert names(held("top/b", parent="top/a", selects=True).attached(key("mid/m"))) == ["m", "a"]
    assert names(held("top/a", parent="top/b").attached(key("mid/m"))) == ["m", "b"]


def test_an_attachment_is_forgotten_when_nothing_is_charged_through_it() -> None:
    middle = key("mid/m")
    for charged, attached_to, selects, remembered in (
        (True, "top/a", False, "top/a"),
        (False, "top/a", False, None),
        (False, None, True, "top/a"),
        (True, "top/gone", False, None),
        (True, None, False, None),
    ):
        forest = held(attached_to, selects=selects)
        attachment = forest.attachment(forest[middle], charged=charged)
        assert attachment == (None if remembered is None else key(remembered))
    root = replace(quota("mid/m"), attached_to=key("top/a"))
    assert Forest([root, quota("top/a")], {}).attachment(root, charged=True) is None


def test_a_chain_has_at_most_the_longest_length() -> None:
    levels = [quota("q0")] + [quota(f"q{i}", f"q{i - 1}") for i in range(1, LONGEST_CHAIN + 1)]
    forest = Forest(levels, {})
    assert len(forest.chain(key(f"q{LONGEST_CHAIN - 1}"))) == LONGEST_CHAIN
    with pytest.raises(Cycle, match=f"lead over more than {LONGEST_CHAIN} levels: ns/q16 ->"):
        forest.chain(key(f"q{LONGEST_CHAIN}"))


def test_another_namespace_attaches_only_if_its_labels_match() -> None:
    acme = Selector.from_json({"matchLabels": {"tenant": "acme"}})
    quotas = [quota("tenants/acme", children=acme), quota("db/main", "tenants/acme")]
    assert len(Forest(quotas, {"db": {"tenant": "acme"}}).chain(key("db/main"))) == 2
    with pytest.raises(ForeignParent, match="does not let quotas of namespace db attach"):
        Forest(quotas, {"db": {"tenant": "other"}}).chain(key("db/main"))
    with pytest.raises(ForeignParent):
        Forest([quota("tenants/acme"), quotas[1]], {"db": {"tenant": "acme"}}).chain(key("db/main"))


def test_the_union_of_chains_has_every_quota_once_and_before_its_ancestors() -> None:
    forest = Forest(
        [quota("root"), quota("mid", "root"), quota("leaf", "mid"), quota("other", "root")], {}
    )
    union = names(forest.union_of_chains([key("other"), key("leaf"), key("mid")]))
    assert sorted(union) == ["leaf", "mid", "other", "root"]
    assert union.index("leaf") < union.index("mid") < union.index("root")
    assert union.index("other") < union.index("root")


def test_a_pod_is_governed_by_the_quotas_of_its_namespace_that_select_it() -> None:
    gold = Quota(key("gold"), pod_selector=Selector.from_json({"matchLabels": {"class": "gold"}}))
    forest = Forest([gold, quota("all"), quota("elsewhere/all")], {})
    assert names(forest.selecting("ns", {"class": "gold"})) == ["gold", "all"]
    assert names(forest.selecting("ns", {})) == ["all"]


@given(st.lists(st.integers(min_value=-1, max_value=11), min_size=12, max_size=12))
def test_a_chain_ends_or_raises_for_any_parents(parents: list[int]) -> None:
    forest = Forest([quota(f"q{i}", None if p < 0 else f"q{p}") for i, p in enumerate(parents)], {})
    for each in forest:
        attached = names(forest.attached(each.key))
        assert len(set(attached)) == len(attached)
        try:
            chain = forest.chain(each.key)
        except Detached:
            continue
        assert names(chain) == attached
        assert chain[-1].parent is None
