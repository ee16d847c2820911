"""Admission's metrics: what it decided, why not, how long that took, and what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from hugetlb_quota.admission.review import CAUSES, Decision
from hugetlb_quota.kube.metrics import PREFIX, Metrics, gauge

#: Seconds: from a decision on a cache to the API server's own patience.
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUESTS: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class Writes(Protocol):
    """The part of a Committer that this needs."""

    writes: int
    conflicts: int


class AdmissionMetrics(Collector):
    """Counts decisions; the rest is read when it is asked for."""

    def __init__(self) -> None:
        #: Who writes reservations, once there is one.
        self.writes: Writes | None = None
        #: When the serving certificate ends, in seconds since 1970; None while it is not known.
        self.certificate_ends: Callable[[], float | None] = lambda: None
        metrics = Metrics("admission", self)
        self.render = metrics.render
        decisions = Counter(
            PREFIX + "admission_decisions",
            "Decisions about pods and quotas; cause says why one was refused.",
            ("kind", "cause"),
            registry=metrics.registry,
        )
        seconds = Histogram(
            PREFIX + "admission_decision_duration_seconds",
            "From the request's arrival to its answer.",
            ("kind",),
            buckets=_SECONDS,
            registry=metrics.registry,
        )
        # All of them from the start: a rate needs the 0 before the 1.
        kinds = ("pod", "quota")
        self._decisions = {
            (kind, cause): decisions.labels(kind, cause or "none")
            for kind in kinds
            for cause in ("", *CAUSES)
        }
        self._seconds = {kind: seconds.labels(kind) for kind in kinds}
        self._batches = Histogram(
            PREFIX + "admission_batch_size",
            "Requests that were committed in one group.",
            buckets=_REQUESTS,
            registry=metrics.registry,
        )

    def decided(self, kind: str, decision: Decision, seconds: float) -> None:
        """``decision`` on a "pod" or a "quota" took so long."""
        self._decisions[kind, decision.cause].inc()
        self._seconds[kind].observe(seconds)

    def committed(self, requests: int) -> None:
        """So many were committed in one group."""
        self._batches.observe(requests)

    def collect(self) -> Iterator[Metric]:
        """What is read at a scrape."""
        if self.writes is not None:
            yield CounterMetricFamily(
                PREFIX + "admission_writes",
                "Writes of reservations to quotas that were tried.",
                value=self.writes.writes,
            )
            yield CounterMetricFamily(
                PREFIX + "admission_write_conflicts",
                "Of these, those that met another's write and were made anew.",
                value=self.writes.conflicts,
            )
        ends = self.certificate_ends()
        if ends is not None:
            yield gauge(
                "certificate_expiry_timestamp_seconds",
                "When the certificate that admission serves with ends, in seconds since 1970.",
                ends,
            )
