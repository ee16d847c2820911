"""Computes and writes HugeTLBNode.spec: which files to remove, and which quotas are heirs."""

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
from hugetlb_quota.controller.counting.nodes import (
    NodeReport,
    NodeSpec,
    ReportedPod,
    read_spec,
)
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.resources import HUGETLB_NODES

#: The largest size of the rows in one spec, as bytes of JSON: etcd refuses an object above
#: 1.5 MiB, and the agent's report in the same object takes up to 0.9 MiB.
LARGEST_SPEC: Final = 512 << 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Succession:
    """The rule that names the heir of a quota that is being deleted.

    ``leaving``: the namespaces that are being deleted, and their quotas with them.
    """

    forest: Forest
    leaving: Collection[str]

    def hands_over(self, quota: Quota) -> bool:
        """Whether the retained charges of ``quota`` go to an heir, or to nobody."""
        if not quota.terminating:
            return False
        if quota.key.namespace in self.leaving:
            return True
        return quota.reparents and self.heir(quota) is not None

    def heir(self, quota: Quota) -> QuotaKey | None:
        """The nearest quota above ``quota`` that stays; None if there is none."""
        for above in self.forest.attached(quota.key)[1:]:
            if not self.hands_over(above):
                return above.key
        return None


def wanted_spec(
    report: NodeReport, retained: Iterable[Retained], succession: Succession
) -> NodeSpec:
    """The spec that the node's object must get.

    :param report: the last report of the node, which must be valid still.
    :param retained: the charges of gone pods.
    """
    before, forest = report.full_spec, succession.forest
    gone = {pod.uid: pod for pod in report.pods if not pod.live}
    heirs = {uid: quotas for uid, quotas in before.heirs.items() if uid in gone}
    # The reclaim that a deleted quota wanted stays in force.
    reclaim = {uid: after for uid, after in before.reclaim.items() if uid in heirs}
    for each in retained:
        if each.uid not in gone or each.node != report.node:
            continue
        payers = [forest[key] for key in each.quotas if key in forest]
        if (after := _reclaim_after(payers)) is not None:
            reclaim[each.uid] = after
        if any(succession.hands_over(quota) for quota in payers):
            stored = heirs.get(each.uid, frozenset())
            heirs[each.uid] = _heirs(gone[each.uid], payers, stored, succession)
    return fit(NodeSpec(reclaim, heirs), before)


def fit(wanted: NodeSpec, before: NodeSpec, most: int = LARGEST_SPEC) -> NodeSpec:
    """The part of ``wanted`` that has room in ``most`` bytes of rows.

    The rest waits until other pods are gone. Meanwhile no charge moves: a quota without a stored
    heir stays and pays, and the agent keeps files without a row.

    :param before: the spec until now. An heir that it names always keeps its row.
    """
    room, heirs = most, dict[str, frozenset[QuotaKey]]()
    for uid in sorted(wanted.heirs, key=lambda uid: (uid not in before.heirs, uid)):
        # An heir is stored together with the reclaim of the same pod: after the quota is deleted,
        # only the spec says that the quota wanted the reclaim.
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
    return NodeSpec(reclaim, heirs)


async def write_spec(connection: ObjectApi, report: NodeReport, wanted: NodeSpec) -> bool:
    """Replace the spec that was read with ``report`` by ``wanted``.

    A spec that another controller changed since is not replaced: the informer will show the
    change, and the next count looks at it.

    :returns: False if the write must be tried again.
    """
    try:
        raw = await connection.get(HUGETLB_NODES, report.node)
        spec = raw.get("spec") or {}
        if read_spec(spec) == report.spec:
            body = {**raw, "spec": {**spec, **_to_json(wanted)}}
            await connection.replace(HUGETLB_NODES, report.node, body)
    except errors.NotFound:
        logger.info("HugeTLBNode %s was deleted before its spec was written.", report.node)
    except errors.ApiError as error:  # also a Conflict with the agent's report
        logger.warning(
            "The spec of HugeTLBNode %s was not written; trying again: %s", report.node, error
        )
        return False
    return True


def _reclaim_after(payers: Collection[Quota]) -> timedelta | None:
    """The time from a pod's end until its files are removed; None to keep the files.

    The files are removed only if all payers want that, after the longest of their times.
    """
    times = [quota.reclaim_after for quota in payers]
    named = [after for after in times if after is not None]
    return max(named) if named and len(named) == len(times) else None


def _heirs(
    pod: ReportedPod,
    payers: Iterable[Quota],
    before: frozenset[QuotaKey],
    succession: Succession,
) -> frozenset[QuotaKey]:
    forest = succession.forest
    selecting = forest.selecting(pod.namespace, pod.labels, labels_left_out=pod.labels_left_out)
    governing = {quota.key for quota in selecting}
    heirs = {key for key in before if key in forest}
    for quota in payers:
        if succession.hands_over(quota):
            heirs.discard(quota.key)
            if (heir := succession.heir(quota)) is not None:
                heirs.add(heir)
        elif quota.terminating or quota.key not in governing:
            # Once heirs are named, neither a terminating quota pays by its selector, nor any quota
            # by the pod's line. So each of them must be an heir to go on paying.
            heirs.add(quota.key)
    return frozenset(heirs)


def _to_json(wanted: NodeSpec) -> Mapping[str, Any]:
    return HugeTLBNodeSpec(
        reclaim=[_reclaim(uid, after) for uid, after in sorted(wanted.reclaim.items())],
        heirs=[_heir(uid, quotas) for uid, quotas in sorted(wanted.heirs.items())],
    ).to_json()


def _reclaim(uid: str, after: timedelta) -> ReclaimSpec:
    return ReclaimSpec(uid=uid, after=duration.render(after))


def _heir(uid: str, quotas: Iterable[QuotaKey]) -> HeirSpec:
    return HeirSpec(uid=uid, quotas=sorted(map(str, quotas)))


def _size(row: ReclaimSpec | HeirSpec) -> int:
    """The bytes of the row as JSON, with the comma and space behind it."""
    return len(json.dumps(row.to_json())) + len(", ")
