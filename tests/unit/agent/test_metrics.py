"""The agent's metrics as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.metrics import AgentMetrics, PoolMetrics
from hugetlb_quota.agent.reading import Reading
from hugetlb_quota.agent.report import Entry, Report
from hugetlb_quota.agent.reporter import Latest
from hugetlb_quota.node.charge_reader import Reads
from hugetlb_quota.node.pools import Pool
from hugetlb_quota.page_size import PageSize

SMALL, LARGE = PageSize(2 << 20), PageSize(1 << 30)
MIB = 1 << 20


def charge(mib: int) -> Charge:
    return Charge({SMALL: mib * MIB})


def scraped(render: Callable[[], bytes], *prefixes: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name.removeprefix("hugetlb_quota_"), next(iter(sample.labels.values()), "")): (
            sample.value
        )
        for family in text_string_to_metric_families(render().decode())
        for sample in family.samples
        if sample.name.removeprefix("hugetlb_quota_").startswith(prefixes)
    }


def of(latest: Latest, *prefixes: str) -> dict[tuple[str, str], float]:
    metrics = AgentMetrics(
        latest,
        (SMALL, LARGE),
        lambda: ("One.", "Two."),
        lambda: Reads(walks=5, repeated=2, failures=1, seconds=0.5),
        lambda: {SMALL: 3},
    )
    return scraped(metrics.render, *prefixes)


def test_all_metrics_are_zero_before_the_first_pass() -> None:
    values = of(Latest(), "node", "agent")
    assert values["node_retained_bytes", "hugepages-2Mi"] == 0
    assert values["node_retained_bytes", "hugepages-1Gi"] == 0
    assert values["node_limits_not_enforced", ""] == 2
    assert values["agent_passes_total", "whole"] == 0
    assert values["agent_last_pass_timestamp_seconds", ""] == 0


def test_shows_the_result_of_the_last_pass() -> None:
    entries = (
        Entry("live", "ns", "live", live=True, charged=charge(8)),
        Entry("gone", "ns", "gone", charged=charge(4)),
        Entry("nameless", charged=charge(2)),
    )
    report = Report({each.uid: each for each in entries}, (), charge(16), charge(1))
    pools = (pool(None, 64, 16), pool(0, 60, 12))
    reading = Reading(populated={"live": True}, unreadable="No BTF.", pools=pools)
    latest = Latest(report, reading)
    latest.passed()
    assert of(latest, "node") == {
        ("node_retained_bytes", "hugepages-2Mi"): 6 * MIB,
        ("node_nameless_bytes", "hugepages-2Mi"): 2 * MIB,
        ("node_system_bytes", "hugepages-2Mi"): 16 * MIB,
        ("node_unlisted_bytes", "hugepages-2Mi"): 1 * MIB,
        **{
            (f"node_{name}_bytes", "hugepages-1Gi"): 0
            for name in ("retained", "nameless", "system", "unlisted")
        },
        ("node_charge_list_readable", ""): 0,
        ("node_pods", ""): 1,
        ("node_limits_not_enforced", ""): 2,
        ("node_pool_size_bytes", "hugepages-2Mi"): 128 * MIB,
        ("node_pool_free_bytes", "hugepages-2Mi"): 32 * MIB,
        ("node_pool_reserved_bytes", "hugepages-2Mi"): 8 * MIB,
        ("node_pages_refused_total", "hugepages-2Mi"): 3,
        ("node_pages_refused_total", "hugepages-1Gi"): 0,
    }
    values = of(latest, "agent")
    assert values.pop(("agent_last_pass_timestamp_seconds", "")) > 0
    assert values == {
        ("agent_passes_total", "whole"): 1,
        ("agent_passes_total", "moving"): 0,
        ("agent_passes_total", "failed"): 0,
        ("agent_charge_list_reads_total", ""): 5,
        ("agent_charge_list_reads_repeated_total", ""): 2,
        ("agent_charge_list_read_failures_total", ""): 1,
        ("agent_charge_list_read_seconds_total", ""): 0.5,
    }


def test_an_agent_that_cannot_limit_pods_shows_its_build_and_the_pools() -> None:
    values = scraped(PoolMetrics(lambda: (pool(None, 64, 16),)).render, "build", "node")
    assert values == {
        ("build_info", "agent"): 1,
        ("node_pool_size_bytes", "hugepages-2Mi"): 128 * MIB,
        ("node_pool_free_bytes", "hugepages-2Mi"): 32 * MIB,
        ("node_pool_reserved_bytes", "hugepages-2Mi"): 8 * MIB,
    }


def pool(numa_node: int | None, total: int, free: int) -> Pool:
    return Pool(SMALL, numa_node, total, free, reserved=4, surplus=0)
