"""Label selectors with the meaning of apimachinery's ``LabelSelectorAsSelector``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

#: A label's name or value, and the prefix of a name (apimachinery/pkg/util/validation).
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_DOMAIN: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_LONGEST_PREFIX: Final = 253

Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether ``labels`` match; as in Kubernetes, NotIn matches an absent label."""
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
    """A list of requirements that must all match; an empty list matches everything."""

    requirements: tuple[Requirement, ...] = field(default=())

    @classmethod
    def from_json(cls, selector: Mapping[str, Any] | None) -> Selector:
        """From a ``LabelSelector`` in JSON that its schema has accepted."""
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

    @property
    def keys(self) -> frozenset[str]:
        """The keys of the labels that the requirements name."""
        return frozenset(requirement.key for requirement in self.requirements)

    def fault(self) -> str:
        """Why the selector is invalid or matches no labels; "" if it matches some."""
        for requirement in self.requirements:
            if why := _fault(requirement):
                return why
        return next(filter(None, map(self._contradiction, sorted(self.keys))), "")

    def _contradiction(self, key: str) -> str:
        """Why no value of the label ``key``, nor its absence, matches; "" if one does.

        Only requirements on the same label can contradict each other.
        """
        mine = [each for each in self.requirements if each.key == key]
        needed = [each for each in mine if each.operator in ("In", "Exists")]
        if not needed:
            return ""  # a pod without the label matches
        if any(each.operator == "DoesNotExist" for each in mine):
            return f"it requires the label {key} and its absence."
        wanted = [each.values for each in mine if each.operator == "In"]
        if not wanted:
            return ""  # NotIn never excludes all values
        common = frozenset.intersection(*wanted)
        if not common:
            return f"it requires two values of the label {key} at once."
        excluded = [each.values for each in mine if each.operator == "NotIn"]
        if common <= frozenset[str]().union(*excluded):
            return f"it excludes every value of the label {key} that it allows."
        return ""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether ``labels`` match every requirement."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def may_match(self, labels: Mapping[str, str]) -> bool:
        """Whether ``labels`` and further, unknown labels may match every requirement."""
        return all(each.key not in labels or each.matches(labels) for each in self.requirements)


def _fault(requirement: Requirement) -> str:
    key, values = requirement.key, requirement.values
    if not _is_key(key):
        return f"{key!r} is not a valid label name."
    if requirement.operator in ("In", "NotIn"):
        if not values:
            return f"{requirement.operator} of the label {key} needs values."
        wrong = sorted(value for value in values if value and not _LABEL.fullmatch(value))
        return f"{wrong[0]!r} is not a valid value of the label {key}." if wrong else ""
    return f"{requirement.operator} of the label {key} takes no values." if values else ""


def _is_key(text: str) -> bool:
    prefix, slash, name = text.rpartition("/")
    domains = prefix.split(".") if slash and len(prefix) <= _LONGEST_PREFIX else [""]
    if slash and not all(map(_DOMAIN.fullmatch, domains)):
        return False
    return _LABEL.fullmatch(name) is not None
