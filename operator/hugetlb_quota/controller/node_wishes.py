"""What the controller wants of each node, in HugeTLBNode.spec: reclaim, and who inherits."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hugetlb_quota import duration
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import Retained
from hugetlb_quota.api.node import HeirSpec, HugeTLBNodeSpec, ReclaimSpec
from hugetlb_quota.controller.nodes import NodeReport, NodeWishes, read_wishes
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.resources import HUGETLB_NODES

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Succession:
    """Who follows a quota that is being deleted.

    ``leaving``: namespaces that are being deleted: they take their quotas along.
    """

    forest: Forest
    leaving: Collection[str]

    def moves(self, quota: Quota) -> bool:
        """Whether what is retained under ``quota`` goes to another, or to nobody."""
        if not quota.terminating:
            return False
        if quota.key.namespace in self.leaving:
            return True
        return quota.reparents and self.heir(quota) is not None

    def heir(self, quota: Quota) -> QuotaKey | None:
        """The nearest quota above that stays."""
        for above in self.forest.attached(quota.key)[1:]:
            if not self.moves(above):
                return above.key
        return None


def wishes(report: NodeReport, retained: Iterable[Retained], succession: Succession) -> NodeWishes:
    """What the spec of the node's object must say.

    :param report: the node's last, which holds still.
    :param retained: what is charged to pods that are gone.
    """
    before, forest = report.all_wishes, succession.forest
    gone = {pod.uid for pod in report.pods if not pod.live}
    heirs = {uid: quotas for uid, quotas in before.heirs.items() if uid in gone}
    # What a quota asked for that was deleted since holds on.
    reclaim = {uid: after for uid, after in before.reclaim.items() if uid in heirs}
    for each in retained:
        if each.uid not in gone or each.node != report.node:
            continue
        paying = [forest[key] for key in each.quotas if key in forest]
        if (after := _reclaim_after(paying)) is not None:
            reclaim[each.uid] = after
        if any(succession.moves(quota) for quota in paying):
            heirs[each.uid] = _heirs(paying, heirs.get(each.uid, frozenset()), succession)
    return NodeWishes(reclaim, heirs)


async def write_wishes(connection: Connection, report: NodeReport, wanted: NodeWishes) -> bool:
    """Write ``wanted`` over the wishes that were read with ``report``, unless others did since.

    :returns: whether nothing is to be tried again: what another has written meanwhile comes
        by the watch, and is looked at then.
    """
    try:
        raw = await connection.get(HUGETLB_NODES, report.node)
        spec = raw.get("spec") or {}
        if read_wishes(spec) == report.wishes:
            body = {**raw, "spec": {**spec, **_to_json(wanted)}}
            await connection.replace(HUGETLB_NODES, report.node, body)
    except errors.NotFound:
        logger.info("HugeTLBNode %s went while its spec was written.", report.node)
    except errors.ApiError as error:  # a Conflict with the agent's report among them
        logger.warning(
            "The spec of HugeTLBNode %s was not written; trying again: %s", report.node, error
        )
        return False
    return True


def _reclaim_after(paying: Collection[Quota]) -> timedelta | None:
    """How long after its end a pod's files go: when all that pay ask for it, the longest."""
    times = [quota.reclaim_after for quota in paying]
    asked = [after for after in times if after is not None]
    return max(asked) if asked and len(asked) == len(times) else None


def _heirs(
    paying: Iterable[Quota], before: frozenset[QuotaKey], succession: Succession
) -> frozenset[QuotaKey]:
    heirs = {key for key in before if key in succession.forest}
    for quota in paying:
        if succession.moves(quota):
            heirs.discard(quota.key)
            if (heir := succession.heir(quota)) is not None:
                heirs.add(heir)
        elif quota.terminating:
            # It governs no pod any more that has an heir, and pays on.
            heirs.add(quota.key)
    return frozenset(heirs)


def _to_json(wanted: NodeWishes) -> Mapping[str, Any]:
    return HugeTLBNodeSpec(
        reclaim=[
            ReclaimSpec(uid=uid, after=duration.render(after))
            for uid, after in sorted(wanted.reclaim.items())
        ],
        heirs=[
            HeirSpec(uid=uid, quotas=sorted(map(str, quotas)))
            for uid, quotas in sorted(wanted.heirs.items())
        ],
    ).to_json()
