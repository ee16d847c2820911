"""Remembers facts about nodes that the API no longer shows: boots, arrivals, deleted reports."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.release import NodeEvidence
from hugetlb_quota.controller.counting.nodes import NodeFacts, NodeReport, NodeSpec

#: The seconds within which a new Node may still get its agent. Pulling the image and answering
#: the first probe take up to 300 s, the limit in the chart. The same time again covers the wait
#: for other pods on a new node.
AWAITED_FOR: Final = 600.0
#: The number of earlier boots that are remembered for each node.
_BOOTS_KEPT: Final = 8

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Seen:
    """A node as this controller has seen it.

    ``since``: when the Node came, on the clock. ``exists``: whether the Node object exists.
    ``former``: the boot IDs before ``boot_id``, oldest first. ``booted_at``: as
    :meth:`NodeHistory.booted_at` says.
    """

    since: float
    boot_id: str
    exists: bool = True
    former: tuple[str, ...] = ()
    booted_at: int | None = None


@dataclass(slots=True)
class NodeHistory:
    """The past of each node, as far as this controller has seen it.

    :param clock: returns seconds since any fixed moment.
    """

    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _reporting: set[str] = field(default_factory=set)
    _deleted: dict[str, NodeReport] = field(default_factory=dict)
    _lost_specs: dict[str, NodeSpec] = field(default_factory=dict)

    def node_changed(self, old: NodeFacts | None, new: NodeFacts | None, version: int) -> None:
        """Take in one change of a Node.

        :param version: the resourceVersion of the change; 0 if the change was found by a list and
            happened some time before.
        """
        if new is None:
            if old is not None:
                self._node_gone(old.name)
            return
        seen = self._seen.get(new.name)
        if seen is None:
            self._seen[new.name] = _Seen(self.clock(), new.boot_id)
            return
        if not seen.exists:
            seen.exists, seen.since = True, self.clock()
        if new.boot_id and new.boot_id != seen.boot_id:
            if seen.boot_id:
                former = (*(each for each in seen.former if each != new.boot_id), seen.boot_id)
                seen.former = former[-_BOOTS_KEPT:]
                seen.booted_at = version or (0 if old is None else old.version)
            seen.boot_id = new.boot_id

    def report_changed(self, old: NodeReport | None, new: NodeReport | None) -> None:
        """Take in one change of a report; None: there is no report, or the object was deleted."""
        if new is not None:
            self._reporting.add(new.node)
            if (before := self._deleted.pop(new.node, None)) is not None:
                self._lost_specs[new.node] = before.full_spec
        elif old is not None:
            self._reporting.discard(old.node)
            seen = self._seen.get(old.node)
            if seen is None or not seen.exists:
                self._forget(old.node)
                return
            lost = self._lost_specs.pop(old.node, NodeSpec())
            self._deleted[old.node] = replace(old, lost_spec=lost)
            logger.warning(
                "HugeTLBNode %s was deleted, and its Node exists. The charges in its last report"
                " stay until the node's agent has created the object again. If the node has no"
                " agent any more, delete the Node, or taint it"
                " node.kubernetes.io/out-of-service.",
                old.node,
            )

    def _node_gone(self, name: str) -> None:
        self._deleted.pop(name, None)
        seen = self._seen.get(name)
        if seen is not None and name in self._reporting:
            # The report is deleted after its Node. Until then the report is of the same boot.
            seen.exists = False
        else:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._seen.pop(name, None)
        self._lost_specs.pop(name, None)

    def reports(self, stored: Mapping[str, NodeReport]) -> dict[str, NodeReport]:
        """The reports in force, by node: ``stored``, and the last reports of deleted objects.

        A report in an object that was created again has the heirs of the deleted object's spec in
        ``lost_spec``.
        """
        reports = {**self._deleted, **stored}
        for name, lost in self._lost_specs.items():
            if name in stored:
                reports[name] = replace(stored[name], lost_spec=lost)
        return reports

    def booted_at(self, name: str) -> int | None:
        """The resourceVersion at which the Node first had its present boot ID, or an earlier one.

        None if this controller did not see the change of the boot ID.
        """
        seen = self._seen.get(name)
        return None if seen is None else seen.booted_at

    def former_boots(self, name: str) -> frozenset[str]:
        """The boot IDs that the Node had before its present one."""
        seen = self._seen.get(name)
        return frozenset() if seen is None else frozenset(seen.former)

    def is_awaited(self, name: str) -> bool:
        """Whether the Node is so new that its agent may not run yet."""
        seen = self._seen.get(name)
        return seen is not None and self.clock() - seen.since < AWAITED_FOR


def evidence(
    nodes: Mapping[str, NodeFacts],
    reports: Iterable[NodeReport],
    history: NodeHistory | None = None,
) -> Mapping[str, NodeEvidence]:
    """The evidence of each node that has a Node object or a report, by node name.

    :param nodes: all Node objects, by name.
    """
    history = history or NodeHistory()
    found = {
        name: NodeEvidence(
            exists=True,
            out_of_service=node.out_of_service,
            former_boots=history.former_boots(name),
            booted_at=history.booted_at(name),
            awaited=history.is_awaited(name),
        )
        for name, node in nodes.items()
    }
    for report in reports:
        found[report.node] = replace(
            found.get(report.node, NodeEvidence(exists=False)),
            reported_boot_id=report.boot_id,
            pods_resource_version=report.pods_resource_version,
            live=frozenset(pod.uid for pod in report.pods if pod.live),
            awaited=False,
        )
    return found


def heirs(reports: Iterable[NodeReport]) -> Mapping[tuple[str, str], frozenset[QuotaKey]]:
    """By node name and UID, the quotas that pay for gone pods after their own quota was deleted."""
    return {
        (report.node, uid): quotas
        for report in reports
        for uid, quotas in report.full_spec.heirs.items()
    }
