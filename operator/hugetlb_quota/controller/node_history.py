"""What was seen of the nodes before: boots, arrivals, and reports whose objects were deleted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.release import NodeEvidence
from hugetlb_quota.controller.nodes import NodeFacts, NodeReport, NodeWishes

#: For how many seconds a Node without a report may yet get an agent. Within that time its
#: image is pulled and it answers its first probe, for which the chart gives it 300 s; and as long
#: again, since the pod that pulls the image waits for others on a new node.
AWAITED_FOR: Final = 600.0
#: How many of a node's boots before the present one are remembered.
_BOOTS_KEPT: Final = 8

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Seen:
    """A node: ``is_there`` while its Node object is; ``former``: its boots before ``boot_id``."""

    since: float
    boot_id: str
    is_there: bool = True
    former: tuple[str, ...] = ()
    booted_at: int | None = None


@dataclass(slots=True)
class NodeHistory:
    """Remembers what a Node and a report no longer tell, as far as this controller saw it.

    :param clock: seconds, of any beginning.
    """

    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _reporting: set[str] = field(default_factory=set)
    _deleted: dict[str, NodeReport] = field(default_factory=dict)
    _lost: dict[str, NodeWishes] = field(default_factory=dict)

    def node_changed(self, old: NodeFacts | None, new: NodeFacts | None, version: int) -> None:
        """Take in one change of a Node.

        :param version: at which it changed, by the watch; 0 when it changed some time before.
        """
        if new is None:
            if old is not None:
                self._node_gone(old.name)
            return
        seen = self._seen.get(new.name)
        if seen is None:
            self._seen[new.name] = _Seen(self.clock(), new.boot_id)
            return
        if not seen.is_there:
            seen.is_there, seen.since = True, self.clock()
        if new.boot_id and new.boot_id != seen.boot_id:
            if seen.boot_id:
                former = (*(each for each in seen.former if each != new.boot_id), seen.boot_id)
                seen.former = former[-_BOOTS_KEPT:]
                seen.booted_at = version or (0 if old is None else old.version)
            seen.boot_id = new.boot_id

    def report_changed(self, old: NodeReport | None, new: NodeReport | None) -> None:
        """Take in one change of a report; None: there is none, or its object was deleted."""
        if new is not None:
            self._reporting.add(new.node)
            if (before := self._deleted.pop(new.node, None)) is not None:
                self._lost[new.node] = before.all_wishes
        elif old is not None:
            self._reporting.discard(old.node)
            seen = self._seen.get(old.node)
            if seen is None or not seen.is_there:
                self._forget(old.node)
                return
            lost = self._lost.pop(old.node, NodeWishes())
            self._deleted[old.node] = replace(old, lost=lost)
            logger.warning(
                "HugeTLBNode %s was deleted, and its Node is there: what it told of stays charged"
                " until the agent of the node has made it anew. If the node has no agent any more,"
                " delete its Node, or taint it node.kubernetes.io/out-of-service.",
                old.node,
            )

    def _node_gone(self, name: str) -> None:
        self._deleted.pop(name, None)
        seen = self._seen.get(name)
        if seen is not None and name in self._reporting:
            # The report is deleted after its Node, and tells of the same boot until then.
            seen.is_there = False
        else:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._seen.pop(name, None)
        self._lost.pop(name, None)

    def reports(self, current: Mapping[str, NodeReport]) -> dict[str, NodeReport]:
        """``current`` by node, and the last ones of those whose objects were deleted.

        One that was made anew since has what its predecessor's spec said of heirs as ``lost``.
        """
        known = {**self._deleted, **current}
        for name, lost in self._lost.items():
            if name in current:
                known[name] = replace(current[name], lost=lost)
        return known

    def booted_at(self, name: str) -> int | None:
        """The resourceVersion at which the node told of its boot first, or an earlier one."""
        seen = self._seen.get(name)
        return None if seen is None else seen.booted_at

    def former_boots(self, name: str) -> frozenset[str]:
        """The boot IDs that the node told of before its present one."""
        seen = self._seen.get(name)
        return frozenset() if seen is None else frozenset(seen.former)

    def is_awaited(self, name: str) -> bool:
        """Whether the node came so recently that its agent may not have begun."""
        seen = self._seen.get(name)
        return seen is not None and self.clock() - seen.since < AWAITED_FOR


def evidence(
    nodes: Mapping[str, NodeFacts],
    reports: Iterable[NodeReport],
    history: NodeHistory | None = None,
) -> Mapping[str, NodeEvidence]:
    """What is known of each node, by name.

    :param nodes: every Node object there is.
    """
    history = history or NodeHistory()
    known = {
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
        known[report.node] = replace(
            known.get(report.node, NodeEvidence(exists=False)),
            reported_boot_id=report.boot_id,
            pods_resource_version=report.pods_resource_version,
            live=frozenset(pod.uid for pod in report.pods if pod.live),
            awaited=False,
        )
    return known


def heirs(reports: Iterable[NodeReport]) -> Mapping[tuple[str, str], frozenset[QuotaKey]]:
    """Who pays for pods that are gone and whose quota was deleted, by node and UID."""
    return {
        (report.node, uid): who
        for report in reports
        for uid, who in report.all_wishes.heirs.items()
    }
