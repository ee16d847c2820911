"""A pod that ended is charged until its node proves it gone."""

from dataclasses import replace

import pytest

from hugetlb_quota.accounting.release import EndedPod, NodeEvidence, is_missed, is_released

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


SEEN = replace(POD, seen_at=80)


@pytest.mark.parametrize(
    ("pod", "evidence", "missed"),
    [
        (SEEN, replace(REPORT, pods_since=81), True),
        (SEEN, replace(REPORT, pods_since=80), False),
        (replace(SEEN, listed=True), replace(REPORT, pods_since=81), False),
        (SEEN, replace(REPORT, pods_since=81, settled=frozenset({"uid"})), False),
        (SEEN, replace(REPORT, pods_since=None), False),
        (SEEN, replace(REPORT, pods_since=10, pods_resource_version=99), True),
    ],
    ids=[
        "it may have gone before the agent came",
        "it was there when the agent came",
        "it was listed by the agent before",
        "the agent was told of it",
        "an agent that does not tell since when",
        "the agent may be away",
    ],
)
def test_a_pod_that_the_agent_may_know_nothing_of_is_no_more_let_go_than_a_live_one(
    pod: EndedPod, evidence: NodeEvidence, missed: bool
) -> None:
    assert is_missed(pod, evidence) is missed
    if missed:
        assert not is_released(pod, evidence)
    elif evidence.pods_resource_version == 100:
        assert is_released(pod, evidence)
    gone = replace(evidence, exists=False)
    assert is_released(pod, gone)
    assert is_released(pod, replace(evidence, boot_id="new"))
