"""The metrics that all programs share, and the helpers to make gauges.

A program computes a metric at the scrape, from its present state. It counts at once only what it
can't compute later, such as the duration of a decision.
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

#: The prefix of all metric names.
PREFIX: Final = "hugetlb_quota_"


class Metrics:
    """The metrics of one program: its collectors, its build, and its process.

    :param program: the program's name, such as "agent".
    :param collectors: the program's own metrics, collected at every scrape.
    """

    def __init__(self, program: str, *collectors: Collector) -> None:
        # No query uses the _created series, which every counter would have.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        # The global registry would add metrics of the interpreter.
        self.registry = CollectorRegistry()
        Info(PREFIX + "build", "Which program this is.", registry=self.registry).info(
            {"program": program, "version": version()}
        )
        ProcessCollector(registry=self.registry)
        for each in collectors:
            self.registry.register(each)

    def render(self) -> bytes:
        """All metrics, in Prometheus' text format 0.0.4."""
        return generate_latest(self.registry)


class BytesBySize:
    """A gauge of bytes with one series for each page size.

    :param labels: the label names before ``page_size``.
    """

    def __init__(self, name: str, meaning: str, labels: Iterable[str] = ()) -> None:
        self.family = GaugeMetricFamily(PREFIX + name, meaning, labels=[*labels, "page_size"])

    def add(self, charge: Charge, sizes: Iterable[PageSize], *labels: str) -> None:
        """Add a series for each of ``sizes``, also if it is 0."""
        for size in sizes:
            self.family.add_metric([*labels, size.resource], charge.of(size))


def gauge(name: str, meaning: str, value: float) -> Metric:
    """A gauge without labels."""
    return GaugeMetricFamily(PREFIX + name, meaning, value=value)


def gauges(name: str, meaning: str, label: str, values: Mapping[str, float]) -> Iterator[Metric]:
    """A gauge with one label, and one series for each of ``values``."""
    family = GaugeMetricFamily(PREFIX + name, meaning, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    yield family
