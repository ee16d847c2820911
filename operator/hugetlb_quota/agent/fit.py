"""Chooses what fits into a HugeTLBNode. Pure.

etcd refuses a request above 1.5 MiB. The labels of a pod have no limit, and thousands of gone pods
may still hold pages. A report that is too large leaves out, in this order:

1. the smallest files: they are only for people, and no program counts them;
2. the demand of gone pods, and empty fields: no program reads them;
3. the longest labels of the pods with the most labels. The row says so, and every quota that may
   select the pod by its other labels is charged;
4. pods that no report had before. A report without all pods proves no end of a pod, so the
   controller keeps charging each pod's demand. A pod that was in a report stays until nothing is
   charged to it, because no other program may remember the pod.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from hugetlb_quota.api.node import LeftOut

Json = dict[str, Any]

#: The most bytes of the rows of pods and files as JSON. The rest of the status takes less than
#: 128 KiB. The controller's spec has a row for each gone pod too.
MOST: Final = 768 << 10
#: The most bytes of a pod's labels in any report.
LABELS: Final = 8 << 10
#: The bounds to try one after the other if the report is too large.
_LABELS: Final = (1024, 256, 64, 0)


@dataclass(frozen=True, slots=True)
class Fitted:
    """The rows of pods and files that fit, as JSON, and the counts of what is left out."""

    pods: Sequence[Json]
    files: Sequence[Json]
    left_out: LeftOut


def fit(
    pods: Sequence[Json], files: Sequence[Json], reported: Collection[str], most: int | None = None
) -> Fitted:
    """Return the rows that fit into ``most`` bytes; None means :data:`MOST`.

    :param pods: rows of NodePodStatus.
    :param files: rows of FileStatus, the largest file first.
    :param reported: the pods in the last report, by the UID in the name of the cgroup.
    """
    most = MOST if most is None else most
    room = most - _bytes(pods)
    kept = [
        file for file, end in zip(files, accumulate(map(_size, files)), strict=True) if end <= room
    ]
    if room >= 0:
        return Fitted(pods, kept, LeftOut(files=len(files) - len(kept)))
    rows = [_bare(row) for row in pods]
    for longest in _LABELS:
        if _bytes(rows) <= most:
            break
        rows = [_with_fitting_labels(row, longest) for row in rows]
    fitting = _fitting(rows, reported, most) if _bytes(rows) > most else rows
    left_out = LeftOut(
        files=len(files),
        labels=sum("labelsLeftOut" in row for row in fitting),
        pods=len(rows) - len(fitting),
    )
    return Fitted(fitting, (), left_out)


def fit_labels(labels: Mapping[str, str], most: int) -> tuple[Mapping[str, str], int]:
    """Return the shortest labels that take ``most`` bytes together, and the number left out."""
    if sum(len(key) + len(value) for key, value in labels.items()) <= most:
        return labels, 0
    order = sorted(labels.items(), key=lambda each: (len(each[0]) + len(each[1]), each))
    ends = accumulate(len(key) + len(value) for key, value in order)
    kept = dict(each for each, end in zip(order, ends, strict=True) if end <= most)
    return kept, len(labels) - len(kept)


def _fitting(rows: Iterable[Json], reported: Collection[str], most: int) -> list[Json]:
    """Return the rows of reported pods, and the first other rows that fit.

    The reported rows may exceed ``most`` a little: a row grows when its pod ends.
    """
    rows = list(rows)
    kept = {id(row) for row in rows if (row.get("cgroup") or row["uid"]) in reported}
    room = most - _bytes(row for row in rows if id(row) in kept)
    for row in rows:
        if id(row) not in kept and (size := _size(row)) <= room:
            room -= size
            kept.add(id(row))
    return [row for row in rows if id(row) in kept]


def _bare(row: Json) -> Json:
    """Return the row without empty fields, and without the demand if the pod is gone."""
    return {
        name: value
        for name, value in row.items()
        if value not in ({}, "") and (name != "demand" or row["live"])
    }


def _with_fitting_labels(row: Json, most: int) -> Json:
    labels, left_out = fit_labels(row.get("labels", {}), most)
    if not left_out:
        return row
    before = row.get("labelsLeftOut", 0)
    return {**row, "labels": labels, "labelsLeftOut": before + left_out}


def _bytes(rows: Iterable[Json]) -> int:
    return sum(map(_size, rows))


def _size(row: Json) -> int:
    """Return the bytes of the row and its comma; a non-ASCII letter counts as its escape."""
    return len(json.dumps(row)) + len(", ")
