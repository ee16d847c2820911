"""The report of a node: its pods, their charges, and the files that hold pages. Pure.

:mod:`~hugetlb_quota.agent.reconcile` makes a report, and :mod:`~hugetlb_quota.agent.reporter`
writes the report as the status of the HugeTLBNode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.api.node import FileStatus, NodePodStatus

_LONGEST_PATH: Final = 256


@dataclass(frozen=True, slots=True)
class Entry:
    """A pod in a report; see :class:`~hugetlb_quota.api.node.NodePodStatus` for the fields."""

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
        """The UID in the name of the pod's cgroup: the key of a report's entries."""
        return self.cgroup or self.uid

    def to_status(self) -> NodePodStatus:
        """Return the entry as a model of the API."""
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
    """Identifies a row of a report's files from one report to the next."""

    mount: str
    path: str
    page_size: str
    uid: str


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file in a report; see :class:`~hugetlb_quota.api.node.FileStatus` for the fields."""

    key: FileKey
    charged: int
    volume: str
    since: datetime

    def to_status(self) -> FileStatus:
        """Return the entry as a model of the API."""
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
    """The pods of a node and all charges.

    ``entries`` are the pods, by the UID in the name of the pod's cgroup. ``system`` is charged to
    cgroups of no pod. ``unlisted`` is charged, but no entry shows it.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    files: tuple[FileEntry, ...] = ()
    system: Charge = NOTHING
    unlisted: Charge = NOTHING

    @property
    def static(self) -> dict[str, str]:
        """The UID of each static pod, by the hash in the name of its cgroup."""
        return {each.cgroup: each.uid for each in self.entries.values() if each.cgroup}

    @property
    def real(self) -> frozenset[str]:
        """The UIDs of the named pods with their own UID in the name of the cgroup."""
        return frozenset(
            each.uid for each in self.entries.values() if each.namespace and not each.cgroup
        )


NO_REPORT: Final = Report()


def printable(path: str) -> str:
    """Return a path as text that JSON can hold; only the end of a long path."""
    text = path.encode(errors="backslashreplace").decode()
    return text if len(text) <= _LONGEST_PATH else f"…{text[1 - _LONGEST_PATH :]}"
