"""The census: which pods are charged at this moment, and what those that are gone left.

Fed by informers, read by the recount. No requests are made here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from hugetlb_quota.accounting.attribution import Attribution, Line
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import (
    ChargedPod,
    Identities,
    Identity,
    Retained,
    RetainedFile,
)
from hugetlb_quota.accounting.release import (
    EndedPod,
    NodeEvidence,
    has_booted,
    holds,
    is_lost,
    is_released,
    proved_up_to,
)
from hugetlb_quota.accounting.reservation import SOMEWHERE, UNBOUND
from hugetlb_quota.controller.nodes import NodeReport, ReportedPod
from hugetlb_quota.kube.pods import Pod

#: How many released pods are remembered, so that a reservation of one can be dropped.
#: At 100 pods a second that is ten times the life of a reservation.
RELEASED_KEPT = 60_000

#: What a line says in the place of its pod's node where that is not known.
_PLACELESS: Final = ("", UNBOUND, SOMEWHERE)


@dataclass(frozen=True, slots=True)
class World:
    """All that a count looks at, taken at one moment.

    ``pods``: those in the API. Their changes are known without a gap from the resourceVersion
    ``listed_at`` on, up to ``seen_up_to``. ``evidence``: by node name, of every node that has
    a Node object or a report; ``reports``: the agents' last ones by node name.
    ``only``: the UIDs that are counted, None for all; then ``pods`` has those of them that are
    in the API, and ``reports`` those that tell of them.
    """

    attribution: Attribution
    pods: Collection[Pod]
    seen_up_to: int
    listed_at: int
    evidence: Mapping[str, NodeEvidence]
    reports: Mapping[str, NodeReport]
    only: Collection[str] | None = None

    def counted(self, uids: Collection[str]) -> list[str]:
        """Those of ``uids`` that are counted."""
        return list(uids) if self.only is None else [uid for uid in self.only if uid in uids]

    def holding(self) -> Iterator[NodeReport]:
        """The reports that are true still."""
        return (report for name, report in self.reports.items() if holds(self.evidence.get(name)))

    def lines(self) -> Mapping[str, Line]:
        """Who may be somewhere though no report says so, by UID.

        What the quotas' reservations say; and the pods that were live on a node when its agent
        last reported before it booted: they may have been started anew.
        """
        said = self.attribution.lines
        told: dict[str, Line] = {}
        for name, report in self.reports.items():
            evidence = self.evidence[name]
            if not is_lost(evidence) and has_booted(evidence):
                for pod in report.pods:
                    if pod.live and pod.uid not in said and self._is_counted(pod.uid):
                        line, other = self._line(name, pod), told.get(pod.uid)
                        told[pod.uid] = line if other is None else _of_both(line, other)
        return {**told, **{uid: said[uid] for uid in self.counted(said.keys())}}

    def _is_counted(self, uid: str) -> bool:
        return self.only is None or uid in self.only

    def reported(self) -> Iterator[tuple[str, ReportedPod]]:
        """What the reports that are true still say of whom is counted, with their nodes."""
        for report in self.holding():
            for pod in report.pods:
                if self._is_counted(pod.uid):
                    yield report.node, pod

    def _line(self, node: str, pod: ReportedPod) -> Line:
        payers = self.attribution.who_pays(
            pod.uid, pod.namespace, pod.labels, node, partial=pod.partial
        )
        charge = pod.demand.peak(pod.charged)
        return Line(pod.uid, pod.full_name, charge, payers, counted=node)


@dataclass(frozen=True, slots=True)
class Held:
    """A pod that ended and is charged still, for lack of evidence from one of ``nodes``."""

    pod: ChargedPod
    nodes: frozenset[str]


class Orphan(NamedTuple):
    """A pod that is gone, or that nobody knows, with huge pages for which no quota is charged.

    ``pod`` is its ``namespace/name``, "" where nobody knows it.
    """

    node: str
    uid: str
    pod: str

    def __str__(self) -> str:
        return self.pod or f"of UID {self.uid}"


@dataclass(frozen=True, slots=True)
class Count:
    """Who is charged: ``pods``, of which ``held`` ended already, and what others left.

    ``orphans``: those gone, or known to nobody, for whom no quota is charged. ``waiting``: the
    nodes whose next report may decide, by the UID of whom it decides on.
    """

    pods: tuple[ChargedPod, ...]
    held: tuple[Held, ...]
    retained: tuple[Retained, ...]
    files: tuple[RetainedFile, ...]
    identities: Identities
    orphans: frozenset[Orphan]
    waiting: Mapping[str, frozenset[str]] = field(default_factory=dict)


class Census:
    """Remembers the pods that are gone from the API until their node lets them go."""

    def __init__(self) -> None:
        self._gone: dict[str, tuple[Pod, EndedPod]] = {}
        self._recalled: dict[str, tuple[Line, int]] = {}
        self._released: dict[str, None] = {}
        #: Those let go while their node's first report may yet come.
        self._awaited: dict[str, Pod] = {}

    def pod_changed(
        self, old: Pod | None, new: Pod | None, resource_version: int, *, missed: bool = False
    ) -> None:
        """Take in one change of the pods' informer.

        :param missed: it is known from a list, and what came before it is not.
        """
        if new is not None:
            if not new.finished:
                self._released.pop(new.uid, None)
        elif old is not None:
            # It may have been bound meanwhile.
            node = UNBOUND if missed and old.node is None else old.node
            self._gone[old.uid] = (old, EndedPod(old.uid, node, resource_version))

    @property
    def unsettled(self) -> set[str]:
        """The UIDs that are not in the API, and on which any node may decide."""
        return self._gone.keys() | self._recalled.keys() | self._awaited.keys()

    def was_released(self, uid: str) -> bool:
        """Whether the pod ``uid`` was seen and is charged no more."""
        return uid in self._released

    def count(self, world: World) -> Count:
        """Who is charged now."""
        counting = _Counting(world)
        in_api = {pod.uid for pod in world.pods}
        self._recall(world, in_api)
        for pod in world.pods:
            if not pod.finished:
                counting.charge_pod(pod)
            else:
                self._end(counting, pod, EndedPod(pod.uid, pod.node, pod.resource_version))
        for uid in world.counted(self._gone.keys()):
            if uid not in in_api:
                self._end(counting, *self._gone[uid])
        for uid in world.counted(self._awaited.keys()):
            if not counting.keep_line(self._awaited[uid]):
                del self._awaited[uid]
        for uid in world.counted(self._recalled.keys()):
            self._end_recalled(counting, *self._recalled[uid])
        for uid in counting.charge_reported():
            self._released.pop(uid, None)
        return counting.result()

    def _recall(self, world: World, in_api: Collection[str]) -> None:
        """Take up the pods of which nothing but a line is known.

        The resourceVersion kept with each is one at which it was not in the API, and since
        when it would have been seen if it came.
        """
        lines = world.lines()
        for uid in world.counted(self._recalled.keys()):
            # One of which the line is dropped for want of room is charged all the same.
            if uid in in_api or uid in self._gone or not (uid in lines or self._is_held(uid)):
                del self._recalled[uid]
        for uid, line in lines.items():
            if uid not in in_api and uid not in self._gone and uid not in self._released:
                since = self._recalled[uid][1] if uid in self._recalled else world.seen_up_to
                self._recalled[uid] = (line, max(since, world.listed_at))

    def _is_held(self, uid: str) -> bool:
        return self._recalled[uid][0].counted not in ("", SOMEWHERE)

    def _end(self, counting: _Counting, pod: Pod, ended: EndedPod) -> None:
        if pod.uid in self._released:
            # Once let go it stays so, whatever is written to it later, unless its node
            # shows a cgroup: there was no agent before, or no Node.
            ended = replace(ended, resource_version=0)
        if unproved := counting.unproved(ended):
            self._released.pop(pod.uid, None)
            counting.hold_pod(pod, unproved)
        else:
            self._gone.pop(pod.uid, None)
            self._release(pod.uid)
            if counting.keep_line(pod) and len(self._awaited) < RELEASED_KEPT:
                self._awaited[pod.uid] = pod

    def _end_recalled(self, counting: _Counting, line: Line, missing_at: int) -> None:
        """Decide on a pod of which only its line is known.

        Until all nodes where it can have run prove that it is gone, it is charged, if it was.
        """
        ended = EndedPod(line.uid, line.counted or SOMEWHERE, missing_at)
        unproved = counting.unproved(ended)
        if unproved:
            counting.hold_line(line, unproved)
        elif line.counted:
            # A reservation that was never counted has its own time.
            del self._recalled[line.uid]
            self._release(line.uid)

    def _release(self, uid: str) -> None:
        self._released[uid] = None
        while len(self._released) > RELEASED_KEPT:
            del self._released[next(iter(self._released))]


@dataclass(slots=True)
class _Counting:
    """One count under way."""

    world: World
    pods: dict[str, ChargedPod] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    retained: list[Retained] = field(default_factory=list)
    files: list[RetainedFile] = field(default_factory=list)
    kept: dict[str, Identity] = field(default_factory=dict)
    orphans: set[Orphan] = field(default_factory=set)
    known: dict[str, Pod] = field(default_factory=dict)
    #: What each node tells of a UID, by UID and node; those of which the pod's own charge is
    #: made up; and the UIDs that may be on other nodes than tell of them.
    told: dict[str, dict[str, ReportedPod]] = field(default_factory=dict)
    counted: set[tuple[str, str]] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    waiting: dict[str, frozenset[str]] = field(default_factory=dict)
    _proved: dict[str, int] | None = None
    _least_proved: int | None = None

    def __post_init__(self) -> None:
        self.known = {pod.uid: pod for pod in self.world.pods}
        for node, pod in self.world.reported():
            told = self.told.setdefault(pod.uid, {})
            other = told.get(node)
            told[node] = pod if other is None else _together(pod, other)

    def unproved(self, ended: EndedPod) -> frozenset[str]:
        """The nodes that may still hold the cgroup of a pod that ended; none: it is released.

        Where nobody knows its node, all that have not proved that what had ended then is gone.
        """
        if nodes := self._unproved(ended):
            self.waiting[ended.uid] = nodes
        return nodes

    def _unproved(self, ended: EndedPod) -> frozenset[str]:
        if ended.node in (UNBOUND, SOMEWHERE):
            proved = self._proofs()
            if self._least_proved is None or ended.resource_version <= self._least_proved:
                return frozenset()
            return frozenset(
                name for name, up_to in proved.items() if up_to < ended.resource_version
            )
        evidence = self.world.evidence.get(ended.node or "")
        if ended.node is None or is_released(ended, evidence):
            return frozenset()
        return frozenset({ended.node})

    def _proofs(self) -> Mapping[str, int]:
        """Up to where each node has proved; looked up where it matters, for there are many."""
        if self._proved is None:
            self._proved = {
                name: proved
                for name, evidence in self.world.evidence.items()
                if (proved := proved_up_to(evidence)) is not None
            }
            self._least_proved = min(self._proved.values(), default=None)
        return self._proved

    def charge_pod(self, pod: Pod) -> None:
        """Charge one that is in the API and has not ended."""
        self._charge_seen(pod, in_api=True)

    def hold_pod(self, pod: Pod, nodes: frozenset[str]) -> None:
        """Charge one that ended, and of which ``nodes`` may yet tell."""
        self.known[pod.uid] = pod
        self.held.append(Held(self._charge_seen(pod, in_api=False), nodes))

    def keep_line(self, pod: Pod) -> bool:
        """Keep who one is that was let go, if its node's first report may yet come; whether."""
        if pod.node is None or not self._is_awaited(pod.node):
            return False
        in_api = pod.uid in self.known
        self.kept[pod.uid] = Identity(pod.node, self._payers(pod), in_api)
        return True

    def hold_line(self, line: Line, nodes: frozenset[str]) -> None:
        """Keep who ``line`` names, and charge it if it was counted before."""
        told = self.told.get(line.uid, {})
        is_placed = line.counted not in _PLACELESS
        showing = {node for node, reported in told.items() if reported.live or reported.charged}
        if line.counted in told or (showing and not is_placed and nodes <= showing):
            return  # it is charged by what its node tells
        was_counted = line.counted not in ("", SOMEWHERE)
        word = line.counted if was_counted else SOMEWHERE
        self.kept[line.uid] = Identity(word, line.quotas, in_api=False)
        if not is_placed:
            self.unsure.add(line.uid)
        if was_counted:
            charge = line.charge
            for node, reported in told.items():
                # It is this very pod, or one that another node gives its UID: that adds nothing
                # where the same quotas pay.
                if not is_placed and self._payers_of(node, reported) == line.quotas:
                    charge = charge.peak(reported.charged)
                    self.counted.add((node, line.uid))
            charged = ChargedPod(line.uid, charge, line.quotas)
            self.pods[line.uid] = charged
            self.held.append(Held(charged, nodes))

    def charge_reported(self) -> Iterator[str]:
        """Charge what only the nodes still know of; the UIDs of those that are live."""
        for uid, told in self.told.items():
            for node, reported in told.items():
                if (node, uid) not in self.counted and self._charge_told(node, reported):
                    yield uid

    def _charge_told(self, node: str, reported: ReportedPod) -> bool:
        """Charge what ``node`` tells of a pod; whether that is a pod which is live.

        Of another node's pod it is believed what is charged, beside what that node tells. It
        takes nothing from the pod, and gives it no other name.
        """
        uid, payers = reported.uid, self._payers_of(node, reported)
        charge = reported.charged
        is_live = reported.live and self._is_its_own(node, uid)
        if is_live:
            # Gone before this controller began, or let go before its node had an agent.
            line = self.world.attribution.lines.get(uid)
            asked = NOTHING if line is None else line.charge
            charge = reported.demand.peak(asked).peak(charge).without_zeros()
        # Where heirs are named and there are none, it was meant so.
        is_meant = payers or (node, uid) in self.world.attribution.heirs
        if reported.charged and not is_meant and not (reported.is_named and reported.live):
            self.orphans.add(Orphan(node, uid, reported.full_name))
        if not charge:
            return False
        if is_live and uid not in self.pods:
            version = 0 if uid in self.unsure or len(self.told[uid]) > 1 else 1
            self.pods[uid] = ChargedPod(uid, charge, payers, version)
            self.held.append(Held(self.pods[uid], frozenset({node})))
        else:
            self.retained.append(Retained(uid, charge, payers, node))
        return is_live

    def result(self) -> Count:
        """All that was counted."""
        retained = {(each.node, each.uid): each.quotas for each in self.retained}
        files = tuple(
            RetainedFile(
                node=report.node,
                path=file.path,
                pod=self._name(report.node, file.uid),
                size=file.size,
                charged=file.charged,
                quotas=retained[report.node, file.uid],
                uid=file.uid,
            )
            for report in self.world.holding()
            for file in report.files
            if (report.node, file.uid) in retained
        )
        lines = self.world.attribution.lines
        counted = self.world.counted(lines.keys())
        for uid in counted:
            if uid not in self.kept and self._is_awaited(lines[uid].counted):
                # Its charge went for want of an agent, which may yet begin and tell of it.
                self.kept[uid] = Identity(lines[uid].counted, lines[uid].quotas, in_api=False)
        return Count(
            pods=tuple(self.pods.values()),
            held=tuple(self.held),
            retained=tuple(self.retained),
            files=files,
            identities=Identities(self.kept, frozenset(counted) - self.kept.keys()),
            orphans=frozenset(self.orphans),
            waiting=self.waiting,
        )

    def _charge_seen(self, pod: Pod, *, in_api: bool) -> ChargedPod:
        """Charge one that is not released: what it may use, or what the kernel charges for it.

        That tells its node. Where it is not known to be bound, it may be any.
        """
        told = self.told.get(pod.uid, {})
        nodes = told.keys() if pod.node is None else told.keys() & {pod.node}
        self.counted.update((node, pod.uid) for node in nodes)
        charge = pod.demand
        if charged := Charge.total(told[node].charged for node in nodes):
            charge = charge.peak(charged).without_zeros()
        self.pods[pod.uid] = ChargedPod(pod.uid, charge, self._payers(pod), pod.resource_version)
        self._keep_identity(self.pods[pod.uid], pod.node, in_api=in_api)
        return self.pods[pod.uid]

    def _payers(self, pod: Pod) -> frozenset[QuotaKey]:
        return self.world.attribution.who_pays(pod.uid, pod.namespace, pod.labels, pod.node)

    def _is_awaited(self, node: str) -> bool:
        evidence = self.world.evidence.get(node)
        return evidence is not None and not is_lost(evidence) and evidence.awaited

    def _home(self, uid: str) -> str | None:
        """The node of the pod, by the API or by its line; None where they don't tell."""
        pod = self.known.get(uid)
        if pod is not None and pod.node is not None:
            return pod.node
        line = self.world.attribution.lines.get(uid)
        return None if line is None or line.counted in _PLACELESS else line.counted

    def _is_its_own(self, node: str, uid: str) -> bool:
        """Whether ``node`` may say who the pod is, and that it is there."""
        return self._home(uid) in (None, node)

    def _payers_of(self, node: str, reported: ReportedPod) -> frozenset[QuotaKey]:
        """By the pod in the API if it is there, or was a moment ago; else by its node's report.

        Where they don't tell, the pod's line does, and stays for that.
        """
        attribution, uid = self.world.attribution, reported.uid
        ruled, pod = None, self.known.get(uid)
        if pod is not None:
            ruled = attribution.by_rule(uid, pod.namespace, pod.labels, pod.node or node)
        elif self._is_its_own(node, uid):
            ruled = attribution.by_rule(
                uid, reported.namespace, reported.labels, node, partial=reported.partial
            )
        if ruled is not None:
            return ruled
        payers = attribution.by_line(uid)
        if payers and uid not in self.kept:
            self.kept[uid] = Identity(self._home(uid) or node, payers, in_api=False)
        return payers

    def _keep_identity(self, pod: ChargedPod, node: str | None, *, in_api: bool) -> None:
        """Keep its line until its node's report says who it is."""
        if node is None:
            self.kept[pod.uid] = Identity(UNBOUND, pod.quotas, in_api)
            return
        evidence = self.world.evidence.get(node)
        if evidence is None or is_lost(evidence):
            return
        if evidence.pods_resource_version is None and not evidence.awaited:
            return  # there is no agent that could name it
        reported = self.told.get(pod.uid, {}).get(node)
        if reported is None or not reported.is_named:
            self.kept[pod.uid] = Identity(node, pod.quotas, in_api)

    def _name(self, node: str, uid: str) -> str:
        if uid in self.known:
            return str(self.known[uid])
        reported = self.told[uid][node]
        if reported.is_named and self._is_its_own(node, uid):
            return reported.full_name
        line = self.world.attribution.lines.get(uid)
        return uid if line is None else line.pod


def _of_both(one: Line, other: Line) -> Line:
    """What two nodes tell of the same UID: it may be on either."""
    return replace(
        one,
        charge=one.charge + other.charge,
        quotas=one.quotas | other.quotas,
        counted=UNBOUND,
    )


def _together(one: ReportedPod, other: ReportedPod) -> ReportedPod:
    """What a node tells in two entries of the same UID."""
    named = one if one.is_named else other
    live, charged = one.live or other.live, one.charged + other.charged
    return replace(named, live=live, charged=charged)
