"""Selectors mean what they mean in Kubernetes."""

import pytest

from hugetlb_quota.accounting.selector import Selector


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


def test_all_requirements_must_hold_and_none_matches_everything() -> None:
    both = Selector.from_json(
        {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}
    )
    assert both.matches({"a": "1", "b": ""})
    assert not both.matches({"a": "1"})
    assert not both.matches({"b": ""})
    assert Selector.from_json({}).matches({"x": "y"})
    assert Selector.from_json(None).matches({})
