"""Admission's metrics: decisions with their causes and durations, batches, and writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from hugetlb_quota.admission.review import CAUSES, Decision
from hugetlb_quota.kube.metrics import PREFIX, Metrics, gauge

#: Buckets of the duration, in seconds: from a decision in the cache to the API server's timeout.
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Buckets of the batch size.
_REQUESTS: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class Writes(Protocol):
    """The part of a Committer that the metrics need: numbers of writes and of Conflicts."""

    writes: int
    conflicts: int


class AdmissionMetrics(Collector):
    """Counts decisions and batches; reads all other values at each scrape."""

    def __init__(self) -> None:
        #: Writes the reservations; None until the program serves.
        self.writes: Writes | None = None
        #: Returns when the serving certificate expires, in seconds since 1970; None if unknown.
        self.certificate_ends: Callable[[], float | None] = lambda: None
        metrics = Metrics("admission", self)
        self.render = metrics.render
        decisions = Counter(
            PREFIX + "admission_decisions",
            "Decisions about pods and quotas; cause says why a request was refused.",
            ("kind", "cause"),
            registry=metrics.registry,
        )
        seconds = Histogram(
            PREFIX + "admission_decision_duration_seconds",
            "From the arrival of a request to its answer.",
            ("kind",),
            buckets=_SECONDS,
            registry=metrics.registry,
        )
        # Make all series at the start: a rate needs the 0 before the 1.
        kinds = ("pod", "quota")
        self._decisions = {
            (kind, cause): decisions.labels(kind, cause or "none")
            for kind in kinds
            for cause in ("", *CAUSES)
        }
        self._seconds = {kind: seconds.labels(kind) for kind in kinds}
        self._batches = Histogram(
            PREFIX + "admission_batch_size",
            "Requests in one group commit.",
            buckets=_REQUESTS,
            registry=metrics.registry,
        )

    def decided(self, kind: str, decision: Decision, seconds: float) -> None:
        """Count a decision about a "pod" or a "quota", which took ``seconds``."""
        self._decisions[kind, decision.cause].inc()
        self._seconds[kind].observe(seconds)

    def committed(self, requests: int) -> None:
        """Count a group commit of ``requests`` requests."""
        self._batches.observe(requests)

    def collect(self) -> Iterator[Metric]:
        """The values that are read at each scrape."""
        if self.writes is not None:
            yield CounterMetricFamily(
                PREFIX + "admission_writes",
                "Attempted writes of reservations to quotas.",
                value=self.writes.writes,
            )
            yield CounterMetricFamily(
                PREFIX + "admission_write_conflicts",
                "Writes that met a write of another program, and were tried again.",
                value=self.writes.conflicts,
            )
        ends = self.certificate_ends()
        if ends is not None:
            yield gauge(
                "certificate_expiry_timestamp_seconds",
                "When the certificate of admission expires, in seconds since 1970.",
                ends,
            )
