"""What is reported: from what was read, the pods that the API has told of, and the last report.

Pure. The last report is all that is remembered; of a pod that is gone it alone tells the name.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, TypeVar

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.volume import volume_of
from hugetlb_quota.agent import totals
from hugetlb_quota.agent.fit import LABELS, shorten
from hugetlb_quota.agent.pods import SeenPod
from hugetlb_quota.agent.reading import SYSTEM, ChargedFile, Reading
from hugetlb_quota.api.model import read_leniently
from hugetlb_quota.api.node import FileStatus, NodePodStatus

#: Files in a report: an object's size has a limit.
LARGEST: Final = 64
_LONGEST_PATH: Final = 256

_Row = TypeVar("_Row", NodePodStatus, FileStatus)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """A pod in a report: see :class:`~hugetlb_quota.api.node.NodePodStatus`."""

    uid: str
    namespace: str = ""
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    cgroup: str = ""
    live: bool = False
    demand: Charge = NOTHING
    charged: Charge = NOTHING
    ended_at: datetime | None = None
    labels_left_out: int = 0

    @property
    def cgroup_uid(self) -> str:
        """The UID in the name of its cgroup: the key of a report's entries."""
        return self.cgroup or self.uid

    def to_status(self) -> NodePodStatus:
        """As the API has it."""
        return NodePodStatus(
            uid=self.uid,
            namespace=self.namespace,
            name=self.name,
            labels=dict(self.labels),
            labels_left_out=self.labels_left_out or None,
            cgroup=self.cgroup,
            live=self.live,
            demand=self.demand.to_resources(),
            charged=self.charged.to_resources(),
            ended_at=self.ended_at,
        )


class FileKey(NamedTuple):
    """What a row of a report's files is known by, from one report to the next."""

    mount: str
    path: str
    page_size: str
    uid: str


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A row of a report's files: see :class:`~hugetlb_quota.api.node.FileStatus`."""

    key: FileKey
    charged: int
    volume: str
    since: datetime

    def to_status(self) -> FileStatus:
        """As the API has it."""
        return FileStatus(
            path=self.key.path,
            mount=self.key.mount,
            volume=self.volume,
            page_size=self.key.page_size,
            charged=quantity.render(self.charged),
            uid=self.key.uid,
            since=self.since,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """What is told of the pods and of what is charged.

    ``entries`` are by the UID in the names of the pods' cgroups.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()
    system: Charge = NOTHING
    unlisted: Charge = NOTHING

    @property
    def static(self) -> dict[str, str]:
        """Which pod each static pod's hash stands for."""
        return {each.cgroup: each.uid for each in self.entries.values() if each.cgroup}

    @property
    def real(self) -> frozenset[str]:
        """UIDs of the pods, seen in the API, whose own their cgroups' names have."""
        return frozenset(
            each.uid for each in self.entries.values() if each.namespace and not each.cgroup
        )


NO_REPORT: Final = Report()


def reconcile(reading: Reading, seen: Mapping[str, SeenPod], last: Report, now: datetime) -> Report:
    """The report of what was read.

    :param seen: the pods that the API has told of *before* that, by the UID in the names of
        their cgroups. Kubelet makes no cgroup for a pod that has ended: one whose end is in
        ``seen`` and whose cgroup is not in ``reading`` is gone for good.
    """
    now = now.replace(microsecond=0)
    charged, unlisted = _charged(reading, seen, last)
    entries: dict[str, Entry] = {}
    for uid in sorted({*charged, *seen, *last.entries, *reading.there}):
        entry = _entry(
            uid,
            charged.get(uid, NOTHING),
            reading.there.get(uid),
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
    """What is charged to whom, and what is in no list."""
    charged = {uid: charge for uid, charge in reading.charged.items() if charge}
    unlisted = reading.unlisted.without_zeros()
    gone = {uid: entry for uid, entry in last.entries.items() if uid not in reading.there}
    if reading.bound is not None:
        missing = {uid: entry for uid, entry in gone.items() if uid not in charged}
        held = {uid: entry.charged for uid, entry in missing.items()}
        more = {
            uid: entry.demand.beyond(entry.charged)
            for uid, entry in missing.items()
            if entry.live and (uid not in seen or seen[uid].ended)
        }
        left, unlisted = totals.left(held, more, reading.bound)
        charged |= {uid: charge for uid, charge in left.items() if charge}
    else:
        for uid, entry in gone.items():
            # It may be what the reading lacks: a pod that is gone is charged nothing new.
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
    """The entry of the pod whose cgroup has this UID; None: there is nothing to tell of it.

    :param populated: whether a process is in its cgroup; None: that is not there.
    """
    # Kubelet may leave a cgroup behind: empty, and of a pod that has ended, it is none.
    live = (
        (seen is not None and not seen.ended)
        or bool(populated)
        or (populated is not None and bool(charged))
    )
    if not charged:
        # Of one that nobody names it is not known whether it may have huge pages.
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
        labels, left_out = shorten(pod.labels, LABELS)
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
    known = {each.key: each for each in last.files}
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
            before = known.get(key)
            volume = ""
            if owner != SYSTEM:
                volumes = pod.pod.volumes if pod is not None else ()
                volume = volume_of(point, file.path, volumes) or (before.volume if before else "")
            since = before.since if before is not None else now
            # Of the kernel's own files several may have one name.
            more = rows[key].charged if key in rows else 0
            rows[key] = FileEntry(key, charged + more, volume, since)
    largest = sorted(rows.values(), key=lambda row: (-row.charged, row.key))
    return tuple(largest[:LARGEST])


def printable(path: str) -> str:
    """A path as JSON can have it, its end if it is long."""
    text = path.encode(errors="backslashreplace").decode()
    return text if len(text) <= _LONGEST_PATH else f"…{text[1 - _LONGEST_PATH :]}"


def due_pods(report: Report, waits: Mapping[str, timedelta], now: datetime) -> frozenset[str]:
    """Whose files are to be reclaimed ``now``, by the UIDs of their cgroups.

    :param waits: by UID, how long from its end.
    """
    return frozenset(
        uid
        for uid, entry in report.entries.items()
        if not entry.live
        and entry.ended_at is not None
        and entry.charged
        and (wait := waits.get(entry.uid)) is not None
        and now - entry.ended_at >= wait
    )


def due_files(files: Iterable[ChargedFile], due: Collection[str]) -> Iterator[ChargedFile]:
    """Those of which everybody who is charged is ``due``: what one of them keeps is kept."""
    for file in files:
        if file.charged and all(owner in due for owner in file.charged):
            yield file


def adopt(status: Mapping[str, Any], boot_id: str) -> Report:
    """The last report, from the ``status`` of this node's HugeTLBNode, whoever wrote it.

    Of another boot it tells names alone: kubelet starts the pods of its node anew under their
    UIDs, and one of them may be deleted before an agent runs. What of it can't be understood is
    passed over: what is charged the kernel tells anyway.
    """
    same_boot = status.get("bootID") == boot_id
    entries = {}
    for pod in _rows(status, "pods", NodePodStatus):
        entry = _adopted(pod)
        if entry is not None:
            entries[entry.cgroup_uid] = entry if same_boot else _named(entry)
    if not same_boot:
        return Report(entries)
    return Report(
        entries, tuple(filter(None, map(_adopted_file, _rows(status, "files", FileStatus))))
    )


def _rows(status: Mapping[str, Any], name: str, model: type[_Row]) -> Iterator[_Row]:
    rows = status.get(name)
    for raw in rows if isinstance(rows, list) else ():
        try:
            yield read_leniently(model, raw)
        except ValueError as error:
            logger.warning("Of the last report's %s one can't be read: %s", name, error)


def _adopted(pod: NodePodStatus) -> Entry | None:
    if not pod.uid:
        return None
    return Entry(
        pod.uid,
        pod.namespace,
        pod.name,
        pod.labels,
        pod.cgroup,
        pod.live,
        _amounts(pod.uid, pod.demand),
        _amounts(pod.uid, pod.charged),
        _aware(pod.ended_at) if pod.ended_at is not None else None,
        pod.labels_left_out or 0,
    )


def _named(entry: Entry) -> Entry:
    """Who it was, and nothing that it had."""
    return replace(entry, live=False, demand=NOTHING, charged=NOTHING, ended_at=None)


def _amounts(uid: str, amounts: Mapping[str, str]) -> Charge:
    try:
        return Charge.from_sums(amounts)
    except ValueError as error:
        logger.warning("Of the last report an amount of %s can't be read: %s", uid, error)
        return NOTHING


def _adopted_file(file: FileStatus) -> FileEntry | None:
    try:
        charged = quantity.parse_sum(file.charged)
    except ValueError:
        return None
    key = FileKey(file.mount, file.path, file.page_size, file.uid)
    return FileEntry(key, charged, file.volume, _aware(file.since))


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
