"""Reads the report in a HugeTLBNode leniently: entries that can't be read are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.api.model import Condition, Model, read_leniently
from hugetlb_quota.api.node import FileStatus, HeirSpec, NodePodStatus, PoolStatus
from hugetlb_quota.page_size import PageSize

_M = TypeVar("_M", bound=Model)


@dataclass(frozen=True, slots=True)
class ReportedPod:
    """A living or gone pod in a node's report.

    ``labels_left_out``: whether the pod has more labels than ``labels``.
    """

    node: str
    uid: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    live: bool
    demand: Charge = NOTHING
    charged: Charge = NOTHING
    ended_at: datetime | None = None
    labels_left_out: bool = False

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else f"(pod {self.uid})"


@dataclass(frozen=True, slots=True)
class ReportedFile:
    """A file, and the bytes of it that are charged to the pod ``uid``; "" is the system."""

    node: str
    path: str
    volume: str
    size: PageSize
    charged: int
    uid: str
    since: datetime


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A node's last report. ``unreadable``: the number of entries that can't be read."""

    node: str
    reported_at: datetime | None = None
    boot_id: str = ""
    pods_resource_version: int = 0
    pools: tuple[PoolStatus, ...] = ()
    pods: tuple[ReportedPod, ...] = ()
    files: tuple[ReportedFile, ...] = ()
    system: Charge = NOTHING
    unlisted: Charge = NOTHING
    conditions: tuple[Condition, ...] = ()
    heirs: Mapping[str, frozenset[QuotaKey]] = field(default_factory=dict)
    unreadable: int = 0


def read_report(raw: Mapping[str, Any]) -> NodeReport:
    """Read the report in a HugeTLBNode's JSON. No content raises an error."""
    name = str((raw.get("metadata") or {}).get("name") or "")
    status, spec = _mapping(raw.get("status")), _mapping(raw.get("spec"))
    bad: list[object] = []
    return NodeReport(
        node=name,
        reported_at=_time(status.get("reportedAt")),
        boot_id=str(status.get("bootID") or ""),
        pods_resource_version=_whole(status.get("podsResourceVersion")),
        pools=tuple(_each(PoolStatus, status.get("pools"), lambda pool: pool, bad)),
        pods=tuple(_each(NodePodStatus, status.get("pods"), lambda pod: _pod(name, pod), bad)),
        files=tuple(_each(FileStatus, status.get("files"), lambda file: _file(name, file), bad)),
        system=_charge(status.get("system")),
        unlisted=_charge(status.get("unlisted")),
        conditions=tuple(_each(Condition, status.get("conditions"), lambda each: each, bad)),
        heirs=dict(_each(HeirSpec, spec.get("heirs"), _heirs, bad)),
        unreadable=len(bad),
    )


_T = TypeVar("_T")


def _each(
    model: type[_M], items: Any, project: Callable[[_M], _T], bad: list[object]
) -> Iterator[_T]:
    for raw in items if isinstance(items, list) else ():
        try:
            yield project(read_leniently(model, raw))
        except ValueError:
            bad.append(raw)


def _pod(node: str, pod: NodePodStatus) -> ReportedPod:
    return ReportedPod(
        node=node,
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        labels=pod.labels,
        live=pod.live,
        demand=Charge.from_sums(pod.demand),
        charged=Charge.from_sums(pod.charged).without_zeros(),
        ended_at=pod.ended_at,
        labels_left_out=bool(pod.labels_left_out),
    )


def _file(node: str, file: FileStatus) -> ReportedFile:
    path = f"{file.mount.rstrip('/')}/{file.path.lstrip('/')}" if file.mount else file.path
    return ReportedFile(
        node=node,
        path=path,
        volume=file.volume,
        size=PageSize.from_resource(file.page_size),
        charged=quantity.parse_sum(file.charged),
        uid=file.uid,
        since=file.since,
    )


def _heirs(heir: HeirSpec) -> tuple[str, frozenset[QuotaKey]]:
    return heir.uid, frozenset(map(QuotaKey.parse, heir.quotas))


def _charge(resources: Any) -> Charge:
    try:
        return Charge.from_sums(_mapping(resources)).without_zeros()
    except ValueError:
        return NOTHING


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int:
    try:
        return int(value or 0)
    except (TypeError, ValueError):
        return 0


def _time(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
