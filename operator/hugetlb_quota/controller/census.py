"""The census: which pods are charged at this moment, and which are merely held.

Fed by informers, read by the recount. No requests are made here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.recount import ChargedPod, Unreported
from hugetlb_quota.accounting.release import EndedPod, NodeEvidence, is_missed, is_released
from hugetlb_quota.controller.nodes import NodeReport
from hugetlb_quota.controller.relabelled import Relabelled, listed
from hugetlb_quota.kube.pods import Pod

#: How many released pods are remembered, so that a reservation of one can be dropped.
#: At 100 pods a second that is ten times the life of a reservation.
RELEASED_KEPT = 60_000
#: Seconds in which an agent that runs has listed a pod that is bound, with some to spare.
LISTED_WITHIN = 2.0


@dataclass(frozen=True, slots=True)
class Held:
    """A pod that ended and is charged still, for lack of evidence from ``node``."""

    pod: ChargedPod
    node: str


@dataclass(frozen=True, slots=True)
class Count:
    """Who is charged: ``pods``, of which ``held`` ended already.

    ``unreported``: of these the ones that their nodes' agents have to be told of. ``waits``:
    there may be more in :data:`LISTED_WITHIN`.
    """

    pods: tuple[ChargedPod, ...]
    held: tuple[Held, ...]
    unreported: tuple[Unreported, ...] = ()
    waits: bool = False


class Census:
    """Remembers the pods that are gone from the API until their node lets them go."""

    def __init__(self) -> None:
        self._gone: dict[str, tuple[Pod, EndedPod]] = {}
        self._relabelled = Relabelled()
        self._released: dict[str, None] = {}
        self._listed = set[str]()
        self._missed_at: Mapping[str, float] = {}

    def pod_changed(self, old: Pod | None, new: Pod | None, resource_version: int) -> None:
        """Take in one change of the pods' informer."""
        if new is not None:
            if not new.finished:
                self._released.pop(new.uid, None)
            if old is not None:
                self._relabelled.pod_changed(old, new)
        elif old is not None:
            ended = EndedPod(old.uid, old.node, resource_version, seen_at=old.resource_version)
            self._gone[old.uid] = (old, ended)

    def report_changed(self, old: NodeReport | None, new: NodeReport | None, _: int) -> None:
        """Take in one change of the reports' informer."""
        if new is not None:
            # One without quotas is a cgroup of which the agent knows nothing else.
            self._listed.update(pod.uid for pod in new.pods if pod.quotas)

    def was_released(self, uid: str) -> bool:
        """Whether the pod ``uid`` was seen and is charged no more."""
        return uid in self._released

    def count(
        self,
        forest: Forest,
        pods: Iterable[Pod],
        evidence: Mapping[str, NodeEvidence],
        reports: Mapping[str, NodeReport],
        told: Mapping[str, Unreported],
        *,
        seen_up_to: int,
        now: float,
        unreadable: Collection[str] = (),
    ) -> Count:
        """Who is charged now.

        :param pods: those in the API.
        :param evidence: by node name, of every node that has a Node object or a report.
        :param reports: the agents' last reports by node name.
        :param told: by UID, the pods that quotas tell as unreported: of some, this is all
            that is known here.
        :param seen_up_to: the resourceVersion up to which ``pods`` is known.
        :param now: by a clock that only goes on, in seconds.
        :param unreadable: namespaces with quotas that can't be read: which pods they govern,
            and of which they tell, shows when they can.
        """
        charged: dict[str, ChargedPod] = {}
        under = listed(reports.values(), evidence)
        held: list[Held] = []
        unreported: list[Unreported] = []
        missed_at: dict[str, float] = {}
        in_api = set[str]()

        def charge(pod: Pod) -> ChargedPod:
            governing = frozenset(q.key for q in forest.selecting(pod.namespace, pod.labels))
            node = evidence.get(pod.node) if pod.node is not None else None
            still = self._relabelled.still_charged(pod, governing, forest, node)
            quotas = governing | still | under.get(pod.uid, frozenset())
            return ChargedPod(pod.uid, pod.demand, quotas, pod.resource_version)

        def hold(pod: ChargedPod, node: str) -> None:
            self._released.pop(pod.uid, None)
            charged[pod.uid] = pod
            held.append(Held(pod, node))

        def end(pod: Pod, ended: EndedPod) -> None:
            counted = charge(pod)
            if pod.uid in self._released:
                # Once let go it stays so, whatever is written to it later, unless its node
                # shows a cgroup: there was no agent before, or no Node.
                ended = replace(ended, resource_version=0, listed=True)
            elif (
                pod.uid in self._listed
                or not counted.charge
                or not (counted.quotas or pod.namespace in unreadable)
            ):
                ended = replace(ended, listed=True)
            node = evidence.get(ended.node or "")
            if ended.node is None or node is None or is_released(ended, node):
                self._release(pod.uid)
                return
            hold(counted, ended.node)
            # One that is told stays so until it is released.
            if ended.uid in told or (is_missed(ended, node) and must_be_told(ended, node)):
                unreported.append(
                    Unreported(
                        *(pod.uid, str(pod), ended.node, counted.charge, counted.quotas),
                        cgroup=pod.cgroup_uid,
                    )
                )

        def must_be_told(pod: EndedPod, node: NodeEvidence) -> bool:
            if (node.pods_resource_version or 0) >= pod.resource_version:
                return True
            # The agent is away, or its report on the way: then this would be a needless write.
            missed_at[pod.uid] = self._missed_at.get(pod.uid, now)
            return now - missed_at[pod.uid] >= LISTED_WITHIN

        for pod in pods:
            in_api.add(pod.uid)
            if pod.finished:
                seen_at = max(seen_up_to, pod.resource_version)
                end(pod, EndedPod(pod.uid, pod.node, pod.resource_version, seen_at))
            else:
                charged[pod.uid] = charge(pod)
        for pod, ended in list(self._gone.values()):
            end(pod, ended)
        for each in told.values():
            if each.uid in charged or each.uid in self._released:
                continue
            ended = EndedPod(each.uid, each.node, 0, listed=each.uid in self._listed)
            if is_released(ended, evidence.get(each.node)):
                self._release(each.uid)
            else:
                hold(ChargedPod(each.uid, each.charge, each.quotas), each.node)
                unreported.append(each)
        for report in reports.values():
            for reported in report.pods:
                ended = EndedPod(reported.uid, report.node, 0)
                # Gone before this controller began, or let go before its node had an
                # agent: only the node still knows of it.
                known = reported.uid in charged or not reported.charge
                if not known and not is_released(ended, evidence.get(report.node)):
                    hold(reported, report.node)
        told_of = {pod.uid for report in reports.values() for pod in report.pods}
        self._listed &= in_api | told_of | self._gone.keys() | told.keys()
        self._missed_at = missed_at
        waits = bool(missed_at.keys() - {each.uid for each in unreported})
        return Count(tuple(charged.values()), tuple(held), tuple(unreported), waits)

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
