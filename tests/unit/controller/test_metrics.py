"""The controller's metrics: quotas, ages of reports, and the delay of the count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from hugetlb_quota.controller.counting.books import Books
from hugetlb_quota.controller.lag import Lag
from hugetlb_quota.controller.metrics import ControllerMetrics
from hugetlb_quota.kube.quotas import QuotaObject

MIB = 1 << 20


@dataclass
class Counting:
    lag: Lag = field(default_factory=Lag)
    books: Books = field(default_factory=Books)
    quotas: tuple[QuotaObject, ...] = ()
    report_ages: Mapping[str, float] = field(default_factory=dict)


def scraped(counting: Counting, *, leads: bool = False) -> dict[tuple[str, ...], float]:
    metrics = ControllerMetrics(counting)
    metrics.leads = leads
    return {
        (sample.name.removeprefix("hugetlb_quota_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if not sample.name.startswith("process")
    }


def test_a_controller_that_waits_shows_no_quota() -> None:
    values = scraped(Counting())
    assert values["leader",] == 0
    assert {key[0] for key in values} == {
        "build_info",
        "leader",
        "controller_checks_total",
        "controller_check_differences_total",
        "controller_count_lag_seconds",
        "controller_recount_duration_seconds_count",
        "controller_recount_duration_seconds_sum",
    }


def test_each_quota_has_rows_that_end_with_the_quota() -> None:
    raw = {
        "metadata": {"namespace": "ns", "name": "q", "uid": "u", "resourceVersion": "7"},
        "spec": {"hard": {"hugepages-2Mi": "64Mi"}},
        "status": {
            "pods": {"hugepages-2Mi": "16Mi"},
            "retained": {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"},
            "reservations": ["u1 ns/a 2Mi:8Mi 2030-01-01T00:00:00Z r1 0"],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "False",
                    "reason": "ParentNotFound",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }
            ],
        },
    }
    counting = Counting(quotas=(QuotaObject.from_json(raw),), report_ages={"n1": 12.5})
    values = scraped(counting, leads=True)
    of = ("hugepages-2Mi", "q", "ns")
    assert values["leader",] == 1
    assert values["node_report_age_seconds", "n1"] == 12.5
    assert {key[0]: value // MIB for key, value in values.items() if key[1:] == of} == {
        "hard_bytes": 64,
        "used_bytes": 28,
        "pods_bytes": 16,
        "retained_bytes": 4,
        "reserved_bytes": 8,
    }
    # A size without a limit has no row of hard, so no query divides by 0.
    assert values["retained_bytes", "hugepages-1Gi", "q", "ns"] == 1 << 30
    assert ("hard_bytes", "hugepages-1Gi", "q", "ns") not in values
    assert values["condition", "Ready", "q", "ns"] == 0
    counting.quotas = ()
    assert not [key for key in scraped(counting) if key[-2:] == ("q", "ns")]
