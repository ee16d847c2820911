"""``files``: the hugetlbfs files in which gone pods left pages."""

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
    """A file, the pod that is charged for it, and the quotas that pay. ``gone``: of the pod."""

    file: ReportedFile
    pod: str
    quotas: frozenset[QuotaKey]
    gone: bool


def held_files(
    world: World, namespace: str | None = None, *, every: bool = False
) -> list[HeldFile]:
    """The files of gone pods, the largest charge first.

    :param namespace: only files of pods of this namespace; None is any namespace.
    :param every: also files of living pods and of the node's own processes.
    """
    holders = {(each.node, each.uid): each for each in world.holders}
    held = []
    for report in world.reports or ():
        entries = {each.uid: each for each in report.pods}
        for file in report.files:
            entry, holder = entries.get(file.uid), holders.get((report.node, file.uid))
            quotas = holder.quotas if holder is not None else frozenset()
            pod = "(system)" if not file.uid else str(entry) if entry else f"(pod {file.uid})"
            gone = bool(file.uid) and not (entry and entry.live)
            where = entry.namespace if entry else ""
            if (gone or every) and namespace in (None, where):
                held.append(HeldFile(file, pod, quotas, gone))
    return sorted(held, key=lambda each: (-each.file.charged, each.file.node, each.file.path))


def document(held: Sequence[HeldFile]) -> list[dict[str, Any]]:
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
        for each in held
    ]


def files_table(
    held: Sequence[HeldFile], now: datetime, screen: Screen, *, wide: bool = False
) -> str:
    """A line for each pair of a file and a pod that is charged for it."""
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
        for each in held
    ]
    return table(headers, rows, screen)
