"""Reads the last report back from the status of this node's HugeTLBNode. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.agent.report import Entry, FileEntry, FileKey, Report
from hugetlb_quota.api.model import read_leniently
from hugetlb_quota.api.node import FileStatus, NodePodStatus

_Row = TypeVar("_Row", NodePodStatus, FileStatus)

logger = logging.getLogger(__name__)


def adopt(status: Mapping[str, Any], boot_id: str) -> Report:
    """Return the last report, which any agent may have written.

    A report of another boot gives only the names of pods: after a boot kubelet starts the pods of
    its node again under their UIDs, and a pod may be deleted before the agent runs. A row that
    can't be read is left out, because the kernel shows the charges anyway.
    """
    same_boot = status.get("bootID") == boot_id
    entries = {}
    for pod in _rows(status, "pods", NodePodStatus):
        entry = _entry(pod)
        if entry is not None:
            entries[entry.cgroup_uid] = entry if same_boot else _only_named(entry)
    if not same_boot:
        return Report(entries)
    files = map(_file, _rows(status, "files", FileStatus))
    return Report(entries, tuple(filter(None, files)))


def _rows(status: Mapping[str, Any], name: str, model: type[_Row]) -> Iterator[_Row]:
    rows = status.get(name)
    for raw in rows if isinstance(rows, list) else ():
        try:
            yield read_leniently(model, raw)
        except ValueError as error:
            logger.warning("A row of the last report's %s can't be read: %s", name, error)


def _entry(pod: NodePodStatus) -> Entry | None:
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


def _only_named(entry: Entry) -> Entry:
    """Return the entry without everything that belongs to the boot of its report."""
    return replace(entry, live=False, demand=NOTHING, charged=NOTHING, ended_at=None)


def _amounts(uid: str, amounts: Mapping[str, str]) -> Charge:
    try:
        return Charge.from_sums(amounts)
    except ValueError as error:
        logger.warning("An amount of pod %s in the last report can't be read: %s", uid, error)
        return NOTHING


def _file(file: FileStatus) -> FileEntry | None:
    try:
        charged = quantity.parse_sum(file.charged)
    except ValueError:
        return None
    key = FileKey(file.mount, file.path, file.page_size, file.uid)
    return FileEntry(key, charged, file.volume, _aware(file.since))


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
