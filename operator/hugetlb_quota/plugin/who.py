"""``who``: the pods, the pages of gone pods, and the reservations that fill a quota."""

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
    amounts,
    listed,
    number,
    size_name,
    table,
)
from hugetlb_quota.plugin.world import Holder, World
from hugetlb_quota.quantity import render

_ORDER: Final = ("pod", "retained", "reserved")


def holders(world: World, quota: QuotaObject) -> list[Holder]:
    """The holders that fill the quota: pods, retained, reserved; in each kind the largest first."""
    return sorted(
        (holder for holder in world.charged_to(quota.key) if holder.holds),
        key=lambda holder: (_ORDER.index(holder.kind), -sum(holder.holds.values()), holder.pod),
    )


def unexplained(quota: QuotaObject, holders: Sequence[Holder]) -> Charge:
    """The charge that the quota's status counts, but that no holder explains.

    There may be some for a moment, because the status is a little older than the holders. If it
    stays, the user may not see every holder.
    """
    return quota.counter.used.beyond(
        Charge.total(holder.holds for holder in holders)
    ).without_zeros()


def document(quota: QuotaObject, holders: Sequence[Holder]) -> dict[str, Any]:
    """The quota and its holders as plain data."""
    counter = quota.counter
    return {
        "quota": str(quota.key),
        "hard": counter.hard.to_resources(),
        "used": counter.used.to_resources(),
        "pods": counter.pods.to_resources(),
        "retained": counter.retained.to_resources(),
        "reserved": counter.reserved.to_resources(),
        "holders": [_holder(holder) for holder in holders],
        "unexplained": unexplained(quota, holders).to_resources(),
    }


def picture(
    quota: QuotaObject,
    holders: Sequence[Holder],
    now: datetime,
    screen: Screen,
    *,
    wide: bool = False,
) -> str:
    """The sums of the quota, and a line for each holder and page size."""
    parts = [_heading(quota)]
    if holders:
        headers = ["KIND", "POD", "NODE", "SIZE", "HOLDS", "QUOTA", "DETAIL"]
        headers += ["UID"] if wide else []
        rows: list[list[Content]] = [
            [
                holder.kind,
                holder.pod,
                holder.node or "-",
                str(size),
                number(render(amount)),
                listed(sorted(map(str, holder.quotas)), 9 if wide else 1) or "-",
                _detail(holder, now, wide=wide),
                *((holder.uid,) if wide else ()),
            ]
            for holder in holders
            for size, amount in holder.holds.without_zeros().items()
        ]
        parts.append(table(headers, rows, screen))
    if missing := unexplained(quota, holders):
        parts.append(
            f"{amounts(missing.to_resources())} is counted but not explained here: the status is a"
            " moment old, or you may not see the holder."
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
    return "\n".join(lines) or f"{quota.key} has no limit and no charge."


def _detail(holder: Holder, now: datetime, *, wide: bool) -> str:
    if holder.kind == "pod":
        charged = holder.charged.without_zeros().to_resources().values()
        return f"{holder.state}, charged {', '.join(charged) or '0'}"
    if holder.kind == "reserved":
        if holder.until is None:
            return holder.state
        seconds = int((holder.until - now).total_seconds())
        return f"{holder.state}, for {max(0, seconds)}s more"
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
        "asked": holder.demand.to_resources(),
        "charged": holder.charged.to_resources(),
        "quotas": sorted(map(str, holder.quotas)),
        "since": None if holder.since is None else holder.since.isoformat(),
        "until": None if holder.until is None else holder.until.isoformat(),
        "files": [
            {"path": file.path, "pageSize": file.size.resource, "charged": render(file.charged)}
            for file in holder.files
        ],
    }
