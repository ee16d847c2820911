"""The controller's metrics: every quota, every node's report, how late the count is, who leads."""

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

from hugetlb_quota.controller.books import Books
from hugetlb_quota.controller.lag import Lag
from hugetlb_quota.kube.metrics import PREFIX, BytesBySize, Metrics, gauge, gauges
from hugetlb_quota.kube.quotas import QuotaObject

_OF_QUOTA = ("quota_namespace", "quota")


class Counting(Protocol):
    """The part of a Recounter that this needs."""

    lag: Lag
    books: Books

    @property
    def quotas(self) -> Iterable[QuotaObject]:
        """All that are known; none before this one leads."""
        ...

    @property
    def report_ages(self) -> Mapping[str, float]:
        """By node, how many seconds ago its last report came."""
        ...


class ControllerMetrics(Collector):
    """Reads the recounter at every scrape; a quota or a node that goes takes its rows along."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        self.leads = False
        self.render = Metrics("controller", self).render

    def collect(self) -> Iterator[Metric]:
        """What is read at a scrape."""
        lag = self._counting.lag
        yield gauge("leader", "1 for the controller that leads, 0 for one that waits.", self.leads)
        yield gauge(
            "controller_count_lag_seconds",
            "How old the oldest change is that the quotas do not show yet; 0: there is none.",
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
            "Counts of everybody, from scratch; the others are of whom a change concerned.",
            value=self._counting.books.checks,
        )
        yield CounterMetricFamily(
            PREFIX + "controller_check_differences",
            "Counts from scratch that found anything else than those before: a fault of"
            " hugetlb-quota, which the log tells of. What was found from scratch holds.",
            value=self._counting.books.differences,
        )
        yield from gauges(
            "node_report_age_seconds",
            "How long ago the last report of a node's agent came.",
            "report_of",
            self._counting.report_ages,
        )
        yield from _quotas(self._counting.quotas)


def _quotas(quotas: Iterable[QuotaObject]) -> Iterator[Metric]:
    hard = BytesBySize("hard_bytes", "The limit of a quota.", _OF_QUOTA)
    used = BytesBySize(
        "used_bytes", "All that is charged to a quota, quotas below included.", _OF_QUOTA
    )
    pods = BytesBySize("pods_bytes", "Of this, for pods that were seen.", _OF_QUOTA)
    retained = BytesBySize(
        "retained_bytes", "Of this, left in files by pods that are gone.", _OF_QUOTA
    )
    reserved = BytesBySize(
        "reserved_bytes", "Of this, for pods that were admitted and not yet seen.", _OF_QUOTA
    )
    states = GaugeMetricFamily(
        PREFIX + "condition",
        "1 where a condition of a quota is True, which is well, 0 where it is not.",
        labels=[*_OF_QUOTA, "condition"],
    )
    for quota in quotas:
        who = quota.key.namespace, quota.key.name
        counter = quota.counter
        sizes = counter.used.keys()
        hard.add(counter.hard, counter.hard.keys(), *who)
        used.add(counter.used, sizes, *who)
        pods.add(counter.pods, sizes, *who)
        retained.add(counter.retained, sizes, *who)
        reserved.add(counter.reserved, sizes, *who)
        for condition in quota.conditions:
            states.add_metric([*who, condition.type], float(condition.status == "True"))
    for each in (hard, used, pods, retained, reserved):
        yield each.family
    yield states
