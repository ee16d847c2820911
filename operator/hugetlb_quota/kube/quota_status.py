"""Read and render the fields of the status of a HugeTLBQuota.

The status is read leniently: a field that can't be read is ignored until its owner writes it
again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.api.model import Condition, Model, read_leniently
from hugetlb_quota.api.quota import RetainedFileStatus
from hugetlb_quota.page_size import PageSize

_T = TypeVar("_T")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ControllerFields:
    """The controller's fields of the status, as read; None for a charge that can't be read."""

    pods: Charge | None
    retained: Charge | None
    retained_files: tuple[RetainedFile, ...]
    conditions: tuple[Condition, ...]


NOTHING_READ: Final = ControllerFields(Charge(), Charge(), (), ())
_NAMES: Final = ("pods", "retained", "retainedFiles", "conditions")


def read_controller_fields(stored: Mapping[str, Any]) -> ControllerFields:
    """The controller's fields of a stored status."""
    return ControllerFields(
        pods=_read_charge(stored.get("pods")),
        retained=_read_charge(stored.get("retained")),
        retained_files=_each(stored.get("retainedFiles"), _read_file),
        conditions=_each(stored.get("conditions"), _read_condition),
    )


def has_same_controller_fields(stored: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Whether the controller's fields of two stored statuses are equal."""
    return all(stored.get(name) == earlier.get(name) for name in _NAMES)


def read_attached_to(stored: Mapping[str, Any]) -> QuotaKey | None:
    """The parent that the stored status names, if any."""
    text = stored.get("attachedTo")
    return QuotaKey.parse(text) if isinstance(text, str) and text else None


def read_integer(value: Any) -> int:
    """``value`` as an integer; 0 if it is not one."""
    try:
        return int(value or 0)
    except (ValueError, TypeError):
        return 0


def summary(used: Charge, hard: Charge) -> str:
    """Use and limit of each page size: ``2Mi: 64Mi/256Mi, 1Gi: 0/8Gi``."""
    return ", ".join(
        f"{size}: {quantity.render(amount)}"
        f"/{quantity.render(hard[size]) if size in hard else 'unlimited'}"
        for size, amount in used.items()
    )


def render_models(models: tuple[Model, ...]) -> list[Json]:
    """The models as JSON."""
    return [each.to_json() for each in models]


def render_files(files: tuple[RetainedFile, ...]) -> list[Json]:
    """The field ``retainedFiles`` as JSON."""
    return render_models(
        tuple(
            RetainedFileStatus(
                node=file.node,
                path=file.path,
                pod=file.pod,
                page_size=file.size.resource,
                charged=quantity.render(file.charged),
            )
            for file in files
        )
    )


def _read_charge(resources: Any) -> Charge | None:
    """The charge, or None if it can't be read."""
    try:
        return Charge.from_sums(resources or {})
    except (ValueError, TypeError, AttributeError):
        return None


def _each(items: Any, read: Callable[[Any], _T]) -> tuple[_T, ...]:
    """The items that can be read."""
    found = []
    for item in items if isinstance(items, list) else ():
        try:
            found.append(read(item))
        except ValueError:  # the controller owns the field and will write it again
            continue
    return tuple(found)


def _read_condition(raw: Any) -> Condition:
    try:
        return _shared_condition(tuple(raw.items()))
    except (AttributeError, TypeError):  # not an object, or a value that has no hash
        return read_leniently(Condition, raw)


@lru_cache(maxsize=4096)
def _shared_condition(fields: tuple[tuple[str, Any], ...]) -> Condition:
    """One object for equal conditions: many quotas have equal conditions."""
    return read_leniently(Condition, dict(fields))


def _read_file(raw: Any) -> RetainedFile:
    status = read_leniently(RetainedFileStatus, raw)
    return RetainedFile(
        node=status.node,
        path=status.path,
        pod=status.pod,
        size=PageSize.from_resource(status.page_size),
        charged=quantity.parse_sum(status.charged),
        quotas=frozenset(),  # the status does not say which quotas are charged directly
    )
