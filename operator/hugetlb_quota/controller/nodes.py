"""What is known of the nodes: their Node objects and their agents' reports, slimmed down."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import ChargedPod, Retained, RetainedFile
from hugetlb_quota.accounting.release import NodeEvidence, has_forgotten
from hugetlb_quota.api.node import HugeTLBNode
from hugetlb_quota.page_size import PageSize

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeReport:
    """An agent's last report on ``node``.

    ``boot_id``: None when the report can't be understood; then it releases nothing.
    ``reported_at``: by the node's clock; here it only tells one heartbeat from another.
    """

    node: str
    reported_at: datetime | None
    boot_id: str | None
    pods_resource_version: int
    pods: tuple[ChargedPod, ...]
    retained: tuple[Retained, ...] = ()
    files: tuple[RetainedFile, ...] = ()
    pods_since: int | None = None
    settled: frozenset[str] = frozenset()


def project_report(raw: Mapping[str, Any]) -> NodeReport | None:
    """A HugeTLBNode as a report; None where its agent has not reported yet."""
    name = raw["metadata"]["name"]
    try:
        status = HugeTLBNode.model_validate(raw).status
        if not status.boot_id:
            return None
        pods = tuple(
            ChargedPod(
                pod.uid,
                Charge.from_resources(pod.charge),
                frozenset(map(QuotaKey.parse, pod.quotas)),
            )
            for pod in status.pods
        )
        retained = tuple(
            Retained(
                Charge.from_resources(each.charge), frozenset(map(QuotaKey.parse, each.quotas))
            )
            for each in status.retained
        )
        files = tuple(
            RetainedFile(
                node=name,
                path=_joined(file.mount, file.path),
                pod=file.pod,
                size=PageSize.from_resource(file.page_size),
                charged=quantity.parse(file.charged),
                quotas=frozenset(map(QuotaKey.parse, file.quotas)),
            )
            for file in status.files
            if file.retained
        )
        version = int(status.pods_resource_version or 0)
        since = int(status.pods_since) if status.pods_since else None
        return NodeReport(
            *(name, status.reported_at, status.boot_id, version, pods, retained, files),
            *(since, frozenset(status.settled)),
        )
    except ValueError as error:
        logger.error("HugeTLBNode %s can't be understood, so it releases nothing: %s", name, error)
        return NodeReport(name, None, None, 0, ())


def project_boot_id(raw: Mapping[str, Any]) -> str:
    """The boot ID that a Node tells, "" before kubelet has told one."""
    info = (raw.get("status") or {}).get("nodeInfo") or {}
    boot_id: str = info.get("bootID") or ""
    return boot_id


def evidence(
    boot_ids: Mapping[str, str], reports: Iterable[NodeReport]
) -> Mapping[str, NodeEvidence]:
    """What is known of each node, by name.

    :param boot_ids: of every Node object there is.
    """
    known = {
        name: NodeEvidence(exists=True, boot_id=boot or None) for name, boot in boot_ids.items()
    }
    for report in reports:
        known[report.node] = NodeEvidence(
            exists=report.node in boot_ids,
            boot_id=boot_ids.get(report.node) or None,
            reported_boot_id=report.boot_id,
            pods_resource_version=report.pods_resource_version,
            pods_since=report.pods_since,
            live=frozenset(pod.uid for pod in report.pods),
            settled=report.settled,
        )
    return known


def remembering(
    known: Mapping[str, NodeEvidence], reports: Iterable[NodeReport]
) -> tuple[NodeReport, ...]:
    """The reports that still hold: what is retained outlives no node and no boot."""
    return tuple(report for report in reports if not has_forgotten(known[report.node]))


def _joined(mount: str, path: str) -> str:
    return f"{mount.rstrip('/')}/{path.lstrip('/')}" if mount else path
