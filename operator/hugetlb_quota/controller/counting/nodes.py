"""Nodes and the reports of their agents, with only the fields that the controller needs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from hugetlb_quota import duration, quantity
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.api.model import read_leniently
from hugetlb_quota.api.node import (
    FileStatus,
    HeirSpec,
    HugeTLBNodeStatus,
    NodePodStatus,
    ReclaimSpec,
)
from hugetlb_quota.kube.pods import share_labels
from hugetlb_quota.page_size import PageSize

#: With this taint an administrator states that a node is off (KEP-2268).
OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"
#: The fields of a report that are read beside pods and files; the other fields are for people.
_READ: Final = ("bootID", "podsResourceVersion", "reportedAt", "leftOut")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReportedPod:
    """One entry of a report: a pod that is live, or a gone pod that is still charged.

    ``namespace`` and ``name``: "" if no agent ever saw the pod in the API. ``demand``: the huge
    pages that the pod asks for. ``charged``: the kernel's charge of the pod's cgroup.
    ``labels_left_out``: whether the pod has more labels than ``labels``, because the report had no
    room.
    """

    uid: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    live: bool
    charged: Charge
    demand: Charge = NOTHING
    labels_left_out: bool = False

    @property
    def is_named(self) -> bool:
        """Whether the agent knows the pod's namespace and name."""
        return bool(self.namespace)

    @property
    def full_name(self) -> str:
        """The pod's ``namespace/name``; "" if the agent does not know them."""
        return f"{self.namespace}/{self.name}" if self.namespace else ""


@dataclass(frozen=True, slots=True)
class ReportedFile:
    """A file in a report; ``charged``: the bytes of ``size`` that are charged to ``uid``."""

    uid: str
    path: str
    size: PageSize
    charged: int


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """The spec of a HugeTLBNode: what the controller asks of the node.

    ``reclaim``: by UID, how long after the pod's end the agent may remove the pod's files.
    ``heirs``: by UID, the quotas that pay for a gone pod after its own quota was deleted.
    """

    reclaim: Mapping[str, timedelta] = field(default_factory=dict)
    heirs: Mapping[str, frozenset[QuotaKey]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeReport:
    """The last readable report of the agent on ``node``, and the spec in the same object.

    ``boot_id``: None if no report was readable yet; then the report releases nothing.
    ``reported_at``: a time of the node's clock, used only to tell heartbeats apart.
    ``lost_spec``: the spec of an earlier object that was deleted; ``spec`` may lack parts of it.
    ``pods_left_out``: whether the report leaves out pods, because it has no room. Then
    ``pods_resource_version`` is that of the last report with room for all.
    """

    node: str
    reported_at: datetime | None
    boot_id: str | None
    pods_resource_version: int
    pods: tuple[ReportedPod, ...] = ()
    files: tuple[ReportedFile, ...] = ()
    spec: NodeSpec = NodeSpec()
    lost_spec: NodeSpec = NodeSpec()
    pods_left_out: bool = False

    @property
    def full_spec(self) -> NodeSpec:
        """``spec``, completed with the heirs of ``lost_spec`` for pods in the report."""
        if self.lost_spec == NodeSpec():
            return self.spec
        reported = {pod.uid for pod in self.pods}
        heirs = {uid: keys for uid, keys in self.lost_spec.heirs.items() if uid in reported}
        # An heir means that the quota was deleted. Then only the spec says that the quota wanted
        # for the reclaim.
        reclaim = {uid: after for uid, after in self.lost_spec.reclaim.items() if uid in heirs}
        return NodeSpec(reclaim | dict(self.spec.reclaim), heirs | dict(self.spec.heirs))


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The fields of a Node object that the controller keeps.

    ``boot_id``: "" before kubelet has written one. ``version``: the resourceVersion.
    """

    name: str
    boot_id: str
    out_of_service: bool
    version: int = field(default=0, compare=False)


def project_report(raw: Mapping[str, Any], before: NodeReport | None = None) -> NodeReport | None:
    """A HugeTLBNode as a report; None if the agent has not reported yet.

    Unknown fields of a newer release are ignored.

    :param before: the last readable report; it stays in force if ``raw`` is not readable.
    """
    name = raw["metadata"]["name"]
    spec = read_spec(raw.get("spec"))
    try:
        status = raw.get("status") or {}
        read = read_leniently(
            HugeTLBNodeStatus, {key: status[key] for key in status.keys() & _READ}
        )
        if not read.boot_id:
            return None
        return NodeReport(
            node=name,
            reported_at=read.reported_at,
            boot_id=read.boot_id,
            pods_resource_version=int(read.pods_resource_version or 0),
            # An unreadable entry makes the report unreadable: without the entry the pod would
            # count as gone.
            pods=tuple(_read_pod(each) for each in _list_in(status, "pods")),
            files=tuple(_read_files(_list_in(status, "files"))),
            spec=spec,
            pods_left_out=read.left_out is not None and read.left_out.pods > 0,
        )
    except (ValueError, TypeError, AttributeError) as error:
        logger.error(
            "The report of HugeTLBNode %s can't be understood; the last readable report stays in"
            " force: %s",
            *(name, error),
        )
        if before is not None:
            return replace(before, spec=spec)
        return NodeReport(name, None, None, 0, spec=spec)


def read_spec(raw: Any) -> NodeSpec:
    """The readable rows of a HugeTLBNode's spec; the controller will write the others again."""
    spec = raw if isinstance(raw, dict) else {}
    reclaim: dict[str, timedelta] = {}
    heirs: dict[str, frozenset[QuotaKey]] = {}
    for row in _rows(spec, "reclaim"):
        try:
            entry = read_leniently(ReclaimSpec, row)
            reclaim[entry.uid] = duration.parse(entry.after)
        except ValueError:
            continue
    for row in _rows(spec, "heirs"):
        try:
            heir = read_leniently(HeirSpec, row)
        except ValueError:
            continue
        heirs[heir.uid] = frozenset(map(QuotaKey.parse, heir.quotas))
    return NodeSpec(reclaim, heirs)


def _rows(spec: Mapping[str, Any], field: str) -> list[Any]:
    """The rows of a list in a spec; none if the value is not a list."""
    rows = spec.get(field)
    return rows if isinstance(rows, list) else []


def project_node(raw: Mapping[str, Any]) -> NodeFacts:
    """Project a Node object."""
    info = (raw.get("status") or {}).get("nodeInfo") or {}
    taints = (raw.get("spec") or {}).get("taints") or ()
    return NodeFacts(
        name=raw["metadata"]["name"],
        boot_id=info.get("bootID") or "",
        out_of_service=any(taint.get("key") == OUT_OF_SERVICE for taint in taints),
        version=int(raw["metadata"].get("resourceVersion") or 0),
    )


def _list_in(status: Mapping[str, Any], name: str) -> list[Any]:
    items = status.get(name) or []
    if not isinstance(items, list):
        raise ValueError(f"status.{name} is not a list.")
    return items


def _read_pod(raw: Any) -> ReportedPod:
    pod = read_leniently(NodePodStatus, raw)
    return ReportedPod(
        uid=pod.uid,
        namespace=sys.intern(pod.namespace),
        name=pod.name,
        labels=share_labels(pod.labels),
        live=pod.live,
        charged=Charge.from_sums(pod.charged),
        demand=Charge.from_sums(pod.demand),
        labels_left_out=bool(pod.labels_left_out),
    )


def _read_files(items: Iterable[Any]) -> Iterator[ReportedFile]:
    """The readable files; files are shown to people, and no charge depends on them."""
    for raw in items:
        try:
            file = read_leniently(FileStatus, raw)
            size = PageSize.from_resource(file.page_size)
            charged = quantity.parse_sum(file.charged)
        except ValueError:
            continue
        yield ReportedFile(file.uid, _join(file.mount, file.path), size, charged)


def _join(mount: str, path: str) -> str:
    return f"{mount.rstrip('/')}/{path.lstrip('/')}" if mount else path
