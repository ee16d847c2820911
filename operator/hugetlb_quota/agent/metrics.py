"""The agent's metrics, as Prometheus reads them: what the last pass came to, and how it went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.report import Latest
from hugetlb_quota.kube.metrics import PREFIX, BytesBySize, Metrics, gauge
from hugetlb_quota.node.charge_reader import Reads
from hugetlb_quota.node.pools import Pool
from hugetlb_quota.page_size import PageSize


class AgentMetrics(Collector):
    """Reads ``latest`` at every scrape; between two it does nothing.

    :param sizes: every page size of the host; each has its row, also at 0.
    :param not_enforced: which pods are not held to what they may use, a sentence each.
    :param reads: of the kernel's charge list.
    :param refused: by page size, how often the kernel refused huge pages to pods.
    """

    def __init__(
        self,
        latest: Latest,
        sizes: Iterable[PageSize],
        not_enforced: Callable[[], tuple[str, ...]],
        reads: Callable[[], Reads] = Reads,
        refused: Callable[[], Mapping[PageSize, int]] = dict,
    ) -> None:
        self._latest = latest
        self._sizes = tuple(sizes)
        self._not_enforced = not_enforced
        self._reads = reads
        self._refused = refused
        self.render = Metrics("agent", self).render

    def collect(self) -> Iterator[Metric]:
        """What there is now."""
        report, reading = self._latest.report, self._latest.reading
        pods = report.entries.values()
        yield self._bytes(
            "node_retained_bytes",
            "Huge pages that are charged to pods whose cgroups are gone.",
            Charge.total(each.charged for each in pods if not each.live),
        )
        yield self._bytes(
            "node_nameless_bytes",
            "Huge pages that are charged to pods that no agent ever saw in the API.",
            Charge.total(each.charged for each in pods if not each.name),
        )
        yield self._bytes(
            "node_system_bytes",
            "Huge pages that are charged to cgroups of no pod: the host's own processes.",
            report.system,
        )
        yield self._bytes(
            "node_unlisted_bytes",
            "Huge pages that the kernel counts and that nothing in its charge list shows.",
            report.unlisted,
        )
        yield gauge(
            "node_charge_list_readable",
            "1 where the kernel's charge list can be read, 0 where totals have to do.",
            int(not reading.unreadable),
        )
        yield gauge("node_pods", "Pods whose cgroups are on this node.", len(reading.there))
        yield gauge(
            "node_limits_not_enforced",
            "Pods that are not held to what they may use, as the condition Ready tells.",
            len(self._not_enforced()),
        )
        yield from pool_metrics(reading.pools)
        yield self._refusals()
        yield from self._passes()
        yield from _reads(self._reads())

    def _bytes(self, name: str, meaning: str, charge: Charge) -> Metric:
        metric = BytesBySize(name, meaning)
        metric.add(charge, self._sizes)
        return metric.family

    def _refusals(self) -> Metric:
        refused = self._refused()
        family = CounterMetricFamily(
            PREFIX + "node_pages_refused",
            "How often the kernel refused huge pages to pods: beyond what they asked for.",
            labels=["page_size"],
        )
        for size in self._sizes:
            family.add_metric([size.resource], refused.get(size, 0))
        return family

    def _passes(self) -> Iterator[Metric]:
        latest = self._latest
        passes = CounterMetricFamily(
            PREFIX + "agent_passes",
            "Passes over the node: whole, moving (charges moved meanwhile), or failed.",
            labels=["result"],
        )
        for result, count in latest.passes.items():
            passes.add_metric([result], count)
        yield passes
        yield gauge(
            "agent_last_pass_timestamp_seconds",
            "When the last pass ended that did not fail, in seconds since 1970; 0: there was none.",
            latest.passed_at,
        )


class PoolMetrics(Collector):
    """The metrics of an agent that can do no work on its node: what the pools have.

    :param pools: reads them.
    """

    def __init__(self, pools: Callable[[], Iterable[Pool]]) -> None:
        self._pools = pools
        self.render = Metrics("agent", self).render

    def collect(self) -> Iterator[Metric]:
        """What there is now."""
        yield from pool_metrics(self._pools())


def pool_metrics(pools: Iterable[Pool]) -> Iterator[Metric]:
    """The whole node's pools, in bytes."""
    meanings = {
        "size": "What a pool of huge pages has in all.",
        "free": "Of this, not taken.",
        "reserved": "Of what is free, promised to mappings.",
    }
    families = {
        name: GaugeMetricFamily(f"{PREFIX}node_pool_{name}_bytes", meaning, labels=["page_size"])
        for name, meaning in meanings.items()
    }
    for pool in pools:
        if pool.numa_node is None:
            pages = {"size": pool.total, "free": pool.free, "reserved": pool.reserved or 0}
            for name, count in pages.items():
                families[name].add_metric([pool.size.resource], count * pool.size.bytes)
    yield from families.values()


def _reads(reads: Reads) -> Iterator[Metric]:
    told = {
        "reads": ("Walks over the kernel's charge list.", reads.walks),
        "reads_repeated": (
            "Of these, those that were torn or met counters that moved, and were repeated.",
            reads.repeated,
        ),
        "read_failures": ("Answers that did not come: each is told in the log.", reads.failures),
        "read_seconds": ("Seconds that the walks took in the kernel.", reads.seconds),
    }
    for name, (meaning, value) in told.items():
        yield CounterMetricFamily(f"{PREFIX}agent_charge_list_{name}", meaning, value=value)
