"""Make the forest's quota of the spec of a HugeTLBQuota.

The spec is read strictly, because an unknown field may matter.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import ValidationError

from hugetlb_quota import duration
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.api.model import LabelSelector
from hugetlb_quota.api.quota import HugeTLBQuotaSpec, RetainedSpec


def read_spec(
    key: QuotaKey, spec: Any, *, uid: str = "", generation: int = 1, terminating: bool = False
) -> Quota:
    """The quota of a spec.

    :raises ValueError: with the errors of all fields in one line, if the spec is invalid.
    """
    try:
        parsed = HugeTLBQuotaSpec.model_validate(spec)
        return _quota(key, parsed, uid, generation, terminating)
    except ValueError as error:  # pydantic's ValidationError is one
        raise ValueError(_explain(error)) from error


def read_valid_parts(
    key: QuotaKey, spec: Any, *, uid: str = "", generation: int = 1, terminating: bool = False
) -> Quota:
    """The quota of the valid parts of a spec; an invalid podSelector selects every pod."""
    parts: dict[str, Any] = {"hard": {}}
    for name, part in spec.items() if isinstance(spec, dict) else ():
        try:
            HugeTLBQuotaSpec.model_validate({"hard": {}, name: part})
        except ValueError:
            continue
        parts[name] = part
    return _quota(key, HugeTLBQuotaSpec.model_validate(parts), uid, generation, terminating)


def _quota(
    key: QuotaKey, spec: HugeTLBQuotaSpec, uid: str, generation: int, terminating: bool
) -> Quota:
    parent = spec.parent_ref
    return Quota(
        key=key,
        hard=Charge.from_resources(spec.hard),
        parent=None if parent is None else QuotaKey(parent.namespace, parent.name),
        pod_selector=_selector(spec.pod_selector),
        child_namespaces=(
            None if spec.child_namespaces is None else _selector(spec.child_namespaces)
        ),
        reparents=spec.deletion_policy == "Reparent",
        reclaim_after=_reclaim_after(spec.retained),
        terminating=terminating,
        uid=uid,
        generation=generation,
    )


def _reclaim_after(retained: RetainedSpec | None) -> timedelta | None:
    if retained is None or retained.policy != "Truncate":
        return None
    return duration.parse(retained.after)


def _selector(selector: LabelSelector) -> Selector:
    return Selector.from_json(selector.to_json())


def _explain(error: ValueError) -> str:
    """The errors of each field in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    return " ".join(
        ": ".join(
            filter(
                None,
                (
                    ".".join(map(str, ("spec", *each["loc"]))),
                    each["msg"].removeprefix("Value error, "),
                ),
            )
        )
        + ("" if each["msg"].endswith(".") else ".")
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    )
