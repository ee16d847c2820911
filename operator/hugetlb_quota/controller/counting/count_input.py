"""Prepares each count: from the changes in the store to the scope and the snapshot of a count.

The forest, the heirs and the lines follow from the store, and are kept up to date with it. A count
of the scope leaves the same charges as a count of everything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hugetlb_quota.accounting.attribution import Attribution, Line, line_of, read_lines
from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.reservation import SOMEWHERE, UNBOUND
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.controller.counting.changes import Changes, Scope
from hugetlb_quota.controller.counting.ledger import Ledger
from hugetlb_quota.controller.counting.node_history import heirs
from hugetlb_quota.controller.counting.node_store import entries_by_uid
from hugetlb_quota.controller.counting.snapshot import Snapshot
from hugetlb_quota.controller.counting.store import Store
from hugetlb_quota.kube.pods import Pod

_NO_UIDS: frozenset[str] = frozenset()


class CountInput:
    """The scope and the snapshot of each count of ``store``.

    ``forest``: the forest at the last :meth:`scope`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.forest = Forest((), {})
        self._heirs: Mapping[tuple[str, str], frozenset[QuotaKey]] = {}
        self._lines: dict[str, Line] = {}
        self._listed_at = 0

    def is_count_due(self, ledger: Ledger) -> bool:
        """Whether a count would find anything new.

        After most heartbeats the only news is that an agent has seen more changes of pods. This
        matters only if ``ledger`` has pods that wait for the node.
        """
        changes = self._store.changes
        return not changes.is_only_advanced or any(map(ledger.waiting_for, changes.advanced))

    def scope(self, census: Census, ledger: Ledger, listed_at: int) -> Scope:
        """The scope of the next count: all that the changes since the last call may affect.

        :param listed_at: the resourceVersion of the last list of pods.
        """
        self._store.nodes.time_passed()
        changes = self._store.changes.take()
        if changes.everything or listed_at != self._listed_at:
            self._listed_at = listed_at
            self.rebuild()
            return Scope(None, set(self._store.quotas), set(self._store.nodes.reports), True)
        if changes.heirs:
            self._heirs = heirs(self._store.nodes.reports.values())
        if changes.attachments or changes.specs or changes.namespaces:
            self._update_forest(changes)
        new_forest = bool(changes.specs or changes.namespaces)
        if new_forest:
            changes.uids |= census.undecided
            self._add_affected_by_forest(changes)
        for node in changes.advanced | changes.nodes:
            changes.uids |= ledger.waiting_for(node)
        if changes.nodes:
            changes.uids |= census.undecided
            self._add_affected_by_nodes(changes)
        self._update_lines(changes)
        return Scope(changes.uids, changes.quotas, changes.node_specs, new_forest)

    def snapshot(self, seen_up_to: int, uids: Collection[str] | None) -> Snapshot:
        """The input of a count, after :meth:`scope`.

        :param seen_up_to: the resourceVersion up to which the pods' informer has seen all changes.
        :param uids: the UIDs to count; None for all.
        """
        store = self._store
        pods: Collection[Pod] = store.pods.values()
        reporting = set(store.nodes.reports)
        if uids is not None:
            pods = [store.pods[uid] for uid in uids if uid in store.pods]
            reporting = {name for uid in uids for name in store.nodes.reporters.get(uid, ())}
        return Snapshot(
            attribution=Attribution(self.forest, self._heirs, self._lines),
            pods=pods,
            seen_up_to=seen_up_to,
            listed_at=self._listed_at,
            evidence=store.nodes.evidence,
            # The order decides which name a UID gets that several nodes report.
            reports={name: store.nodes.reports[name] for name in sorted(reporting)},
            uids=uids,
        )

    def rebuild(self) -> None:
        """Compute the forest, the evidence, the heirs and the lines from scratch."""
        store = self._store
        self.forest = self._new_forest()
        store.nodes.rebuild_evidence()
        self._heirs = heirs(store.nodes.reports.values())
        counters = (each.counter for each in store.quotas.values())
        self._lines = dict(read_lines(counters, self.forest))

    def _new_forest(self) -> Forest:
        labels = {name: each.labels for name, each in self._store.namespaces.items()}
        return Forest((each.quota for each in self._store.quotas.values()), labels)

    def _update_forest(self, changes: Changes) -> None:
        """Build the new forest. An attachment that has an effect counts as a changed spec."""
        before, self.forest = self.forest, self._new_forest()
        changes.specs |= {
            key
            for key in changes.attachments
            if _charged_parent(before, key) != _charged_parent(self.forest, key)
        }

    def _add_affected_by_forest(self, changes: Changes) -> None:
        """Add the quotas, pods and nodes that changed specs and namespaces may affect."""
        store = self._store
        changed = changes.specs | {
            key for key in store.quotas if key.namespace in changes.namespaces
        }
        changes.quotas |= self.forest.below(changed)
        changes.uids |= store.lines.keys() | {uid for _, uid in self._heirs}
        reports = store.nodes.reports
        if changes.selections:
            namespaces = changes.selections
            changes.uids |= {uid for uid, pod in store.pods.items() if pod.namespace in namespaces}
            changes.uids |= {
                pod.uid
                for report in reports.values()
                for pod in report.pods
                if pod.namespace in namespaces
            }
        changes.node_specs |= {
            name
            for name, report in reports.items()
            if report.full_spec.heirs or any(not pod.live for pod in report.pods)
        }

    def _add_affected_by_nodes(self, changes: Changes) -> None:
        """Add the pods that other evidence of their node may hold or release."""
        store = self._store
        places = {UNBOUND, SOMEWHERE, *changes.nodes}
        changes.uids |= {uid for uid, line in self._lines.items() if line.counted in places}
        for node in changes.nodes:
            changes.uids |= store.uids_on_node.get(node, _NO_UIDS)
            changes.uids |= entries_by_uid(store.nodes.reports.get(node)).keys()

    def _update_lines(self, changes: Changes) -> None:
        """Compute the new lines of the changed UIDs, and add their quotas and reporters."""
        store = self._store
        for uid in changes.uids:
            if (lines := store.lines.get(uid)) is None:
                self._lines.pop(uid, None)
            else:
                self._lines[uid] = line_of(uid, lines, self.forest)
                changes.quotas |= lines.keys()
            changes.node_specs.update(store.nodes.reporters.get(uid, ()))


def _charged_parent(forest: Forest, key: QuotaKey) -> QuotaKey | None:
    """The quota to which the charges of the quota ``key`` go up; None if there is none."""
    parent = forest.parent(forest[key]) if key in forest else None
    return None if parent is None else parent.key
