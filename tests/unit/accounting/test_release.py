"""An ended pod is charged until its node proves that the cgroup is gone."""

from dataclasses import replace

import pytest

from hugetlb_quota.accounting.release import EndedPod, NodeEvidence, holds, is_released

POD = EndedPod("uid", node="worker", resource_version=100)
REPORT = NodeEvidence(exists=True, reported_boot_id="boot", pods_resource_version=100)
BOOTED = frozenset({"earlier", "boot"})
LIVE = replace(REPORT, live=frozenset({"uid"}))


def test_a_pod_is_released_when_its_node_saw_the_end_and_lists_no_cgroup() -> None:
    assert is_released(POD, REPORT)
    assert holds(REPORT)


@pytest.mark.parametrize(
    "evidence",
    [
        LIVE,
        replace(REPORT, pods_resource_version=99),
        replace(REPORT, former_boots=frozenset({"earlier"}), pods_resource_version=99),
        replace(REPORT, reported_boot_id=None, pods_resource_version=0),
    ],
    ids=[
        "cgroup is there",
        "end not seen",
        "booted before it, end not seen",
        "report not understood",
    ],
)
def test_a_pod_is_held_without_evidence(evidence: NodeEvidence) -> None:
    assert not is_released(POD, evidence)
    assert holds(evidence)


@pytest.mark.parametrize(
    ("pod", "evidence"),
    [
        (replace(POD, node=None), LIVE),
        (POD, None),
        (POD, replace(LIVE, exists=False)),
        (POD, replace(LIVE, out_of_service=True)),
        (POD, NodeEvidence(exists=True)),
        (POD, replace(LIVE, former_boots=BOOTED, booted_at=100)),
    ],
    ids=["never bound", "node unknown", "node gone", "node is off", "no agent", "node has booted"],
)
def test_a_pod_is_released_at_once(pod: EndedPod, evidence: NodeEvidence | None) -> None:
    assert is_released(pod, evidence)
    assert pod.node is None or not holds(evidence)


@pytest.mark.parametrize("booted_at", [99, None], ids=["boot before the end", "unknown boot time"])
def test_a_boot_is_no_evidence_for_a_pod_that_may_have_run_after_it(booted_at: int | None) -> None:
    """A report of the former boot is no evidence for a later pod."""
    booted = replace(REPORT, former_boots=BOOTED, booted_at=booted_at, pods_resource_version=500)
    assert not is_released(POD, booted)
    assert not holds(booted)
    reported = replace(booted, reported_boot_id="new")
    assert is_released(POD, reported)
    assert not is_released(POD, replace(reported, pods_resource_version=99))
