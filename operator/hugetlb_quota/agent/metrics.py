"""The agent's metrics, as Prometheus reads them: what the last pass came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.report import Latest
from hugetlb_quota.page_size import PageSize

_PREFIX: Final = "hugetlb_quota_"


class AgentMetrics(Collector):
    """Reads ``latest`` at every scrape; between two it does nothing.

    :param sizes: every page size of the host; each has its row, also at 0.
    :param not_enforced: which pods are not held to what they may use, a sentence each.
    """

    def __init__(
        self,
        latest: Latest,
        sizes: Iterable[PageSize],
        not_enforced: Callable[[], tuple[str, ...]],
    ) -> None:
        self._latest = latest
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
        report, reading = self._latest.report, self._latest.reading
        pods = report.entries.values()
        yield self._bytes(
            "retained_bytes",
            "Huge pages that are charged to pods whose cgroups are gone.",
            Charge.total(each.charged for each in pods if not each.live),
        )
        yield self._bytes(
            "nameless_bytes",
            "Huge pages that are charged to pods that no agent ever saw in the API.",
            Charge.total(each.charged for each in pods if not each.name),
        )
        yield self._bytes(
            "system_bytes",
            "Huge pages that are charged to cgroups of no pod: the host's own processes.",
            report.system,
        )
        yield self._bytes(
            "unlisted_bytes",
            "Huge pages that the kernel counts and that nothing in its charge list shows.",
            report.unlisted,
        )
        yield _count(
            "charge_list_readable",
            "1 where the kernel's charge list can be read, 0 where totals have to do.",
            int(not reading.unreadable),
        )
        yield _count("pods", "Pods whose cgroups are on this node.", len(reading.there))
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


def _count(name: str, meaning: str, value: int) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, meaning, value=value)
