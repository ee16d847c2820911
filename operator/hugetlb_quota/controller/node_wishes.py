"""What the controller wants of each node, in HugeTLBNode.spec: reclaim, and who inherits."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from hugetlb_quota import duration
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import Retained
from hugetlb_quota.api.node import HeirSpec, HugeTLBNodeSpec, ReclaimSpec
from hugetlb_quota.controller.nodes import NodeReport, NodeWishes, read_wishes
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.resources import HUGETLB_NODES

#: Bytes of rows in a spec as JSON, at most: etcd takes no object above 1.5 MiB, and the agent's
#: report is up to 0.9 MiB of it.
MOST: Final = 512 << 10

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
    return fit(NodeWishes(reclaim, heirs), before)


def fit(wanted: NodeWishes, before: NodeWishes, most: int = MOST) -> NodeWishes:
    """What of ``wanted`` has room in ``most`` bytes of rows.

    The rest waits until others are gone, and nothing is charged to another meanwhile: a quota
    without an heir for what it holds stays and pays, and files without a row are kept.

    :param before: what was wanted until now: of that an heir is always kept.
    """
    room, heirs = most, dict[str, frozenset[QuotaKey]]()
    for uid in sorted(wanted.heirs, key=lambda uid: (uid not in before.heirs, uid)):
        # Once its quota is gone nobody else knows that it asked for the files to be removed.
        after = wanted.reclaim.get(uid)
        size = _size(_heir(uid, wanted.heirs[uid]))
        size += 0 if after is None else _size(_reclaim(uid, after))
        if size <= room or uid in before.heirs:
            heirs[uid] = wanted.heirs[uid]
            room -= size
    reclaim = {uid: wanted.reclaim[uid] for uid in heirs if uid in wanted.reclaim}
    others = wanted.reclaim.keys() - heirs.keys()
    for uid in sorted(others, key=lambda uid: (uid not in before.reclaim, uid)):
        room -= _size(_reclaim(uid, wanted.reclaim[uid]))
        if room < 0:
            break
        reclaim[uid] = wanted.reclaim[uid]
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
        reclaim=[_reclaim(uid, after) for uid, after in sorted(wanted.reclaim.items())],
        heirs=[_heir(uid, quotas) for uid, quotas in sorted(wanted.heirs.items())],
    ).to_json()


def _reclaim(uid: str, after: timedelta) -> ReclaimSpec:
    return ReclaimSpec(uid=uid, after=duration.render(after))


def _heir(uid: str, quotas: Iterable[QuotaKey]) -> HeirSpec:
    return HeirSpec(uid=uid, quotas=sorted(map(str, quotas)))


def _size(row: ReclaimSpec | HeirSpec) -> int:
    """Bytes that it takes with the comma after it."""
    return len(json.dumps(row.to_json())) + len(", ")
