"""What a scrape of the agent reads."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.agent.ledger import Known, Ledger
from hugetlb_quota.agent.memory import Account, Memory, State
from hugetlb_quota.agent.metrics import AgentMetrics
from hugetlb_quota.agent.track import Tracker
from hugetlb_quota.page_size import PageSize

MIB = 1 << 20
SMALL, LARGE = PageSize(2 * MIB), PageSize(1 << 30)
SIZES = (SMALL, LARGE)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    memory = Memory.open(tmp_path / "state", "boot")
    yield memory
    memory.close()


def scraped(ledger: Ledger, problems: tuple[str, ...] = ()) -> dict[tuple[str, str], float]:
    """Each value by the metric's name and its page size, without their prefixes."""
    metrics = AgentMetrics(Tracker((), SIZES, ledger), SIZES, lambda: problems)
    return {
        (
            sample.name.removeprefix("hugetlb_quota_"),
            sample.labels.get("page_size", "").removeprefix("hugepages-"),
        ): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def charge(mib: int) -> Charge:
    return Charge({SMALL: mib * MIB})


def known(name: str, mib: int) -> Known:
    return Known("ns", name, ("ns/q",), charge(mib), over=False)


def test_every_row_is_there_before_anything_happened(memory: Memory) -> None:
    by_size = ("retained_bytes", "unattributed_bytes", "guessed_bytes", "difference_bytes")
    expected = {(name, size): 0.0 for name in by_size for size in ("2Mi", "1Gi")}
    expected |= {(name, ""): 0.0 for name in ("files", "pods", "limits_not_enforced")}
    assert scraped(Ledger(memory)) == expected


def test_what_a_pod_left_is_retained_and_what_nobody_left_is_unattributed(memory: Memory) -> None:
    ledger = Ledger(memory)
    ledger.seen("a", charge(8), empty=False)
    ledger.seen("b", charge(4), empty=False)
    assert scraped(ledger)["pods", ""] == 2
    ledger.seen("a", charge(6), empty=True)
    ledger.settle(["b"], {"a": known("a", 6), "b": known("b", 4)}, {SMALL: 10 * MIB})
    values = scraped(ledger)
    assert values["retained_bytes", "2Mi"] == 6 * MIB
    assert values["unattributed_bytes", "2Mi"] == 4 * MIB
    assert values["retained_bytes", "1Gi"] == 0
    assert values["pods", ""] == 1


def test_what_may_be_anothers_is_guessed(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    for _ in range(2):  # made; remembered
        memory = Memory.open(tmp_path / "state", "boot")
        gone = [
            Account(uid, "ns", uid, ("ns/q",), charge(8), charge(6), State.GONE, now)
            for uid in ("a", "b")
        ]
        ledger = Ledger(memory)
        memory.save(gone, [], NOTHING, charge(2))
        memory.close()
    assert scraped(ledger)["guessed_bytes", "2Mi"] == 2 * MIB
    assert scraped(ledger)["retained_bytes", "2Mi"] == 12 * MIB


def test_pods_that_are_not_limited_are_counted(memory: Memory) -> None:
    values = scraped(Ledger(memory), ("Pod a is not limited.", "Pod b uses more."))
    assert values["limits_not_enforced", ""] == 2
