"""Selectors have the meaning of Kubernetes' selectors."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.accounting.selector import Requirement, Selector


@pytest.mark.parametrize(
    ("expression", "labels", "matches"),
    [
        ({"operator": "In", "values": ["a", "b"]}, {"k": "a"}, True),
        ({"operator": "In", "values": ["a"]}, {"k": "c"}, False),
        ({"operator": "In", "values": ["a"]}, {}, False),
        ({"operator": "NotIn", "values": ["a"]}, {"k": "a"}, False),
        ({"operator": "NotIn", "values": ["a"]}, {}, True),
        ({"operator": "Exists"}, {"k": ""}, True),
        ({"operator": "Exists"}, {}, False),
        ({"operator": "DoesNotExist"}, {}, True),
        ({"operator": "DoesNotExist"}, {"k": "a"}, False),
    ],
)
def test_each_operator(
    expression: dict[str, object], labels: dict[str, str], matches: bool
) -> None:
    selector = Selector.from_json({"matchExpressions": [{"key": "k", **expression}]})
    assert selector.matches(labels) is matches


def of(*expressions: tuple[str, str, list[str]], **labels: str) -> Selector:
    return Selector.from_json(
        {
            "matchLabels": labels,
            "matchExpressions": [
                {"key": key, "operator": operator, "values": values}
                for key, operator, values in expressions
            ],
        }
    )


@pytest.mark.parametrize(
    ("selector", "fault"),
    [
        (of(("a", "In", [])), "In of the label a needs values"),
        (of(("a", "NotIn", [])), "NotIn of the label a needs values"),
        (of(("a", "Exists", ["x"])), "Exists of the label a takes no values"),
        (of(("a", "DoesNotExist", ["x"])), "DoesNotExist of the label a takes no values"),
        (of(("a", "In", ["x"]), ("a", "NotIn", ["x", "y"])), "excludes every value of the label a"),
        (of(("a", "In", ["x", "y"]), ("a", "In", ["z"])), "two values of the label a at once"),
        (of(("a", "In", ["y"]), a="x"), "two values of the label a at once"),
        (of(("a", "NotIn", ["x"]), a="x"), "excludes every value of the label a"),
        (of(("a", "Exists", []), ("a", "DoesNotExist", [])), "label a and its absence"),
        (of(("a", "DoesNotExist", []), a="x"), "label a and its absence"),
        (of(("a b", "Exists", [])), "'a b' is not a valid label name"),
        (of(("/a", "Exists", [])), "'/a' is not a valid label name"),
        (of(("Example.com/a", "Exists", [])), "not a valid label name"),
        (of((f"{'a' * 254}/a", "Exists", [])), "not a valid label name"),
        (of(("a" * 64, "Exists", [])), "not a valid label name"),
        (of(("", "Exists", [])), "not a valid label name"),
        (of(a="x y"), "'x y' is not a valid value of the label"),
        (of(a="x" * 64), "not a valid value of the label"),
        (of(("a", "NotIn", ["-"])), "'-' is not a valid value of the label"),
    ],
)
def test_a_selector_that_matches_nothing_has_a_fault(selector: Selector, fault: str) -> None:
    assert fault in selector.fault()


OPERATORS = st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"])
EXPRESSIONS = st.lists(
    st.tuples(st.sampled_from("ab"), OPERATORS, st.lists(st.sampled_from("xyz"), min_size=1)),
    max_size=5,
)
#: "w" stands for every value that is not named.
LABELS = [
    {key: value for key, value in (("a", first), ("b", second)) if value is not None}
    for first, second in itertools.product([None, *"wxyz"], repeat=2)
]


@given(EXPRESSIONS)
def test_a_selector_without_fault_matches_something(
    drawn: list[tuple[str, str, list[str]]],
) -> None:
    named = [(key, op, values if op in ("In", "NotIn") else []) for key, op, values in drawn]
    selector = of(*named)
    assert (selector.fault() == "") is any(map(selector.matches, LABELS))


def test_all_requirements_must_match_and_an_empty_selector_matches_everything() -> None:
    both = Selector.from_json(
        {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}
    )
    assert both.matches({"a": "1", "b": ""})
    assert not both.matches({"a": "1"})
    assert not both.matches({"b": ""})
    assert Selector.from_json({}).matches({"x": "y"})
    assert Selector.from_json(None).matches({})


@given(
    requirements=st.lists(
        st.builds(
            Requirement,
            st.sampled_from("ab"),
            st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
            st.frozensets(st.sampled_from("xy"), min_size=1),
        )
    ),
    labels=st.dictionaries(st.sampled_from("ab"), st.sampled_from("xyz")),
    more=st.dictionaries(st.sampled_from("ab"), st.sampled_from("xyz")),
)
def test_may_match_means_that_some_further_labels_match(
    requirements: list[Requirement], labels: dict[str, str], more: dict[str, str]
) -> None:
    selector = Selector(tuple(requirements))
    if selector.matches({**more, **labels}):
        assert selector.may_match(labels)
    if selector.may_match({"a": "z", "b": "z"}):
        assert selector.matches({"a": "z", "b": "z"})  # nothing is open any more
