"""Computes a report from a reading of the host, the pods of the API, and the last report. Pure.

The agent remembers nothing else. Only the last report has the name of a pod that is gone from the
API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.volume import volume_of
from hugetlb_quota.agent import totals
from hugetlb_quota.agent.fit import LABELS, fit_labels
from hugetlb_quota.agent.pods import SeenPod
from hugetlb_quota.agent.reading import SYSTEM, Reading
from hugetlb_quota.agent.report import Entry, FileEntry, FileKey, Report, printable

#: The most files in a report, because the size of an object is limited.
LARGEST: Final = 64


def reconcile(reading: Reading, seen: Mapping[str, SeenPod], last: Report, now: datetime) -> Report:
    """Return the report of ``reading``.

    :param seen: the pods that the API showed *before* the reading, by the UID in the names of
        their cgroups. Kubelet creates no cgroup for a pod that has ended. So a pod that has ended
        in ``seen`` and has no cgroup in ``reading`` never gets one again.
    :param last: the last report.
    """
    now = now.replace(microsecond=0)
    charged, unlisted = _charged(reading, seen, last)
    entries: dict[str, Entry] = {}
    for uid in sorted({*charged, *seen, *last.entries, *reading.populated}):
        entry = _entry(
            uid,
            charged.get(uid, NOTHING),
            reading.populated.get(uid),
            seen.get(uid),
            last.entries.get(uid),
            now,
        )
        if entry is not None:
            entries[uid] = entry
    return Report(
        entries,
        _files(reading, entries, seen, last, now),
        reading.system.without_zeros(),
        unlisted,
    )


def _charged(
    reading: Reading, seen: Mapping[str, SeenPod], last: Report
) -> tuple[dict[str, Charge], Charge]:
    """Return the charge of each pod, and the charge that belongs to no listed pod."""
    charged = {uid: charge for uid, charge in reading.charged.items() if charge}
    unlisted = reading.unlisted.without_zeros()
    gone = {uid: entry for uid, entry in last.entries.items() if uid not in reading.populated}
    if reading.bound is not None:
        missing = {uid: entry for uid, entry in gone.items() if uid not in charged}
        held = {uid: entry.charged for uid, entry in missing.items()}
        more = {
            uid: entry.demand.beyond(entry.charged)
            for uid, entry in missing.items()
            if entry.live and (uid not in seen or seen[uid].ended)
        }
        estimates, unlisted = totals.estimate(held, more, reading.bound)
        charged |= {uid: charge for uid, charge in estimates.items() if charge}
    else:
        for uid, entry in gone.items():
            # The reading may lack a part of what the pod held. Nothing new is charged to it.
            listed = charged.get(uid, NOTHING)
            if lacking := entry.charged.beyond(listed).within(reading.missing):
                charged[uid] = listed + lacking
    return charged, unlisted


def _entry(
    uid: str,
    charged: Charge,
    populated: bool | None,
    seen: SeenPod | None,
    before: Entry | None,
    now: datetime,
) -> Entry | None:
    """Return the entry of one pod, or None if the pod needs no entry.

    :param uid: the UID in the name of the pod's cgroup.
    :param populated: True if a process is in the pod's cgroup; None if there is no cgroup.
    :param before: the pod's entry in the last report.
    """
    # Kubelet may leave a cgroup behind. An empty, uncharged cgroup of an ended pod counts as gone.
    live = (
        (seen is not None and not seen.ended)
        or bool(populated)
        or (populated is not None and bool(charged))
    )
    if not charged:
        # A pod that the API does not show may ask for huge pages.
        asks = seen.asks if seen is not None else True
        if not live or not (asks or before is not None):
            return None
    ended_at = None
    if not live:
        ended_at = before.ended_at if before is not None and not before.live else None
        ended_at = ended_at or now
    if seen is not None:
        pod = seen.pod
        cgroup = uid if uid != pod.uid else ""
        labels, left_out = fit_labels(pod.labels, LABELS)
        named = Entry(
            *(pod.uid, pod.namespace, pod.name, labels, cgroup),
            demand=pod.demand.without_zeros(),
            labels_left_out=left_out,
        )
    else:
        named = before or Entry(uid)
    return replace(named, live=live, charged=charged.without_zeros(), ended_at=ended_at)


def _files(
    reading: Reading,
    entries: Mapping[str, Entry],
    seen: Mapping[str, SeenPod],
    last: Report,
    now: datetime,
) -> tuple[FileEntry, ...]:
    """Return the largest files; a file that several pods are charged for has a row for each."""
    last_rows = {each.key: each for each in last.files}
    rows: dict[FileKey, FileEntry] = {}
    for file in reading.files:
        point = file.mount.point if file.mount is not None else ""
        path = printable(file.path) + ("" if file.linked else " (deleted)")
        for owner, charged in file.charged.items():
            entry, pod = entries.get(owner), seen.get(owner)
            key = FileKey(
                printable(point),
                path,
                file.page_size.resource,
                entry.uid if entry is not None else owner,
            )
            before = last_rows.get(key)
            volume = ""
            if owner != SYSTEM:
                volumes = pod.pod.volumes if pod is not None else ()
                volume = volume_of(point, file.path, volumes) or (before.volume if before else "")
            since = before.since if before is not None else now
            # Several files of the kernel's internal mounts may have the same name.
            more = rows[key].charged if key in rows else 0
            rows[key] = FileEntry(key, charged + more, volume, since)
    largest = sorted(rows.values(), key=lambda row: (-row.charged, row.key))
    return tuple(largest[:LARGEST])
