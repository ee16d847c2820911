"""``top``: pods and nodes, and the huge pages that they use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.page_size import PageSize
from hugetlb_quota.plugin.reports import NodeReport
from hugetlb_quota.plugin.table import (
    RED,
    YELLOW,
    Cell,
    Content,
    Screen,
    age,
    listed,
    nearness,
    number,
    table,
)
from hugetlb_quota.plugin.world import Holder, World
from hugetlb_quota.quantity import render


def pods(world: World, namespace: str | None = None) -> list[Holder]:
    """The living pods, the largest charge first, then the largest demand."""
    holders = [
        holder
        for holder in world.holders
        if holder.kind == "pod" and namespace in (None, holder.namespace)
    ]
    return sorted(
        holders, key=lambda holder: (_rank(holder.charged), _rank(holder.demand), holder.pod)
    )


def pods_document(holders: Iterable[Holder]) -> list[dict[str, Any]]:
    """The pods as plain data."""
    return [
        {
            "pod": holder.pod,
            "uid": holder.uid,
            "node": holder.node or None,
            "state": holder.state,
            "asked": holder.demand.to_resources(),
            "charged": holder.charged.to_resources(),
            "quotas": sorted(map(str, holder.quotas)),
        }
        for holder in holders
    ]


def pods_table(holders: Sequence[Holder], screen: Screen, *, wide: bool = False) -> str:
    """A line for each pod and page size."""
    headers = ["POD", "NODE", "SIZE", "ASKED", "CHARGED", "QUOTA"]
    headers += ["STATE", "UID"] if wide else []
    rows: list[list[Content]] = []
    for holder in holders:
        quotas = sorted(map(str, holder.quotas))
        for size in sorted({*holder.demand, *holder.charged}):
            charged, demand = holder.charged.of(size), holder.demand.of(size)
            rows.append(
                [
                    holder.pod,
                    holder.node or "-",
                    str(size),
                    number(render(demand)),
                    number(render(charged), *((RED,) if charged > demand else ())),
                    listed(quotas, 9 if wide else 1) or "-",
                    *((holder.state, holder.uid) if wide else ()),
                ]
            )
    return table(headers, rows, screen)


def nodes_document(reports: Iterable[NodeReport]) -> list[dict[str, Any]]:
    """The pools of each node, and the charges for their pages."""
    return [
        {
            "node": report.node,
            "reportedAt": None if report.reported_at is None else report.reported_at.isoformat(),
            "state": list(_state(report)),
            "pools": [
                {
                    "pageSize": size.resource,
                    "total": render(total),
                    "free": render(free),
                    "reserved": render(reserved),
                    "pods": render(_charged(report, live=True).of(size)),
                    "retained": render(_charged(report, live=False).of(size)),
                    "system": render(report.system.of(size)),
                    "unlisted": render(report.unlisted.of(size)),
                }
                for size, total, free, reserved in _pools(report)
            ],
        }
        for report in _sorted(reports)
    ]


def nodes_table(
    reports: Iterable[NodeReport],
    now: datetime,
    screen: Screen,
    *,
    wide: bool = False,
) -> str:
    """A line for each node and page size."""
    headers = ["NODE", "SIZE", "TOTAL", "FREE", "PODS", "RETAINED"]
    headers += ["SYSTEM", "RESERVED", "UNLISTED", "REPORTED"] if wide else ["SYSTEM"]
    rows: list[list[Content]] = []
    for report in _sorted(reports):
        living = _charged(report, live=True)
        left = _charged(report, live=False)
        state = ", ".join(_state(report))
        pools = _pools(report)
        for size, total, free, reserved in pools:
            gone = left.of(size)
            more: list[Content] = [number(render(report.system.of(size)))]
            if wide:
                more += [number(render(reserved)), number(render(report.unlisted.of(size)))]
                more.append(number(age(report.reported_at, now)))
            percent = (total - free) * 100 // total if total else None
            rows.append(
                [
                    report.node,
                    str(size),
                    number(render(total)),
                    number(render(free), nearness(percent) if total else ""),
                    number(render(living.of(size))),
                    number(render(gone), *((YELLOW,) if gone else ())),
                    *more,
                    Cell(state, (RED,)),
                ]
            )
        if not pools:
            blank: list[Content] = ["-", *[number("-")] * (len(headers) - 2)]
            rows.append([report.node, *blank, Cell(state or "no pools", (RED,))])
    headers.append("STATE" if any(isinstance(r[-1], Cell) and r[-1].text for r in rows) else "")
    return table(headers, rows, screen)


def _sorted(reports: Iterable[NodeReport]) -> list[NodeReport]:
    """The reports, sorted by the node's name."""
    return sorted(reports, key=lambda report: report.node)


def _pools(report: NodeReport) -> list[tuple[PageSize, int, int, int]]:
    """The pools of the whole node: page size; total, free and reserved in bytes."""
    pools = []
    for pool in report.pools:
        if pool.numa_node is not None:
            continue
        try:
            size = PageSize.from_resource(pool.page_size)
        except ValueError:
            continue
        pages = (pool.total, pool.free, pool.reserved or 0)
        total, free, reserved = (each * size.bytes for each in pages)
        pools.append((size, total, free, reserved))
    return sorted(pools)


def _charged(report: NodeReport, *, live: bool) -> Charge:
    return Charge.total(each.charged for each in report.pods if each.live == live)


def _state(report: NodeReport) -> tuple[str, ...]:
    reasons = [each.reason for each in report.conditions if each.status != "True"]
    return tuple(dict.fromkeys(reasons))


def _rank(charge: Charge) -> int:
    return -sum(charge.values())
