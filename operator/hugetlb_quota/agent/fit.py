"""What of a report fits into its object. Pure.

etcd takes no request above 1.5 MiB. A pod's labels have no limit, and there may be thousands of
pods that are gone and hold something still. What is left out is what loses least:

1. files, from the smallest: they are told to people, and count nowhere;
2. what a gone pod asked for, and fields that are empty: nobody reads them;
3. labels, the longest of the pods that have most. Such a row says so, and the quotas that may
   select the pod by the labels that are left are charged;
4. pods that no report has told of yet. A report without them proves no pod's end after the last
   whole one, so each stays charged what it asked for, by the controller. A pod that was told of
   stays in the report until nothing is charged to it: nobody else may know it any more.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from hugetlb_quota.api.node import LeftOut

Json = dict[str, Any]

#: Bytes of rows of pods and files, at most, as JSON. The rest of the status takes less than
#: 128 KiB; the controller's spec has a row for a gone pod too.
MOST: Final = 768 << 10
#: Bytes of a pod's labels that are kept at all.
LABELS: Final = 8 << 10
#: And where the report is too large, one bound after the other.
_LABELS: Final = (1024, 256, 64, 0)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Rows of pods and files that fit, as JSON; ``left_out``: what does not."""

    pods: Sequence[Json]
    files: Sequence[Json]
    left_out: LeftOut


def fit(
    pods: Sequence[Json], files: Sequence[Json], told: Collection[str], most: int | None = None
) -> Fitted:
    """What fits into ``most`` bytes, :data:`MOST` when that is not given.

    :param pods: rows, as NodePodStatus makes them; ``files``: the largest first.
    :param told: UIDs in the names of the cgroups of the pods that the last report told of.
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
        rows = [_shortened(row, longest) for row in rows]
    fitting = _fitting(rows, told, most) if _bytes(rows) > most else rows
    left_out = LeftOut(
        files=len(files),
        labels=sum("labelsLeftOut" in row for row in fitting),
        pods=len(rows) - len(fitting),
    )
    return Fitted(fitting, (), left_out)


def shorten(labels: Mapping[str, str], most: int) -> tuple[Mapping[str, str], int]:
    """The shortest of ``labels`` that take ``most`` bytes together, and how many are left out."""
    if sum(len(key) + len(value) for key, value in labels.items()) <= most:
        return labels, 0
    order = sorted(labels.items(), key=lambda each: (len(each[0]) + len(each[1]), each))
    ends = accumulate(len(key) + len(value) for key, value in order)
    kept = dict(each for each, end in zip(order, ends, strict=True) if end <= most)
    return kept, len(labels) - len(kept)


def _fitting(rows: Iterable[Json], told: Collection[str], most: int) -> list[Json]:
    """The rows of pods that were told of, and as many others as there is room for.

    Those take more than ``most`` by what they grew: a row of a live pod, by its end.
    """
    rows = list(rows)
    known = {id(row) for row in rows if (row.get("cgroup") or row["uid"]) in told}
    room = most - _bytes(row for row in rows if id(row) in known)
    for row in rows:
        if id(row) not in known and (size := _size(row)) <= room:
            room -= size
            known.add(id(row))
    return [row for row in rows if id(row) in known]


def _bare(row: Json) -> Json:
    """Without what nobody reads: fields that are empty, and what a gone pod asked for."""
    return {
        name: value
        for name, value in row.items()
        if value not in ({}, "") and (name != "demand" or row["live"])
    }


def _shortened(row: Json, most: int) -> Json:
    labels, left_out = shorten(row.get("labels", {}), most)
    if not left_out:
        return row
    before = row.get("labelsLeftOut", 0)
    return {**row, "labels": labels, "labelsLeftOut": before + left_out}


def _bytes(rows: Iterable[Json]) -> int:
    return sum(map(_size, rows))


def _size(row: Json) -> int:
    """Bytes that it takes with the comma after it; a letter beyond ASCII counts as its escape."""
    return len(json.dumps(row)) + len(", ")
