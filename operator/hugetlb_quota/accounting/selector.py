"""Label selectors, as apimachinery's ``LabelSelectorAsSelector`` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One expression over one label."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether ``labels`` meet it; as in Kubernetes, NotIn holds for an absent label."""
        match self.operator:
            case "In":
                return self.key in labels and labels[self.key] in self.values
            case "NotIn":
                return self.key not in labels or labels[self.key] not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


@dataclass(frozen=True, slots=True)
class Selector:
    """All requirements together; none at all matches everything."""

    requirements: tuple[Requirement, ...] = field(default=())

    @classmethod
    def from_json(cls, selector: Mapping[str, Any] | None) -> Selector:
        """From a ``LabelSelector`` in JSON, one that its schema has accepted."""
        selector = selector or {}
        labels = (selector.get("matchLabels") or {}).items()
        expressions = selector.get("matchExpressions") or ()
        return cls(
            tuple(Requirement(key, "In", frozenset([value])) for key, value in labels)
            + tuple(
                Requirement(each["key"], each["operator"], frozenset(each.get("values") or ()))
                for each in expressions
            )
        )

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether ``labels`` meet every requirement."""
        return all(requirement.matches(labels) for requirement in self.requirements)
