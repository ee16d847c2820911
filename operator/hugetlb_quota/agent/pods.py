"""The pods that are bound to this node, by the UID in the names of their cgroups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.plan import Allowance
from hugetlb_quota.kube.pods import Pod


@dataclass(frozen=True, slots=True)
class SeenPod:
    """A pod as the API showed it last.

    ``ended`` is True if the pod is deleted, Succeeded or Failed.
    """

    pod: Pod
    ended: bool

    @property
    def asks(self) -> bool:
        """True if the pod asks for huge pages, or if its request can't be parsed."""
        return bool(self.pod.demand or self.pod.malformed)


def by_cgroup(
    pods: Iterable[Pod], others: Container[str], remembered: Mapping[str, str]
) -> dict[str, Pod]:
    """Return the pod of each cgroup, by the UID in the cgroup's name.

    The cgroup of a static pod has the hash of the pod's manifest in its name. The mirror pod in the
    API claims the hash in an annotation. Any user who can create pods can write this annotation.
    So a claim is ignored if the hash is the UID of a pod, or if two pods claim the hash. Then the
    pod has its own UID, as other pods.

    :param others: the UIDs of pods that are not in ``pods``.
    :param remembered: the UID of the pod that each hash belonged to until now. If two pods claim a
        hash, this pod keeps the hash.
    """
    pods = tuple(pods)
    own = {pod.uid: pod for pod in pods}
    claims: defaultdict[str, list[Pod]] = defaultdict(list)
    for pod in pods:
        hash_ = pod.static_hash
        if hash_ is not None and hash_ not in own and hash_ not in others:
            claims[hash_].append(pod)
    found = dict(own)
    for hash_, claimants in claims.items():
        if len(claimants) > 1:
            claimants = [pod for pod in claimants if pod.uid == remembered.get(hash_)]
        for pod in claimants:
            found[hash_] = found.pop(pod.uid)
    return found


class NodePods:
    """All pods of this node; the informer's changes keep it up to date.

    A deleted pod stays until :meth:`forget`, because its cgroup can outlive its object, and with
    the cgroup its limits and its charge.
    """

    def __init__(self) -> None:
        self._pods: dict[str, Pod] = {}
        self._deleted: dict[str, Pod] = {}
        self._remembered: Mapping[str, str] = {}
        self._real: frozenset[str] = frozenset()
        self._seen: Mapping[str, SeenPod] | None = None
        #: The number of pods with huge pages that were seen to end.
        self.ends = 0

    def changed(self, old: Pod | None, new: Pod | None) -> None:
        """Take over the change of a pod from ``old`` to ``new``; None means that it is deleted."""
        if new is not None:
            self._pods[new.uid] = new
            self._deleted.pop(new.uid, None)
        elif old is not None:
            self._pods.pop(old.uid, None)
            self._deleted[old.uid] = old
        if old is not None and old.demand and (new is None or new.finished > old.finished):
            self.ends += 1
        self._seen = None

    def remember(self, static: Mapping[str, str], real: frozenset[str]) -> None:
        """Remember what was reported until now.

        :param static: the UID of each static pod, by its hash.
        :param real: the UIDs of other pods; no pod can claim one of these as its hash.
        """
        if (static, real) != (self._remembered, self._real):
            self._remembered, self._real = dict(static), real
            self._seen = None

    def forget(self, kept: Container[str], seen: Mapping[str, SeenPod]) -> None:
        """Forget the deleted pods that have left nothing.

        :param kept: the pods that have left a cgroup or a charge, by the UID in the cgroup's name.
        :param seen: the pods before the read that found ``kept``. A pod that was deleted after
            this moment stays.
        """
        gone = [
            each.pod.uid
            for uid, each in self.seen().items()
            if each.pod.uid in self._deleted
            and uid not in kept
            and (before := seen.get(uid)) is not None
            and before.ended
        ]
        # Forget also the deleted pods that another pod has replaced.
        current = {each.pod.uid for each in self.seen().values()}
        for uid in (*gone, *(self._deleted.keys() - current)):
            del self._deleted[uid]
        if gone:
            self._seen = None

    def seen(self) -> Mapping[str, SeenPod]:
        """Return every pod that is not forgotten, by the UID in the name of its cgroup."""
        if self._seen is None:
            present = by_cgroup(
                self._pods.values(), self._deleted.keys() | self._real, self._remembered
            )
            deleted = by_cgroup(
                self._deleted.values(), self._pods.keys() | self._real, self._remembered
            )
            found = {uid: SeenPod(pod, ended=True) for uid, pod in deleted.items()}
            found |= {uid: SeenPod(pod, pod.finished) for uid, pod in present.items()}
            self._seen = MappingProxyType(found)
        return self._seen

    def allowance(self, cgroup: str) -> Allowance | None:
        """Return what a pod may use; None if the API has not shown the pod.

        :param cgroup: the UID in the name of the pod's cgroup.
        """
        seen = self.seen().get(cgroup)
        if seen is None:
            return None
        pod = seen.pod
        return Allowance(
            demand=pod.demand,
            containers={
                each.container_id: each.request for each in pod.containers if each.container_id
            },
            pod_level=pod.pod_level,
        )

    def demand(self) -> Charge:
        """Return the demand of all pods together that have not ended."""
        return Charge.total(each.pod.demand for each in self.seen().values() if not each.ended)
