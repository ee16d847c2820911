"""The agent's metrics: the result of the last pass, and how the passes went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.reporter import Latest
from hugetlb_quota.kube.metrics import PREFIX, BytesBySize, Metrics, gauge
from hugetlb_quota.node.charge_reader import Reads
from hugetlb_quota.node.pools import Pool
from hugetlb_quota.page_size import PageSize


class AgentMetrics(Collector):
    """Collects the metrics from ``latest`` at each scrape.

    :param sizes: every page size of the host; each has a sample, also with the value 0.
    :param not_enforced: returns a sentence for each pod that is not limited to its demand.
    :param reads: returns the counts of the reads of the charge list.
    :param refused: returns how often the kernel refused huge pages to pods, by page size.
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
        """Yield the metrics as they are now."""
        report, reading = self._latest.report, self._latest.reading
        pods = report.entries.values()
        yield self._bytes(
            "node_retained_bytes",
            "Huge pages that are charged to the cgroups of gone pods.",
            Charge.total(each.charged for each in pods if not each.live),
        )
        yield self._bytes(
            "node_nameless_bytes",
            "Huge pages that are charged to pods that no agent ever saw in the API.",
            Charge.total(each.charged for each in pods if not each.name),
        )
        yield self._bytes(
            "node_system_bytes",
            "Huge pages that are charged to cgroups outside pods: the host's own processes.",
            report.system,
        )
        yield self._bytes(
            "node_unlisted_bytes",
            "Huge pages that the kernel counts but its charge list does not show.",
            report.unlisted,
        )
        yield gauge(
            "node_charge_list_readable",
            "1 if the agent reads the kernel's charge list, 0 if it uses only counters.",
            int(not reading.unreadable),
        )
        yield gauge("node_pods", "Pods with a cgroup on this node.", len(reading.populated))
        yield gauge(
            "node_limits_not_enforced",
            "Pods that are not limited to what they may use; the condition Ready names them.",
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
            "How often the kernel refused huge pages beyond the demand of pods.",
            labels=["page_size"],
        )
        for size in self._sizes:
            family.add_metric([size.resource], refused.get(size, 0))
        return family

    def _passes(self) -> Iterator[Metric]:
        latest = self._latest
        passes = CounterMetricFamily(
            PREFIX + "agent_passes",
            "Passes over the node: whole, moving (charges changed meanwhile), or failed.",
            labels=["result"],
        )
        for result, count in latest.passes.items():
            passes.add_metric([result], count)
        yield passes
        yield gauge(
            "agent_last_pass_timestamp_seconds",
            "The end of the last successful pass, in seconds since 1970; 0 if there was none.",
            latest.passed_at,
        )


class PoolMetrics(Collector):
    """The metrics of an agent that can't limit pods on its node: only the pools.

    :param pools: reads the pools.
    """

    def __init__(self, pools: Callable[[], Iterable[Pool]]) -> None:
        self._pools = pools
        self.render = Metrics("agent", self).render

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        yield from pool_metrics(self._pools())


def pool_metrics(pools: Iterable[Pool]) -> Iterator[Metric]:
    """Yield the pools of the whole node, in bytes."""
    meanings = {
        "size": "All huge pages of a pool.",
        "free": "The huge pages of a pool that are not allocated.",
        "reserved": "The free huge pages that are reserved by mappings.",
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
    counters = {
        "reads": ("Walks over the kernel's charge list.", reads.walks),
        "reads_repeated": (
            "Walks that were repeated, because they were torn or counters changed meanwhile.",
            reads.repeated,
        ),
        "read_failures": ("Reads that failed; the log says why.", reads.failures),
        "read_seconds": ("Seconds that the walks took in the kernel.", reads.seconds),
    }
    for name, (meaning, value) in counters.items():
        yield CounterMetricFamily(f"{PREFIX}agent_charge_list_{name}", meaning, value=value)
