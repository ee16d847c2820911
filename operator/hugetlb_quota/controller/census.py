"""The census: which pods are charged at this moment, and which are merely held.

Fed by informers, read by the recount. No requests are made here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.recount import ChargedPod
from hugetlb_quota.accounting.release import EndedPod, NodeEvidence, is_released
from hugetlb_quota.controller.nodes import NodeReport
from hugetlb_quota.controller.relabelled import Relabelled, listed
from hugetlb_quota.kube.pods import Pod

#: How many released pods are remembered, so that a reservation of one can be dropped.
#: At 100 pods a second that is ten times the life of a reservation.
RELEASED_KEPT = 60_000


@dataclass(frozen=True, slots=True)
class Held:
    """A pod that ended and is charged still, for lack of evidence from ``node``."""

    pod: ChargedPod
    node: str


@dataclass(frozen=True, slots=True)
class Count:
    """Who is charged: ``pods``, of which ``held`` ended already."""

    pods: tuple[ChargedPod, ...]
    held: tuple[Held, ...]


class Census:
    """Remembers the pods that are gone from the API until their node lets them go."""

    def __init__(self) -> None:
        self._gone: dict[str, tuple[Pod, EndedPod]] = {}
        self._relabelled = Relabelled()
        self._released: dict[str, None] = {}

    def pod_changed(self, old: Pod | None, new: Pod | None, resource_version: int) -> None:
        """Take in one change of the pods' informer."""
        if new is not None:
            if not new.finished:
                self._released.pop(new.uid, None)
            if old is not None:
                self._relabelled.pod_changed(old, new)
        elif old is not None:
            self._gone[old.uid] = (old, EndedPod(old.uid, old.node, resource_version))

    def was_released(self, uid: str) -> bool:
        """Whether the pod ``uid`` was seen and is charged no more."""
        return uid in self._released

    def count(
        self,
        forest: Forest,
        pods: Iterable[Pod],
        evidence: Mapping[str, NodeEvidence],
        reports: Mapping[str, NodeReport],
    ) -> Count:
        """Who is charged now.

        :param pods: those in the API.
        :param evidence: by node name, of every node that has a Node object or a report.
        :param reports: the agents' last reports by node name.
        """
        charged: dict[str, ChargedPod] = {}
        under = listed(reports.values(), evidence)
        held: list[Held] = []

        def charge(pod: Pod) -> ChargedPod:
            governing = frozenset(q.key for q in forest.selecting(pod.namespace, pod.labels))
            node = evidence.get(pod.node) if pod.node is not None else None
            still = self._relabelled.still_charged(pod, governing, forest, node)
            quotas = governing | still | under.get(pod.uid, frozenset())
            return ChargedPod(pod.uid, pod.demand, quotas)

        def hold(pod: ChargedPod, node: str) -> None:
            self._released.pop(pod.uid, None)
            charged[pod.uid] = pod
            held.append(Held(pod, node))

        def end(pod: Pod, ended: EndedPod) -> None:
            # Once let go it stays so, whatever is written to it later, unless its node
            # shows a cgroup: there was no agent before, or no Node.
            since = replace(ended, resource_version=0) if pod.uid in self._released else ended
            if ended.node is None or is_released(since, evidence.get(ended.node)):
                self._release(pod.uid)
            else:
                hold(charge(pod), ended.node)

        for pod in pods:
            if pod.finished:
                end(pod, EndedPod(pod.uid, pod.node, pod.resource_version))
            else:
                charged[pod.uid] = charge(pod)
        for pod, ended in list(self._gone.values()):
            end(pod, ended)
        for report in reports.values():
            for reported in report.pods:
                ended = EndedPod(reported.uid, report.node, 0)
                # Gone before this controller began, or let go before its node had an
                # agent: only the node still knows of it.
                known = reported.uid in charged or not reported.charge
                if not known and not is_released(ended, evidence.get(report.node)):
                    hold(reported, report.node)
        return Count(tuple(charged.values()), tuple(held))

    def _release(self, uid: str) -> None:
        self._gone.pop(uid, None)
        self._relabelled.forget(uid)
        self._released[uid] = None
        while len(self._released) > RELEASED_KEPT:
            del self._released[next(iter(self._released))]


def held_by_quota(count: Count, forest: Forest) -> Mapping[QuotaKey, tuple[Held, ...]]:
    """What is held under each quota, descendants included; only where there is any."""
    held: dict[QuotaKey, list[Held]] = {}
    for each in count.held:
        keys = {
            link.key for key in each.pod.quotas if key in forest for link in forest.attached(key)
        }
        for key in keys:
            held.setdefault(key, []).append(each)
    return {key: tuple(each) for key, each in held.items()}
