"""The pods bound to this node, by the UID in the names of their cgroups."""

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
    """A pod as it was seen last; ``ended``: deleted, or Succeeded or Failed."""

    pod: Pod
    ended: bool

    @property
    def asks(self) -> bool:
        """Whether it asks for huge pages, or may."""
        return bool(self.pod.demand or self.pod.malformed)


def by_cgroup(
    pods: Iterable[Pod], others: Container[str], remembered: Mapping[str, str]
) -> dict[str, Pod]:
    """The pod that each cgroup is of, by the UID in the cgroup's name.

    A static pod's has the hash of its manifest there, which the pod in the API that mirrors it
    names in an annotation. Whoever may create pods may write such an annotation: it is not
    believed where the hash is a pod's own UID, nor where two pods claim it. A pod that is not
    believed stands for its own UID, as any other.

    :param others: UIDs of pods that are not among ``pods``.
    :param remembered: by hash the UID of the pod that it stood for until now: of two that claim
        the hash that one is believed.
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
    """Fed by the informer's changes.

    A pod that is deleted is kept until :meth:`forget`: its cgroup, and so its limits and its
    charge, can outlive its object.
    """

    def __init__(self) -> None:
        self._pods: dict[str, Pod] = {}
        self._deleted: dict[str, Pod] = {}
        self._remembered: Mapping[str, str] = {}
        self._real: frozenset[str] = frozenset()
        self._seen: Mapping[str, SeenPod] | None = None
        #: How many ends of pods with huge pages were seen.
        self.ends = 0

    def changed(self, old: Pod | None, new: Pod | None) -> None:
        """Take in a change of a pod."""
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
        """What was reported until now.

        :param static: which pod each static pod's hash stands for.
        :param real: UIDs of other pods: no hash that a pod claims can be one of them.
        """
        if (static, real) != (self._remembered, self._real):
            self._remembered, self._real = dict(static), real
            self._seen = None

    def forget(self, kept: Container[str], seen: Mapping[str, SeenPod]) -> None:
        """Deleted pods whose cgroup's UID is not in ``kept``: nothing is left of them.

        :param seen: the pods as they were when it was looked what is left. Of a pod that was
            deleted since, nobody has looked.
        """
        gone = [
            each.pod.uid
            for uid, each in self.seen().items()
            if each.pod.uid in self._deleted
            and uid not in kept
            and (before := seen.get(uid)) is not None
            and before.ended
        ]
        # Nor of those in whose place another has come.
        held = {each.pod.uid for each in self.seen().values()}
        for uid in (*gone, *(self._deleted.keys() - held)):
            del self._deleted[uid]
        if gone:
            self._seen = None

    def seen(self) -> Mapping[str, SeenPod]:
        """Every pod that is not forgotten, by the UID in the name of its cgroup."""
        if self._seen is None:
            there = by_cgroup(
                self._pods.values(), self._deleted.keys() | self._real, self._remembered
            )
            gone = by_cgroup(
                self._deleted.values(), self._pods.keys() | self._real, self._remembered
            )
            found = {uid: SeenPod(pod, ended=True) for uid, pod in gone.items()}
            found |= {uid: SeenPod(pod, pod.finished) for uid, pod in there.items()}
            self._seen = MappingProxyType(found)
        return self._seen

    def allowance(self, cgroup: str) -> Allowance | None:
        """What the pod whose cgroup has this UID may use; None when the pod is not known."""
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
        """What all pods that have not ended ask for together."""
        return Charge.total(each.pod.demand for each in self.seen().values() if not each.ended)
