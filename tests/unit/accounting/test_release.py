"""A pod that ended is charged until its node proves it gone."""

from dataclasses import replace

import pytest

from hugetlb_quota.accounting.release import EndedPod, NodeEvidence, is_released

POD = EndedPod("uid", node="worker", resource_version=100)
REPORT = NodeEvidence(
    exists=True, boot_id="boot", reported_boot_id="boot", pods_resource_version=100
)


def test_its_node_saw_the_end_and_lists_no_cgroup_of_it() -> None:
    assert is_released(POD, REPORT)


@pytest.mark.parametrize(
    "evidence",
    [
        replace(REPORT, live=frozenset({"uid"})),
        replace(REPORT, pods_resource_version=99),
        replace(REPORT, boot_id=None, pods_resource_version=99),
        replace(REPORT, reported_boot_id=None, pods_resource_version=0),
    ],
    ids=["cgroup is there", "end not seen", "boot unknown, end not seen", "report not understood"],
)
def test_it_is_held(evidence: NodeEvidence) -> None:
    assert not is_released(POD, evidence)


@pytest.mark.parametrize(
    ("pod", "evidence"),
    [
        (replace(POD, node=None), replace(REPORT, live=frozenset({"uid"}))),
        (POD, None),
        (POD, replace(REPORT, exists=False, live=frozenset({"uid"}))),
        (POD, NodeEvidence(exists=True, boot_id="boot")),
        (POD, replace(REPORT, boot_id="new", live=frozenset({"uid"}))),
    ],
    ids=["never bound", "node unknown", "node gone", "no agent", "node has booted since"],
)
def test_it_is_released_at_once(pod: EndedPod, evidence: NodeEvidence | None) -> None:
    assert is_released(pod, evidence)
