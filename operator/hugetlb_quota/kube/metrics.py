"""What the metrics of all programs have in common, and how Prometheus reads them.

A metric is read when it is scraped, from what the program knows anyway; only what is gone by then
(how long a decision took) is counted as it happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Info, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.page_size import PageSize
from hugetlb_quota.program import version

#: What the names of all metrics begin with.
PREFIX: Final = "hugetlb_quota_"


class Metrics:
    """The metrics of one program: its own, its build, and what its process takes.

    :param program: as "agent".
    :param collectors: what is read at every scrape.
    """

    def __init__(self, program: str, *collectors: Collector) -> None:
        # A second row for each counter, of which no query is made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        # Its own: the global one would add what the interpreter does.
        self.registry = CollectorRegistry()
        Info(PREFIX + "build", "Which program this is.", registry=self.registry).info(
            {"program": program, "version": version()}
        )
        ProcessCollector(registry=self.registry)
        for each in collectors:
            self.registry.register(each)

    def render(self) -> bytes:
        """All of them, in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)


class BytesBySize:
    """A gauge of bytes that has a row for each page size.

    :param labels: the names of the labels before ``page_size``.
    """

    def __init__(self, name: str, meaning: str, labels: Iterable[str] = ()) -> None:
        self.family = GaugeMetricFamily(PREFIX + name, meaning, labels=[*labels, "page_size"])

    def add(self, charge: Charge, sizes: Iterable[PageSize], *labels: str) -> None:
        """A row for each of ``sizes``, also at 0."""
        for size in sizes:
            self.family.add_metric([*labels, size.resource], charge.of(size))


def gauge(name: str, meaning: str, value: float) -> Metric:
    """A gauge without labels."""
    return GaugeMetricFamily(PREFIX + name, meaning, value=value)


def gauges(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Iterator[Metric]:
    """A gauge with one label, a row for each of ``values``."""
    family = GaugeMetricFamily(PREFIX + name, meaning, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    yield family
