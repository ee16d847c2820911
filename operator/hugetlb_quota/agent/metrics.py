"""The agent's metrics, as Prometheus reads them: what the ledger says when it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.ledger import Ledger
from hugetlb_quota.agent.track import Tracker
from hugetlb_quota.page_size import PageSize

_PREFIX: Final = "hugetlb_quota_"


class AgentMetrics(Collector):
    """Reads ``tracker`` at every scrape; between two it does nothing.

    :param sizes: every page size of the host; each has its row, also at 0.
    :param not_enforced: which pods are not held to what they may use, a sentence each.
    """

    def __init__(
        self,
        tracker: Tracker,
        sizes: Iterable[PageSize],
        not_enforced: Callable[[], tuple[str, ...]],
    ) -> None:
        self._tracker = tracker
        self._sizes = tuple(sizes)
        self._not_enforced = not_enforced
        # Its own: the global one would add what the interpreter does.
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        """All of them, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What there is now."""
        ledger, files = self._tracker.ledger, self._tracker.files
        yield self._bytes(
            "retained_bytes",
            "Huge pages that pods left whose cgroups are gone, and that quotas are charged for.",
            _retained(ledger),
        )
        yield self._bytes(
            "unattributed_bytes",
            "Huge pages left by pods that nothing is known of; no quota is charged for them.",
            ledger.stray,
        )
        yield self._bytes(
            "guessed_bytes",
            "Of what is retained, what may be charged to another of the pods that left files,"
            " for it could not be seen which of them gave pages back.",
            ledger.guessed,
        )
        yield self._bytes(
            "difference_bytes",
            "By how much the list of charged files and the kernel differ just now: left by pods"
            " and in no file that is known, or charged in a file and to nobody that is known.",
            self._tracker.difference,
        )
        yield _count(
            "files",
            "Files on hugetlbfs that are followed.",
            files.book.count if files is not None else 0,
        )
        yield _count("pods", "Pods whose cgroups are on this node.", ledger.pods)
        yield _count(
            "limits_not_enforced",
            "Pods that are not held to what they may use, as the condition Ready tells.",
            len(self._not_enforced()),
        )

    def _bytes(self, name: str, meaning: str, charge: Charge) -> Metric:
        family = GaugeMetricFamily(_PREFIX + name, meaning, labels=["page_size"])
        for size in self._sizes:
            family.add_metric([size.resource], charge.of(size))
        return family


def _retained(ledger: Ledger) -> Charge:
    return Charge.total(account.charge for account in ledger.gone)


def _count(name: str, meaning: str, value: int) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, meaning, value=value)
