"""Counts what changed, and plans which objects must be written because of the count."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.controller.counting.books import Books
from hugetlb_quota.controller.counting.nodes import NodeReport, NodeSpec
from hugetlb_quota.controller.counting.unread import UnreadCharges
from hugetlb_quota.controller.informers import Informers
from hugetlb_quota.controller.writing.node_spec import Succession, wanted_spec
from hugetlb_quota.kube.quotas import QuotaObject

#: The longest time between two looks at all quotas with reservations, in seconds. Less than the
#: time between two counts when nothing changes, so that each of these counts looks.
PENDING_PERIOD: Final = 2.5
#: Seconds between two counts from scratch, if a count then has nothing to write; otherwise at most
#: twice as long.
CHECK_PERIOD: Final = 300.0
#: Seconds without a report after which an agent counts as silent: two heartbeats and a half.
SILENT_AFTER: Final = 150.0


@dataclass(frozen=True, slots=True)
class WritePlan:
    """What to write after one count. The ledger does not change until all is written.

    ``quotas``: the quotas that may need another status. ``silent``: the nodes without a report
    for :data:`SILENT_AFTER` seconds. ``leaving_out``: the nodes with reports that leave out pods.
    ``node_specs``: reports, each with the new spec of the same object.
    """

    forest: Forest
    quotas: tuple[QuotaObject, ...]
    silent: frozenset[str]
    leaving_out: frozenset[str]
    node_specs: tuple[tuple[NodeReport, NodeSpec], ...]


class WritePlanner:
    """Plans the writes of each count.

    ``retry_quotas``, ``retry_nodes``: what the next plan must have because a write failed.

    :param next_expiry: as :meth:`Expiry.next_due` says.
    """

    def __init__(
        self,
        books: Books,
        informers: Informers,
        unread: UnreadCharges,
        next_expiry: Callable[[float], float],
    ) -> None:
        self._books = books
        self._informers = informers
        self._unread = unread
        self._next_expiry = next_expiry
        self.retry_quotas = set[QuotaKey]()
        self.retry_nodes = set[str]()
        self._silent, self._leaving_out = frozenset[str](), frozenset[str]()
        #: The last look at all quotas with reservations.
        self._pending_seen_at = 0.0
        self._check_due_at = time.monotonic() + CHECK_PERIOD

    def plan(self) -> WritePlan:
        """Count what changed, and from scratch if that is due; plan the writes."""
        store, seen_up_to = self._books.store, self._informers.pods.resource_version
        scope = self._books.count(seen_up_to, self._informers.pods.listed_at)
        if scope.is_everything:
            # The store has up to a million objects that stay. Without this, each garbage
            # collection would visit all of them, and delay everything else.
            gc.freeze()
        keys = scope.quotas | self.retry_quotas | self._due_by_time()
        nodes = scope.node_specs | self.retry_nodes
        self.retry_quotas, self.retry_nodes = set(), set()
        if self._is_check_due(idle=not keys) and not self._books.check(seen_up_to):
            keys, nodes = set(store.quotas), set(store.nodes.reports)
        keys |= self._unread.update(
            self._books.ledger.tally,
            (quota.counter for quota in store.quotas.values()),
            store.nodes.reports.values(),
        )
        return WritePlan(
            forest=self._books.input.forest,
            quotas=tuple(store.quotas[key] for key in keys if key in store.quotas),
            silent=self._silent,
            leaving_out=self._leaving_out,
            node_specs=tuple(self._new_specs(nodes)),
        )

    def _is_check_due(self, *, idle: bool) -> bool:
        now = time.monotonic()
        if now < self._check_due_at + (0 if idle else CHECK_PERIOD):
            return False
        self._check_due_at = now + CHECK_PERIOD
        return True

    def _due_by_time(self) -> set[QuotaKey]:
        """The quotas that may need another status only because time has passed."""
        store, now, keys = self._books.store, time.monotonic(), set[QuotaKey]()
        last = self._pending_seen_at
        if now >= min(last + PENDING_PERIOD, self._next_expiry(last)):
            self._pending_seen_at = now
            keys |= store.pending
        reports = store.nodes.reports
        self._informers.forget_reports(kept=reports)
        ages = self._informers.report_ages
        silent = frozenset(name for name, age in ages.items() if age >= SILENT_AFTER)
        leaving_out = frozenset(name for name, report in reports.items() if report.pods_left_out)
        if (silent, leaving_out) != (self._silent, self._leaving_out):
            self._silent, self._leaving_out = silent, leaving_out
            keys |= self._books.ledger.quotas_with_held()
        return keys

    def _new_specs(self, names: Iterable[str]) -> Iterator[tuple[NodeReport, NodeSpec]]:
        """The specs of the nodes ``names`` that differ from the stored specs."""
        store, ledger = self._books.store, self._books.ledger
        leaving = {name for name, each in store.namespaces.items() if each.leaving}
        succession = Succession(self._books.input.forest, leaving)
        for name in names:
            report = store.nodes.reports.get(name)
            if report is not None and store.nodes.is_report_valid(name):
                retained = [each for pod in report.pods for each in ledger.retained(pod.uid)]
                if (wanted := wanted_spec(report, retained, succession)) != report.spec:
                    yield report, wanted
