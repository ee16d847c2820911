"""What is known of the nodes: their Node objects and their agents' reports, slimmed down."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from hugetlb_quota import duration, quantity
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.release import NodeEvidence
from hugetlb_quota.api.model import read_leniently
from hugetlb_quota.api.node import (
    FileStatus,
    HeirSpec,
    HugeTLBNodeStatus,
    NodePodStatus,
    ReclaimSpec,
)
from hugetlb_quota.page_size import PageSize

#: By this taint an administrator vouches that a node is off (KEP-2268).
OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"
#: What is read of a report; the rest is for people.
_READ: Final = ("bootID", "podsResourceVersion", "reportedAt")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReportedPod:
    """A pod, living or gone, of which a report tells.

    ``namespace`` and ``name`` are "" where no agent ever saw it in the API. ``demand``: what
    it asks for; ``charged``: what the kernel charges to its cgroup.
    """

    uid: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    live: bool
    charged: Charge
    demand: Charge = NOTHING

    @property
    def is_named(self) -> bool:
        """Whether its node's agent knows who it is."""
        return bool(self.namespace)


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
    """

    node: str
    reported_at: datetime | None
    boot_id: str | None
    pods_resource_version: int
    pods: tuple[ReportedPod, ...] = ()
    files: tuple[ReportedFile, ...] = ()
    wishes: NodeWishes = NodeWishes()


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


class Boots:
    """Remembers when each node's boot ID changed, as far as that was seen."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}

    def node_changed(self, old: NodeFacts | None, new: NodeFacts | None, version: int) -> None:
        """Take in one change of a Node.

        :param version: at which it changed, by the watch; 0 when it changed some time before.
        """
        if new is None:
            if old is not None:
                self._at.pop(old.name, None)
        elif old is not None and old.boot_id != new.boot_id:
            self._at[new.name] = version or old.version

    def at(self, name: str) -> int | None:
        """The resourceVersion at which the node told of its boot first, or an earlier one."""
        return self._at.get(name)


def evidence(
    nodes: Mapping[str, NodeFacts], reports: Iterable[NodeReport], boots: Boots | None = None
) -> Mapping[str, NodeEvidence]:
    """What is known of each node, by name.

    :param nodes: every Node object there is.
    """
    known = {
        name: NodeEvidence(
            exists=True,
            out_of_service=node.out_of_service,
            boot_id=node.boot_id or None,
            booted_at=None if boots is None else boots.at(name),
        )
        for name, node in nodes.items()
    }
    for report in reports:
        known[report.node] = replace(
            known.get(report.node, NodeEvidence(exists=False)),
            reported_boot_id=report.boot_id,
            pods_resource_version=report.pods_resource_version,
            live=frozenset(pod.uid for pod in report.pods if pod.live),
        )
    return known


def heirs(reports: Iterable[NodeReport]) -> Mapping[tuple[str, str], frozenset[QuotaKey]]:
    """Who pays for pods that are gone and whose quota was deleted, by node and UID."""
    return {
        (report.node, uid): who for report in reports for uid, who in report.wishes.heirs.items()
    }


def _listed(status: Mapping[str, Any], name: str) -> list[Any]:
    items = status.get(name) or []
    if not isinstance(items, list):
        raise ValueError(f"status.{name} is no list.")
    return items


def _read_pod(raw: Any) -> ReportedPod:
    pod = read_leniently(NodePodStatus, raw)
    return ReportedPod(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        labels=pod.labels,
        live=pod.live,
        charged=Charge.from_sums(pod.charged),
        demand=Charge.from_sums(pod.demand),
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
