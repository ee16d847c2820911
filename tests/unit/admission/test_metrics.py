"""The metrics of admission as Prometheus reads them."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from hugetlb_quota.admission.metrics import AdmissionMetrics
from hugetlb_quota.admission.review import ALLOW, CAUSES, deny


@dataclass
class Writes:
    writes: int = 9
    conflicts: int = 4


def scraped(metrics: AdmissionMetrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name.removeprefix("hugetlb_quota_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_every_cause_has_a_series_from_the_start() -> None:
    values = scraped(AdmissionMetrics())
    causes = {key[1] for key in values if key[0] == "admission_decisions_total"}
    assert causes == {"none", *CAUSES}
    assert not any(key[0].startswith(("admission_write", "certificate")) for key in values)


def test_renders_decisions_batches_writes_and_the_certificate() -> None:
    metrics = AdmissionMetrics()
    metrics.writes = Writes()
    metrics.certificate_ends = lambda: 1.9e9
    metrics.decided("pod", ALLOW, 0.002)
    metrics.decided("pod", deny("No room."), 0.2)
    metrics.decided("quota", deny("Nobody answers.", cause="unreachable"), 3.0)
    metrics.committed(3)
    values = scraped(metrics)
    decisions = {key[1:]: value for key, value in values.items() if value and "decisions" in key[0]}
    assert decisions == {
        ("none", "pod"): 1,
        ("rule", "pod"): 1,
        ("unreachable", "quota"): 1,
    }
    assert values["admission_decision_duration_seconds_bucket", "pod", "0.0025"] == 1
    assert values["admission_decision_duration_seconds_count", "pod"] == 2
    assert values["admission_batch_size_bucket", "2.0"] == 0
    assert values["admission_batch_size_bucket", "4.0"] == 1
    assert values["admission_writes_total",] == 9
    assert values["admission_write_conflicts_total",] == 4
    assert values["certificate_expiry_timestamp_seconds",] == 1.9e9
