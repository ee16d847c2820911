"""What is known of the nodes: their Node objects and their agents' reports, slimmed down."""

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

#: By this taint an administrator vouches that a node is off (KEP-2268).
OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"
#: What is read of a report; the rest is for people.
_READ: Final = ("bootID", "podsResourceVersion", "reportedAt", "leftOut")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReportedPod:
    """A pod, living or gone, of which a report tells.

    ``namespace`` and ``name`` are "" where no agent ever saw it in the API. ``demand``: what
    it asks for; ``charged``: what the kernel charges to its cgroup. ``partial``: it has more
    labels, for which the report had no room.
    """

    uid: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    live: bool
    charged: Charge
    demand: Charge = NOTHING
    partial: bool = False

    @property
    def is_named(self) -> bool:
        """Whether its node's agent knows who it is."""
        return bool(self.namespace)

    @property
    def full_name(self) -> str:
        """Its ``namespace/name``; "" where its node's agent does not know it."""
        return f"{self.namespace}/{self.name}" if self.namespace else ""


@dataclass(frozen=True, slots=True)
class ReportedFile:
    """A file of which a report tells; ``charged``: bytes of ``size`` charged to ``uid``."""

    uid: str
    path: str
    size: PageSize
    charged: int


@dataclass(frozen=True, slots=True)
class NodeWishes:
    """A HugeTLBNode's spec: what the controller has written there.

    ``reclaim``: how long after its end a pod's files go, by UID. ``heirs``: who pays, by UID.
    """

    reclaim: Mapping[str, timedelta] = field(default_factory=dict)
    heirs: Mapping[str, frozenset[QuotaKey]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeReport:
    """An agent's last report on ``node`` that could be read, and the controller's wishes.

    ``boot_id``: None when no report could ever be read; then it releases nothing.
    ``reported_at``: by the node's clock; here it only tells one heartbeat from another.
    ``lost``: wishes of an object that was deleted, which this one's spec may lack. ``is_cut``: it
    has no room for all of the node's pods, and proves no end since the last that had them all.
    """

    node: str
    reported_at: datetime | None
    boot_id: str | None
    pods_resource_version: int
    pods: tuple[ReportedPod, ...] = ()
    files: tuple[ReportedFile, ...] = ()
    wishes: NodeWishes = NodeWishes()
    lost: NodeWishes = NodeWishes()
    is_cut: bool = False

    @property
    def all_wishes(self) -> NodeWishes:
        """What holds of those that were lost, and of those that are stored."""
        if self.lost == NodeWishes():
            return self.wishes
        told = {pod.uid for pod in self.pods}
        heirs = {uid: who for uid, who in self.lost.heirs.items() if uid in told}
        # What a quota asked for holds on once that is deleted, and so there is an heir.
        reclaim = {uid: it for uid, it in self.lost.reclaim.items() if uid in heirs}
        return NodeWishes(reclaim | dict(self.wishes.reclaim), heirs | dict(self.wishes.heirs))


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What the Node object ``name`` tells; ``boot_id`` is "" before kubelet has told one."""

    name: str
    boot_id: str
    out_of_service: bool
    version: int = field(default=0, compare=False)


def project_report(raw: Mapping[str, Any], known: NodeReport | None = None) -> NodeReport | None:
    """A HugeTLBNode as a report; None where its agent has not reported yet.

    A field of a newer release is passed over.

    :param known: the last that could be read: it holds as long as a newer one can't be.
    """
    name = raw["metadata"]["name"]
    wishes = read_wishes(raw.get("spec"))
    try:
        status = raw.get("status") or {}
        told = read_leniently(
            HugeTLBNodeStatus, {key: status[key] for key in status.keys() & _READ}
        )
        if not told.boot_id:
            return None
        return NodeReport(
            node=name,
            reported_at=told.reported_at,
            boot_id=told.boot_id,
            pods_resource_version=int(told.pods_resource_version or 0),
            # One that is left out would be one that is gone.
            pods=tuple(_read_pod(each) for each in _listed(status, "pods")),
            files=tuple(_read_files(_listed(status, "files"))),
            wishes=wishes,
            is_cut=told.left_out is not None and told.left_out.pods > 0,
        )
    except (ValueError, TypeError, AttributeError) as error:
        logger.error(
            "The report of HugeTLBNode %s can't be understood, so it changes nothing: %s",
            *(name, error),
        )
        if known is not None:
            return replace(known, wishes=wishes)
        return NodeReport(name, None, None, 0, wishes=wishes)


def read_wishes(spec: Any) -> NodeWishes:
    """What of a HugeTLBNode's spec can be read: the controller writes it anew."""
    wishes = spec if isinstance(spec, dict) else {}
    reclaim: dict[str, timedelta] = {}
    heirs: dict[str, frozenset[QuotaKey]] = {}
    for raw in wishes.get("reclaim") or ():
        try:
            entry = read_leniently(ReclaimSpec, raw)
            reclaim[entry.uid] = duration.parse(entry.after)
        except ValueError:
            continue
    for raw in wishes.get("heirs") or ():
        try:
            heir = read_leniently(HeirSpec, raw)
        except ValueError:
            continue
        heirs[heir.uid] = frozenset(map(QuotaKey.parse, heir.quotas))
    return NodeWishes(reclaim, heirs)


def project_node(raw: Mapping[str, Any]) -> NodeFacts:
    """What a Node object tells."""
    info = (raw.get("status") or {}).get("nodeInfo") or {}
    taints = (raw.get("spec") or {}).get("taints") or ()
    return NodeFacts(
        name=raw["metadata"]["name"],
        boot_id=info.get("bootID") or "",
        out_of_service=any(taint.get("key") == OUT_OF_SERVICE for taint in taints),
        version=int(raw["metadata"].get("resourceVersion") or 0),
    )


def _listed(status: Mapping[str, Any], name: str) -> list[Any]:
    items = status.get(name) or []
    if not isinstance(items, list):
        raise ValueError(f"status.{name} is no list.")
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
        partial=bool(pod.labels_left_out),
    )


def _read_files(items: Iterable[Any]) -> Iterator[ReportedFile]:
    """Those that can be read: they are told to people, and count nowhere."""
    for raw in items:
        try:
            file = read_leniently(FileStatus, raw)
            size = PageSize.from_resource(file.page_size)
            charged = quantity.parse_sum(file.charged)
        except ValueError:
            continue
        yield ReportedFile(file.uid, _joined(file.mount, file.path), size, charged)


def _joined(mount: str, path: str) -> str:
    return f"{mount.rstrip('/')}/{path.lstrip('/')}" if mount else path
