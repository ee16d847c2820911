"""``who``: what fills a quota: pods, what pods that are gone left, and reservations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.plugin.table import (
    Content,
    Screen,
    age,
    listed,
    number,
    size_name,
    table,
)
from hugetlb_quota.plugin.world import Holder, World
from hugetlb_quota.quantity import render

_ORDER: Final = ("pod", "retained", "reserved")


def holders(world: World, quota: QuotaObject) -> list[Holder]:
    """What fills the quota: pods, retained, reserved; of each the most first."""
    return sorted(
        (each for each in world.charged_to(quota.key) if each.holds),
        key=lambda each: (_ORDER.index(each.kind), -sum(each.holds.values()), each.pod),
    )


def unexplained(quota: QuotaObject, found: Sequence[Holder]) -> Charge:
    """What the quota's status counts, and none of the holders explains.

    Some for a moment, as the status is a count of a moment ago; for long only where not
    everything may be seen.
    """
    return quota.counter.used.beyond(Charge.total(each.holds for each in found)).without_zeros()


def document(quota: QuotaObject, found: Sequence[Holder]) -> dict[str, Any]:
    """The quota and its holders as plain data."""
    counter = quota.counter
    return {
        "quota": str(quota.key),
        "hard": counter.hard.to_resources(),
        "used": counter.used.to_resources(),
        "pods": counter.pods.to_resources(),
        "retained": counter.retained.to_resources(),
        "reserved": counter.reserved.to_resources(),
        "holders": [_holder(each) for each in found],
        "unexplained": unexplained(quota, found).to_resources(),
    }


def picture(
    quota: QuotaObject,
    found: Sequence[Holder],
    now: datetime,
    screen: Screen,
    *,
    wide: bool = False,
) -> str:
    """What the quota counts, and a line for each holder and page size."""
    parts = [_heading(quota)]
    if found:
        headers = ["KIND", "POD", "NODE", "SIZE", "HOLDS", "QUOTA", "DETAIL"]
        headers += ["UID"] if wide else []
        rows: list[list[Content]] = [
            [
                each.kind,
                each.pod,
                each.node or "-",
                str(size),
                number(render(amount)),
                listed(sorted(map(str, each.quotas)), 9 if wide else 1) or "-",
                _detail(each, now, wide=wide),
                *((each.uid,) if wide else ()),
            ]
            for each in found
            for size, amount in each.holds.without_zeros().items()
        ]
        parts.append(table(headers, rows, screen))
    if missing := unexplained(quota, found):
        told = " and ".join(f"{a} of {n}" for n, a in missing.to_resources().items())
        parts.append(
            f"{told} is counted and not explained here: it was counted a moment ago, or is held by"
            " what you may not see."
        )
    return "\n\n".join(parts)


def _heading(quota: QuotaObject) -> str:
    counter = quota.counter
    lines = []
    for size, used in counter.used.items():
        hard = render(counter.hard[size]) if size in counter.hard else "no limit"
        lines.append(
            f"{quota.key} {size_name(size.resource)}: {render(used)} of {hard} used"
            f" ({render(counter.pods.of(size))} by pods,"
            f" {render(counter.retained.of(size))} retained,"
            f" {render(counter.reserved.of(size))} reserved)"
        )
    return "\n".join(lines) or f"{quota.key} limits nothing, and nothing is charged to it."


def _detail(holder: Holder, now: datetime, *, wide: bool) -> str:
    if holder.kind == "pod":
        told = holder.charged.without_zeros().to_resources().values()
        return f"{holder.state}, charged {', '.join(told) or '0'}"
    if holder.kind == "reserved":
        left = 0 if holder.until is None else int((holder.until - now).total_seconds())
        return f"{holder.state}, for {max(0, left)}s more"
    ended = f"gone for {age(holder.since, now)}" if holder.since else "gone"
    paths = listed([file.path for file in holder.files], 99 if wide else 1)
    return f"{ended}, in {paths}" if paths else ended


def _holder(holder: Holder) -> dict[str, Any]:
    return {
        "kind": holder.kind,
        "pod": holder.pod,
        "uid": holder.uid,
        "node": holder.node or None,
        "state": holder.state,
        "holds": holder.holds.to_resources(),
        "asked": holder.asked.to_resources(),
        "charged": holder.charged.to_resources(),
        "quotas": sorted(map(str, holder.quotas)),
        "since": None if holder.since is None else holder.since.isoformat(),
        "until": None if holder.until is None else holder.until.isoformat(),
        "files": [
            {"path": file.path, "pageSize": file.size.resource, "charged": render(file.charged)}
            for file in holder.files
        ],
    }
