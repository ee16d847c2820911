"""What the API says of this node's pods: which are governed, by whom, for how much."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hugetlb_quota import duration
from hugetlb_quota.accounting.forest import LONGEST_CHAIN, Forest, Quota, QuotaKey
from hugetlb_quota.accounting.plan import Allowance
from hugetlb_quota.accounting.recount import Unreported, merge_unreported
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.agent.ledger import Known
from hugetlb_quota.api.quota import RetainedSpec, UnreportedStatus
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import read_unreported

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Governor:
    """What a node needs to know of a quota; ``unreported`` are its pods of this node alone."""

    quota: Quota
    unreported: tuple[Unreported, ...] = ()


def project_governor(raw: Mapping[str, Any], node: str) -> Governor:
    """Which pods a HugeTLBQuota governs, its parent, whether it goes, and whom ``node`` missed.

    Its status changes with every pod that is admitted; without the rest of it, those changes
    are none here. A selector that can't be understood selects every pod: what is governed
    is held to what it asks for, which harms nobody.
    """
    metadata = raw["metadata"]
    key = QuotaKey(metadata.get("namespace", ""), metadata["name"])
    try:
        selector = Selector.from_json((raw.get("spec") or {}).get("podSelector"))
    except (KeyError, TypeError, AttributeError) as error:
        logger.warning("HugeTLBQuota %s: its podSelector can't be understood: %r.", key, error)
        selector = Selector()
    parent = (raw.get("spec") or {}).get("parentRef")
    quota = Quota(
        key=key,
        pod_selector=selector,
        parent=None if parent is None else QuotaKey(parent["namespace"], parent["name"]),
        terminating="deletionTimestamp" in metadata,
        reclaim_after=_reclaim_after(key, (raw.get("spec") or {}).get("retained") or {}),
    )
    told = (raw.get("status") or {}).get("unreported") or ()
    return Governor(quota, tuple(_unreported(key, told, node)))


def _unreported(key: QuotaKey, told: Any, node: str) -> Iterator[Unreported]:
    for entry in told:
        try:
            pod = read_unreported(UnreportedStatus.model_validate(entry))
        except ValueError as error:
            # It stays charged: nobody says that it is settled.
            logger.warning("HugeTLBQuota %s: an unreported pod is passed over: %s", key, error)
            continue
        if pod.node == node:
            yield pod


def _reclaim_after(key: QuotaKey, retained: Mapping[str, Any]) -> timedelta | None:
    if retained.get("policy") != "Truncate":
        return None
    try:
        return duration.parse(retained.get("after") or RetainedSpec().after)
    except duration.MalformedDuration as error:
        logger.warning("HugeTLBQuota %s: its files are kept: %s", key, error)
        return None


class Governance:
    """The pods bound to this node and the quotas that select them.

    Fed by the informers' changes. A pod that is deleted is kept until :meth:`forget`:
    its cgroup, and so its limits and its charge, can outlive its object.
    """

    def __init__(self) -> None:
        self._pods: dict[str, Pod] = {}
        self._deleted: dict[str, Pod] = {}
        self._static: dict[str, str] = {}  # the hash in a static pod's cgroup: its UID
        self._quotas: dict[QuotaKey, Quota] = {}
        self._unreported: dict[QuotaKey, tuple[Unreported, ...]] = {}
        self._forest: Forest | None = None
        #: How many ends of pods with huge pages were seen.
        self.ends = 0
        #: Called with the UID in a pod's cgroup name when what is known of it changed.
        self.on_pod: Callable[[str], None] = lambda cgroup_uid: None
        #: Called when any pod may be governed otherwise than before.
        self.on_quotas: Callable[[], None] = lambda: None

    def pod_changed(self, old: Pod | None, new: Pod | None, at: int) -> None:
        """Take in a change of a pod."""
        if new is not None:
            self._pods[new.uid] = new
            self._deleted.pop(new.uid, None)
            if new.static_hash is not None:
                self._static[new.static_hash] = new.uid
        elif old is not None:
            self._pods.pop(old.uid, None)
            self._deleted[old.uid] = old
        if old is not None and old.demand and (new is None or new.finished > old.finished):
            self.ends += 1
        changed = new or old
        if changed is not None:
            self.on_pod(changed.cgroup_uid)

    def quota_changed(self, old: Governor | None, new: Governor | None, at: int) -> None:
        """Take in a change of a quota."""
        if old is not None:
            self._quotas.pop(old.quota.key, None)
            self._unreported.pop(old.quota.key, None)
        if new is not None:
            self._quotas[new.quota.key] = new.quota
            if new.unreported:
                self._unreported[new.quota.key] = new.unreported
        self._forest = None
        self.on_quotas()

    def pods(self) -> Iterator[Pod]:
        """Those in the API, finished ones included."""
        return iter(self._pods.values())

    def deleted(self) -> Iterator[Pod]:
        """Those that were deleted and not forgotten."""
        return iter(self._deleted.values())

    def unreported(self) -> tuple[Unreported, ...]:
        """Those that ended while no agent ran, and that the controller asks for."""
        return tuple(merge_unreported(self._unreported).values())

    def knows(self, uid: str) -> bool:
        """Whether a pod of this UID was ever seen, and not forgotten."""
        return uid in self._pods or uid in self._deleted

    def forget(self, uid: str) -> None:
        """A deleted pod whose cgroup is gone."""
        pod = self._deleted.pop(uid, None)
        if pod is not None and pod.static_hash and self._static.get(pod.static_hash) == uid:
            del self._static[pod.static_hash]

    def governors(self, pod: Pod) -> tuple[QuotaKey, ...]:
        """The quotas that govern ``pod`` directly, in order; none: it is not governed."""
        if self._forest is None:
            # Selecting needs no labels of namespaces: a quota governs its own alone.
            self._forest = Forest(self._quotas.values(), {})
        return tuple(
            sorted(quota.key for quota in self._forest.selecting(pod.namespace, pod.labels))
        )

    def known(self) -> dict[str, Known]:
        """Every pod that is not forgotten, by the UID in the name of its cgroup."""
        return {
            pod.cgroup_uid: self._known(pod)
            for pod in (*self._deleted.values(), *self._pods.values())
        }

    def known_as(self, cgroup: str) -> dict[str, Known]:
        """The same of the pod alone whose cgroup has this UID; nothing when there is none."""
        pod = self._in_cgroup(cgroup)
        return {} if pod is None else {cgroup: self._known(pod)}

    def _known(self, pod: Pod) -> Known:
        quotas = tuple(map(str, self.governors(pod)))
        over = pod.finished or pod.uid in self._deleted
        return Known(pod.namespace, pod.name, quotas, pod.demand, over, pod.volumes)

    def reclaim_waits(self) -> dict[str, timedelta]:
        """How long a pod must be gone, by the quotas that ask for its files to be reclaimed."""
        return {
            str(key): quota.reclaim_after
            for key, quota in self._quotas.items()
            if quota.reclaim_after is not None
        }

    def heirs(self) -> dict[str, str | None]:
        """Who is charged for what is retained under each quota that is being deleted.

        That a quota may go in spite of it is decided at admission. None: nobody is above
        it that stays.
        """
        return {
            str(key): self._heir(quota) for key, quota in self._quotas.items() if quota.terminating
        }

    def _heir(self, quota: Quota) -> str | None:
        for _ in range(LONGEST_CHAIN):
            above = self._quotas.get(quota.parent) if quota.parent is not None else None
            if above is None or not above.terminating:
                return None if above is None else str(above.key)
            quota = above
        return None

    def allowance(self, cgroup: str) -> Allowance | None:
        """What the pod whose cgroup has this UID may use; None when it is not governed."""
        pod = self._in_cgroup(cgroup)
        if pod is None or not self.governors(pod):
            return None
        return Allowance(
            demand=pod.demand,
            containers={
                each.container_id: each.request for each in pod.containers if each.container_id
            },
            pod_level=pod.pod_level,
        )

    def _in_cgroup(self, cgroup: str) -> Pod | None:
        # A pod's own UID first: annotations, which make a pod static, are its user's.
        pod = self._find(cgroup)
        if pod is None or pod.static_hash is not None:
            pod = self._find(self._static.get(cgroup, ""))
        return pod

    def _find(self, uid: str) -> Pod | None:
        return self._pods.get(uid) or self._deleted.get(uid)
