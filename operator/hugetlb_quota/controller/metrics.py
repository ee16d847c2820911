"""The controller's metrics: quotas, ages of the nodes' reports, delay of the count, leadership."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from hugetlb_quota.controller.counting.books import Books
from hugetlb_quota.controller.lag import Lag
from hugetlb_quota.kube.metrics import PREFIX, BytesBySize, Metrics, gauge, gauges
from hugetlb_quota.kube.quotas import QuotaObject

_OF_QUOTA = ("quota_namespace", "quota")


class Counting(Protocol):
    """The part of a Recounter that the metrics need."""

    lag: Lag
    books: Books

    @property
    def quotas(self) -> Iterable[QuotaObject]:
        """All quotas; none before this controller leads."""
        ...

    @property
    def report_ages(self) -> Mapping[str, float]:
        """By node, the time since its last report arrived, in seconds."""
        ...


class ControllerMetrics(Collector):
    """Collects from the recounter at every scrape, so the rows of a deleted quota or node end."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        self.leads = False
        self.render = Metrics("controller", self).render

    def collect(self) -> Iterator[Metric]:
        """The metrics of one scrape."""
        lag = self._counting.lag
        yield gauge("leader", "1 for the controller that leads, 0 for one that waits.", self.leads)
        yield gauge(
            "controller_count_lag_seconds",
            "How old the oldest change is that no quota's status shows yet; 0: there is none.",
            lag.seconds(),
        )
        yield SummaryMetricFamily(
            PREFIX + "controller_recount_duration_seconds",
            "How long a count of all quotas takes.",
            count_value=lag.counts,
            sum_value=lag.took,
        )
        yield CounterMetricFamily(
            PREFIX + "controller_checks",
            "Counts of all pods, from scratch. Other counts are of the pods that a change affects.",
            value=self._counting.books.checks,
        )
        yield CounterMetricFamily(
            PREFIX + "controller_check_differences",
            "Counts from scratch that differed from the counts before: a bug of hugetlb-quota. The"
            " log has the difference, and the count from scratch wins.",
            value=self._counting.books.differences,
        )
        yield from gauges(
            "node_report_age_seconds",
            "How long ago the last report of a node's agent arrived.",
            "report_of",
            self._counting.report_ages,
        )
        yield from _quotas(self._counting.quotas)


def _quotas(quotas: Iterable[QuotaObject]) -> Iterator[Metric]:
    hard = BytesBySize("hard_bytes", "The limit of a quota.", _OF_QUOTA)
    used = BytesBySize(
        "used_bytes", "The whole charge of a quota, with the quotas below.", _OF_QUOTA
    )
    pods = BytesBySize(
        "pods_bytes", "The part of used_bytes for pods that were counted.", _OF_QUOTA
    )
    retained = BytesBySize(
        "retained_bytes", "The part of used_bytes that gone pods left in files.", _OF_QUOTA
    )
    reserved = BytesBySize(
        "reserved_bytes", "The part of used_bytes for admitted pods, not yet counted.", _OF_QUOTA
    )
    states = GaugeMetricFamily(
        PREFIX + "condition",
        "1 if a condition of a quota is True, which is good; else 0.",
        labels=[*_OF_QUOTA, "condition"],
    )
    for quota in quotas:
        labels = quota.key.namespace, quota.key.name
        counter = quota.counter
        sizes = counter.used.keys()
        hard.add(counter.hard, counter.hard.keys(), *labels)
        used.add(counter.used, sizes, *labels)
        pods.add(counter.pods, sizes, *labels)
        retained.add(counter.retained, sizes, *labels)
        reserved.add(counter.reserved, sizes, *labels)
        for condition in quota.conditions:
            states.add_metric([*labels, condition.type], float(condition.status == "True"))
    for each in (hard, used, pods, retained, reserved):
        yield each.family
    yield states
