"""``files``: the hugetlbfs files in which pods that are gone left pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.plugin.reports import ReportedFile
from hugetlb_quota.plugin.table import Content, Screen, age, listed, number, table
from hugetlb_quota.plugin.world import World
from hugetlb_quota.quantity import render


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file, who is charged for it, and who pays. ``gone``: that pod is gone."""

    file: ReportedFile
    pod: str
    quotas: frozenset[QuotaKey]
    gone: bool


def held_files(
    world: World, namespace: str | None = None, *, every: bool = False
) -> list[HeldFile]:
    """The files of pods that are gone, most charged first.

    :param namespace: of the pod; None is any.
    :param every: those of living pods and of the node's own processes too.
    """
    holders = {(each.node, each.uid): each for each in world.holders}
    found = []
    for report in world.reports or ():
        entries = {each.uid: each for each in report.pods}
        for file in report.files:
            entry, holder = entries.get(file.uid), holders.get((report.node, file.uid))
            quotas = holder.quotas if holder is not None else frozenset()
            pod = "(system)" if not file.uid else str(entry) if entry else f"(pod {file.uid})"
            held = HeldFile(file, pod, quotas, gone=bool(file.uid) and not (entry and entry.live))
            where = entry.namespace if entry else ""
            if (held.gone or every) and namespace in (None, where):
                found.append(held)
    return sorted(found, key=lambda each: (-each.file.charged, each.file.node, each.file.path))


def document(found: Sequence[HeldFile]) -> list[dict[str, Any]]:
    """The files as plain data."""
    return [
        {
            "node": each.file.node,
            "path": each.file.path,
            "volume": each.file.volume or None,
            "pageSize": each.file.size.resource,
            "charged": render(each.file.charged),
            "since": each.file.since.isoformat(),
            "pod": each.pod,
            "uid": each.file.uid or None,
            "gone": each.gone,
            "quotas": sorted(map(str, each.quotas)),
        }
        for each in found
    ]


def files_table(
    found: Sequence[HeldFile], now: datetime, screen: Screen, *, wide: bool = False
) -> str:
    """A line for each file and pod that is charged for it."""
    headers = ["NODE", "SIZE", "CHARGED", "AGE", "POD", "QUOTA", "PATH"]
    headers += ["VOLUME", "UID"] if wide else []
    rows: list[list[Content]] = [
        [
            each.file.node,
            str(each.file.size),
            number(render(each.file.charged)),
            number(age(each.file.since, now)),
            each.pod,
            listed(sorted(map(str, each.quotas)), 9 if wide else 1) or "-",
            each.file.path,
            *((each.file.volume or "-", each.file.uid or "-") if wide else ()),
        ]
        for each in found
    ]
    return table(headers, rows, screen)
