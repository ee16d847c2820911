"""What the controller knows of the cluster, and whom of it the next count must look at.

Fed by informers. What a count needs is kept up to date with each change, and each change is
noted with the UIDs and quotas on which it may bear; :meth:`Known.begin` gathers them. A count
of these leaves what a count of everybody would find. No requests are made here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from hugetlb_quota.accounting.attribution import Attribution, Line, line_of, lines_of, read_lines
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.release import NodeEvidence, holds
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.controller.census import Census
from hugetlb_quota.controller.ledger import Ledger
from hugetlb_quota.controller.node_history import NodeHistory, evidence, heirs
from hugetlb_quota.controller.nodes import NodeFacts, NodeReport, ReportedPod
from hugetlb_quota.controller.snapshot import Snapshot
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import QuotaObject

_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Namespace:
    """What matters of a namespace; ``leaving``: it is being deleted."""

    name: str
    labels: Mapping[str, str]
    leaving: bool


@dataclass(slots=True)
class Changes:
    """What changed since a count, or what a count must look at because of that.

    ``uids``: of pods, and of quotas that have lines elsewhere. ``quotas``: to look at.
    ``places``: namespaces in which other quotas may govern. ``planted``: quotas that are
    others in the forest; ``attached``: those of which only that may be new to which quota above
    they were charged last. ``relabelled``: namespaces with
    other labels. ``reports``: nodes whose wishes are to be looked at. ``proved``: nodes whose
    agents have seen more; ``moved``: nodes of which anything else is new. ``heirs``: others
    inherit. ``all``: nothing is known of what changed.
    """

    uids: set[str] = field(default_factory=set)
    quotas: set[QuotaKey] = field(default_factory=set)
    places: set[str] = field(default_factory=set)
    planted: set[QuotaKey] = field(default_factory=set)
    attached: set[QuotaKey] = field(default_factory=set)
    relabelled: set[str] = field(default_factory=set)
    reports: set[str] = field(default_factory=set)
    proved: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)
    heirs: bool = False
    all: bool = False


class Known:
    """Pods, quotas, nodes, reports and namespaces, and what follows from them.

    ``reports``: by node, also of those whose objects were deleted, as :class:`NodeHistory` has it.

    :param clock: seconds, of any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.pods: dict[str, Pod] = {}
        self.quotas: dict[QuotaKey, QuotaObject] = {}
        self.nodes: dict[str, NodeFacts] = {}
        self.reports: dict[str, NodeReport] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.history = NodeHistory(clock)
        self.forest = Forest((), {})
        #: The quotas that have reservations which may expire, or lines that are none.
        self.lined: set[QuotaKey] = set()
        self._current: dict[str, NodeReport] = {}
        self._evidence: dict[str, NodeEvidence] = {}
        #: Nodes whose agents may yet begin, those first that came first.
        self._awaited: dict[str, None] = {}
        self._heirs: Mapping[tuple[str, str], frozenset[QuotaKey]] = {}
        self._holding: dict[str, dict[QuotaKey, Reservation]] = {}
        self._lines: dict[str, Line] = {}
        self._bound: dict[str, set[str]] = {}
        #: Mostly one node; a set of it would take four times as much.
        self._told: dict[str, tuple[str, ...]] = {}
        self._written: dict[QuotaKey, str] = {}
        self._listed_at = 0
        self._changes = Changes(all=True)

    # What the informers tell

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """Take in one change of a pod."""
        if old is not None:
            self._changes.uids.add(old.uid)
            self.pods.pop(old.uid, None)
            _discard(self._bound, old.node, old.uid)
        if new is not None:
            self._changes.uids.add(new.uid)
            self.pods[new.uid] = new
            _add(self._bound, new.node, new.uid)

    def quota_changed(self, old: QuotaObject | None, new: QuotaObject | None) -> None:
        """Take in one change of a quota."""
        if old is not None and new is not None and _is_same(old, new):
            self.quotas[new.key] = new
            return
        for it in (old, new):
            if it is not None:
                self._changes.uids.add(it.uid)
                if it.resource_version != self._written.get(it.key):
                    self._changes.quotas.add(it.key)
        if old is not None:
            self.quotas.pop(old.key, None)
            self._written.pop(old.key, None)
            self.lined.discard(old.key)
        if new is not None:
            self.quotas[new.key] = new
            if new.counter.pending or new.counter.unreadable:
                self.lined.add(new.key)
        self._lines_changed(old, new)
        before, now = (None if it is None else it.quota for it in (old, new))
        if before != now:
            key = (new or old).key  # type: ignore[union-attr]
            attached = before and now and replace(before, attached_to=now.attached_to) == now
            (self._changes.attached if attached else self._changes.planted).add(key)
            if _governs(before) != _governs(now):
                self._changes.places.add(key.namespace)

    def quota_written(self, quota: QuotaObject) -> None:
        """Take in what was written by the count: when it comes back, nothing is new in it."""
        self._written[quota.key] = quota.resource_version

    def _lines_changed(self, old: QuotaObject | None, new: QuotaObject | None) -> None:
        before, now = ({} if it is None else lines_of(it.counter) for it in (old, new))
        for uid in before.keys() | now.keys():
            if before.get(uid) == now.get(uid):
                continue
            self._changes.uids.add(uid)
            if uid in before:
                held = self._holding[uid]
                del held[old.key]  # type: ignore[union-attr]
                if not held:
                    del self._holding[uid]
            if uid in now:
                self._holding.setdefault(uid, {})[new.key] = now[uid]  # type: ignore[union-attr]

    def node_changed(self, old: NodeFacts | None, new: NodeFacts | None, version: int) -> None:
        """Take in one change of a Node, as :meth:`NodeHistory.node_changed`."""
        self.history.node_changed(old, new, version)
        if old is not None:
            self.nodes.pop(old.name, None)
        if new is not None:
            self.nodes[new.name] = new
        name = (new or old).name  # type: ignore[union-attr]
        self._report_becomes(name)
        self._look_at(name)

    def report_changed(self, old: NodeReport | None, new: NodeReport | None) -> None:
        """Take in one change of a report."""
        name = (new or old).node  # type: ignore[union-attr]
        self.history.report_changed(old, new)
        if new is None:
            self._current.pop(name, None)
        else:
            self._current[name] = new
        self._report_becomes(name)
        self._look_at(name)

    def _report_becomes(self, name: str) -> None:
        """Take up what the history makes of the report of a node."""
        current = {name: self._current[name]} if name in self._current else {}
        old, new = self.reports.get(name), self.history.reports(current).get(name)
        if old is new or old == new:
            return
        if new is None:
            del self.reports[name]
        else:
            self.reports[name] = new
        before, now = _pods(old), _pods(new)
        for uid in before.keys() | now.keys():
            if before.get(uid) != now.get(uid):
                self._changes.uids.add(uid)
                self._changes.reports.add(name)
            if (uid in before) != (uid in now):
                telling = tuple(each for each in self._told.pop(uid, ()) if each != name)
                if uid in now:
                    telling = (*telling, name)
                if telling:
                    self._told[uid] = telling
        was_told, told = (frozenset(() if it is None else it.files) for it in (old, new))
        self._changes.uids |= {file.uid for file in was_told ^ told}
        wished, wishes = (None if it is None else it.all_wishes for it in (old, new))
        if wished != wishes or (old and old.wishes) != (new and new.wishes):
            self._changes.reports.add(name)
            named, others = ({} if it is None else it.heirs for it in (wished, wishes))
            if named != others:
                self._changes.heirs = True
                self._changes.uids |= named.keys() | others.keys()

    def namespace_changed(self, old: Namespace | None, new: Namespace | None) -> None:
        """Take in one change of a namespace."""
        name = (new or old).name  # type: ignore[union-attr]
        if new is None:
            self.namespaces.pop(name, None)
        else:
            self.namespaces[name] = new
        self._changes.relabelled.add(name)

    def _look_at(self, name: str) -> None:
        """See what is new of the evidence of a node."""
        before, now = self._evidence.get(name), self._evidence_of(name)
        if now is None:
            self._evidence.pop(name, None)
        else:
            self._evidence[name] = now
        self._awaited.pop(name, None)
        if now is not None and now.awaited:
            self._awaited[name] = None
        if before is None or now is None:
            moved = before is not now
        else:
            seen = (before.pods_resource_version or 0, now.pods_resource_version or 0)
            # Of whom its reports tell otherwise is known by the reports.
            same = replace(before, pods_resource_version=now.pods_resource_version, live=now.live)
            both = (before.pods_resource_version is None) == (now.pods_resource_version is None)
            moved = same != now or not both or seen[0] > seen[1]
            if seen[0] < seen[1]:
                self._changes.proved.add(name)
        if moved:
            self._changes.moved.add(name)
            self._changes.reports.add(name)

    def _evidence_of(self, name: str) -> NodeEvidence | None:
        node, report = self.nodes.get(name), self.reports.get(name)
        nodes = {} if node is None else {name: node}
        return evidence(nodes, () if report is None else (report,), self.history).get(name)

    # What a count looks at

    def matters(self, ledger: Ledger) -> bool:
        """Whether a count would find anything new.

        It would not when all that is new is how much the agents have seen of nodes for which
        nobody waits in ``ledger``, as after most heartbeats.
        """
        changes = self._changes
        return changes != Changes(proved=changes.proved) or any(
            map(ledger.waiting_for, changes.proved)
        )

    def begin(self, census: Census, ledger: Ledger, listed_at: int) -> Changes:
        """Everything that a count must look at because of what changed since this was asked.

        :param ledger: what was counted up to now; it is given the forest as it is now.
        :param listed_at: as the pods' informer has it.
        """
        while self._awaited and not self.history.is_awaited(name := next(iter(self._awaited))):
            self._look_at(name)
        changes, self._changes = self._changes, Changes()
        if changes.all or listed_at != self._listed_at:
            self._listed_at = listed_at
            self.derive()
            ledger.replant(self.forest)
            changes.all = True
            changes.quotas = set(self.quotas)
            changes.reports = set(self.reports)
            return changes
        if changes.heirs:
            self._heirs = heirs(self.reports.values())
        if changes.attached or changes.planted or changes.relabelled:
            before, self.forest = self.forest, self._grow()
            changes.planted |= {
                key for key in changes.attached if _above(before, key) != _above(self.forest, key)
            }
        if changes.planted or changes.relabelled:
            changes.uids |= census.undecided
            self._replant(changes, ledger)
        for node in changes.proved | changes.moved:
            changes.uids |= ledger.waiting_for(node)
        if changes.moved:
            changes.uids |= census.undecided
            changes.uids |= {
                uid for uid, line in self._lines.items() if line.counted in changes.moved
            }
            for node in changes.moved:
                changes.uids |= self._bound.get(node, _NONE)
                changes.uids |= _pods(self.reports.get(node)).keys()
        for uid in changes.uids:
            if (held := self._holding.get(uid)) is None:
                self._lines.pop(uid, None)
            else:
                self._lines[uid] = line_of(uid, held, self.forest)
                changes.quotas |= held.keys()
            changes.reports.update(self._told.get(uid, ()))
        return changes

    def _replant(self, changes: Changes, ledger: Ledger) -> None:
        ledger.replant(self.forest)
        changed = changes.planted | {
            key for key in self.quotas if key.namespace in changes.relabelled
        }
        changes.quotas |= self.forest.below(changed)
        changes.uids |= self._holding.keys() | {uid for _, uid in self._heirs}
        if changes.places:
            places = changes.places
            changes.uids |= {uid for uid, pod in self.pods.items() if pod.namespace in places}
            changes.uids |= {
                pod.uid
                for report in self.reports.values()
                for pod in report.pods
                if pod.namespace in places
            }
        changes.reports |= {
            name
            for name, report in self.reports.items()
            if report.all_wishes.heirs or any(not pod.live for pod in report.pods)
        }

    def _grow(self) -> Forest:
        labels = {name: each.labels for name, each in self.namespaces.items()}
        return Forest((each.quota for each in self.quotas.values()), labels)

    def derive(self) -> None:
        """Work out anew what follows from what is known, as if nothing had followed before."""
        self.forest = self._grow()
        self._evidence = dict(evidence(self.nodes, self.reports.values(), self.history))
        self._heirs = heirs(self.reports.values())
        self._lines = dict(read_lines((each.counter for each in self.quotas.values()), self.forest))

    def holds(self, node: str) -> bool:
        """Whether what the last report of ``node`` says is true still."""
        return holds(self._evidence.get(node))

    def snapshot(self, seen_up_to: int, only: Collection[str] | None) -> Snapshot:
        """What a count looks at, after :meth:`begin`.

        :param seen_up_to: the resourceVersion of the pods' informer.
        :param only: the UIDs that are counted; None: all.
        """
        pods: Collection[Pod] = self.pods.values()
        telling = set(self.reports)
        if only is not None:
            pods = [self.pods[uid] for uid in only if uid in self.pods]
            telling = {name for uid in only for name in self._told.get(uid, ())}
        return Snapshot(
            attribution=Attribution(self.forest, self._heirs, self._lines),
            pods=pods,
            seen_up_to=seen_up_to,
            listed_at=self._listed_at,
            evidence=self._evidence,
            # Of two that tell of one UID, the order decides whose name it has.
            reports={name: self.reports[name] for name in sorted(telling)},
            uids=only,
        )


def _is_same(old: QuotaObject, new: QuotaObject) -> bool:
    """Whether nothing is new but the resourceVersion, as when an annotation came."""
    # The rest of both is read from these.
    return (
        (old.uid, old.invalid, old.finalizers) == (new.uid, new.invalid, new.finalizers)
        and old.quota == new.quota
        and old.counter == new.counter
        and old.stored == new.stored
        and old.spec == new.spec
    )


def _above(forest: Forest, key: QuotaKey) -> QuotaKey | None:
    """Where the charges of the quota ``key`` go; None for one that is not there, too."""
    parent = forest.parent(forest[key]) if key in forest else None
    return None if parent is None else parent.key


def _governs(quota: Quota | None) -> object:
    """What of a quota says which pods it governs."""
    return None if quota is None else (quota.pod_selector, quota.terminating)


def _pods(report: NodeReport | None) -> dict[str, list[ReportedPod]]:
    pods: dict[str, list[ReportedPod]] = {}
    for pod in () if report is None else report.pods:
        pods.setdefault(pod.uid, []).append(pod)
    return pods


def _add(index: dict[str, set[str]], key: str | None, item: str) -> None:
    if key is not None:
        index.setdefault(key, set()).add(item)


def _discard(index: dict[str, set[str]], key: str | None, item: str) -> None:
    if key is not None and (items := index.get(key)) is not None:
        items.discard(item)
        if not items:
            del index[key]
