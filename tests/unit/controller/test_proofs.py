"""Which nodes still lack a proof that an ended pod has no cgroup."""

from __future__ import annotations

import pytest

from hugetlb_quota.accounting.release import EndedPod, NodeEvidence
from hugetlb_quota.accounting.reservation import SOMEWHERE, UNBOUND
from hugetlb_quota.controller.counting.proofs import Proofs


def reported(up_to: int | None, *, exists: bool = True) -> NodeEvidence:
    return NodeEvidence(exists=exists, reported_boot_id="boot", pods_resource_version=up_to)


EVIDENCE = {
    "early": reported(9),
    "exact": reported(10),
    "late": reported(11),
    "without-agent": reported(None),
    "deleted": reported(5, exists=False),
}


@pytest.mark.parametrize(
    ("node", "lacking"),
    [
        ("early", {"early"}),
        ("exact", set()),
        ("late", set()),
        ("without-agent", set()),
        ("deleted", set()),
        ("never-seen", set()),
        (None, set()),
        (UNBOUND, {"early"}),
        (SOMEWHERE, {"early"}),
    ],
)
def test_a_node_must_have_seen_the_end_and_an_unknown_node_may_be_any(
    node: str | None, lacking: set[str]
) -> None:
    assert Proofs(EVIDENCE).lacking(EndedPod("uid", node, 10)) == lacking


def test_without_any_agent_a_pod_without_a_node_is_released() -> None:
    proofs = Proofs({"without-agent": reported(None)})
    assert proofs.lacking(EndedPod("uid", UNBOUND, 10)) == set()
