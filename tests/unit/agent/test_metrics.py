"""What Prometheus reads of the last pass."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.metrics import AgentMetrics
from hugetlb_quota.agent.reading import Reading
from hugetlb_quota.agent.reconcile import Entry, Report
from hugetlb_quota.agent.report import Latest
from hugetlb_quota.page_size import PageSize

SMALL, LARGE = PageSize(2 << 20), PageSize(1 << 30)
MIB = 1 << 20


def charge(mib: int) -> Charge:
    return Charge({SMALL: mib * MIB})


def scraped(latest: Latest) -> dict[tuple[str, str], float]:
    metrics = AgentMetrics(latest, (SMALL, LARGE), lambda: ("One.", "Two."))
    return {
        (sample.name.removeprefix("hugetlb_quota_"), sample.labels.get("page_size", "")): (
            sample.value
        )
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_before_the_first_pass_all_is_nothing() -> None:
    values = scraped(Latest())
    assert values["retained_bytes", "hugepages-2Mi"] == 0
    assert values["retained_bytes", "hugepages-1Gi"] == 0
    assert values["limits_not_enforced", ""] == 2


def test_what_the_last_pass_came_to() -> None:
    entries = (
        Entry("live", "ns", "live", live=True, charged=charge(8)),
        Entry("gone", "ns", "gone", charged=charge(4)),
        Entry("nameless", charged=charge(2)),
    )
    report = Report({each.uid: each for each in entries}, (), charge(16), charge(1))
    values = scraped(Latest(report, Reading(there={"live": True}, unreadable="No BTF.")))
    assert values == {
        ("retained_bytes", "hugepages-2Mi"): 6 * MIB,
        ("nameless_bytes", "hugepages-2Mi"): 2 * MIB,
        ("system_bytes", "hugepages-2Mi"): 16 * MIB,
        ("unlisted_bytes", "hugepages-2Mi"): 1 * MIB,
        **{
            (f"{name}_bytes", "hugepages-1Gi"): 0
            for name in ("retained", "nameless", "system", "unlisted")
        },
        ("charge_list_readable", ""): 0,
        ("pods", ""): 1,
        ("limits_not_enforced", ""): 2,
    }
