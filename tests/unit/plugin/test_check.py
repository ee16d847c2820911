"""``check`` finds each fault, and says a remedy."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hugetlb_quota.kube.controller_lease import HOOK
from hugetlb_quota.plugin.check import check
from hugetlb_quota.plugin.facts import Facts
from hugetlb_quota.plugin.findings import Level, document, exit_code, picture, worst
from hugetlb_quota.plugin.problem import Exit
from hugetlb_quota.plugin.reports import read_report
from hugetlb_quota.plugin.table import Screen
from tests.unit.plugin.check_facts import WELL, Json, lease, quotas, webhooks, workload, workloads
from tests.unit.plugin.worlds import quota, report


def test_all_is_well() -> None:
    found = check(WELL)
    assert exit_code(found) == Exit.DONE
    assert (
        picture(found, Screen())
        == """\
OK       CRDs        HugeTLBQuota and HugeTLBNode are served.
OK       webhooks    3 webhooks configured, with their CA.
OK       admission   Deployment hugetlb-system/admission: 2 pods available.
OK       controller  Deployment hugetlb-system/controller: 2 pods available.
OK       agent       DaemonSet hugetlb-system/agent: 2 pods available.
OK       leader      Lease hugetlb-system/hugetlb-quota-controller is held by controller-1.
OK       nodes       1 node with a fresh report.
OK       quotas      1 quota, counted and in order.
OK       versions    The programs and the plugin have version 0.1.0.

All is well."""
    )


OLD = "2026-11-26T11:50:00Z"
FALSE = [
    {
        "type": "Ready",
        "status": "False",
        "reason": "NoCgroup2",
        "message": "There is none.",
        "lastTransitionTime": OLD,
    }
]


@pytest.mark.parametrize(
    ("changed", "level", "topic", "says"),
    [
        ({"crds": {}}, Level.ERROR, "CRDs", "hugetlbquotas.hugetlb.dev does not exist"),
        ({"webhooks": []}, Level.ERROR, "webhooks", "quotas refuse nothing"),
        ({"webhooks": webhooks("")}, Level.ERROR, "webhooks", "have no caBundle"),
        ({"webhooks": webhooks("bm8=")}, Level.ERROR, "webhooks", "holds no certificate"),
        ({"webhooks": webhooks(policy="Ignore")}, Level.WARNING, "webhooks", "Ignore"),
        ({"endpoints": {}}, Level.ERROR, "webhooks", "no ready endpoint"),
        ({"workloads": {}}, Level.ERROR, "agent", "no DaemonSet of agent"),
        (
            {"workloads": workloads(admission=workload("a"))},
            *(Level.ERROR, "admission", "none of its 2 pods"),
        ),
        (
            {"workloads": workloads(admission=workload("a", availableReplicas=1))},
            *(Level.WARNING, "admission", "1 of 2 pods"),
        ),
        (
            {"workloads": workloads(admission=workload("a", availableReplicas=2))},
            *(Level.WARNING, "admission", "0 of 2 pods are new"),
        ),
        (
            {"workloads": workloads(agent=workload("a", desiredNumberScheduled=1))},
            *(Level.ERROR, "agent", "The pod of DaemonSet hugetlb-system/a is not available."),
        ),
        (
            {
                "workloads": workloads(
                    agent=workload("a", desiredNumberScheduled=1, numberAvailable=1)
                )
            },
            *(Level.WARNING, "agent", "is being updated: its pod is not new."),
        ),
        (
            {"workloads": workloads(agent=workload("a"))},
            *(Level.ERROR, "agent", "wants no pods"),
        ),
        (
            {
                "workloads": workloads(
                    admission=workload("a", version="0.2.0", availableReplicas=2, updatedReplicas=2)
                )
            },
            *(Level.WARNING, "versions", "have different versions"),
        ),
        ({"version": "9"}, Level.WARNING, "versions", "This plugin has version 9"),
        ({"leases": []}, Level.ERROR, "leader", "no controller has ever led"),
        ({"leases": [lease(holderIdentity="")]}, Level.ERROR, "leader", "has no holder"),
        ({"leases": [lease(renewTime=OLD)]}, Level.ERROR, "leader", "10m ago"),
        # By the hook of helm uninstall, just now and before.
        ({"leases": [lease(holderIdentity=HOOK)]}, Level.ERROR, "leader", "was uninstalled"),
        (
            {"leases": [lease(holderIdentity=HOOK, renewTime=OLD)]},
            *(Level.ERROR, "leader", "was uninstalled; quotas hold nothing"),
        ),
        ({"reports": []}, Level.ERROR, "nodes", "Node n1 has huge pages and no HugeTLBNode"),
        (
            {"reports": [read_report(report("n1", reportedAt=OLD))]},
            *(Level.ERROR, "nodes", "n1 (10m)"),
        ),
        (
            {"reports": [read_report(report("n1", conditions=FALSE))]},
            *(Level.ERROR, "nodes", "NoCgroup2"),
        ),
        (
            {"reports": [read_report(report("n1", bootID="before"))]},
            *(Level.WARNING, "nodes", "an earlier boot"),
        ),
        (
            {"reports": [read_report(report("n1", [{"uid": 1}]))]},
            *(Level.WARNING, "nodes", "1 entry of the report of n1"),
        ),
        ({"quotas": quotas(quota("a/b", "x"))}, Level.ERROR, "quotas", "a/b is Invalid"),
        (
            {"quotas": quotas(quota("a/b", "2Mi", counted=False))},
            *(Level.ERROR, "quotas", "NotCounted"),
        ),
        (
            {"quotas": quotas(quota("a/b", "2Mi", bad="OverLimit"))},
            *(Level.WARNING, "quotas", "a/b is OverLimit: It is OverLimit."),
        ),
    ],
)
def test_each_fault_has_a_finding_with_a_remedy(
    changed: Json, level: Level, topic: str, says: str
) -> None:
    found = check(replace(WELL, **changed))
    assert worst(found) == level
    assert exit_code(found) == {Level.ERROR: Exit.REFUSED, Level.WARNING: Exit.WARNING}[level]
    (first, *_) = [each for each in found if each.level == level and each.topic == topic]
    assert says in first.message
    assert first.remedy
    assert not [each for each in found if each.topic == topic and each.level == Level.OK]


def test_parts_that_may_not_be_read_are_findings() -> None:
    blind = Facts(now=datetime.now(UTC), version="0.1.0", unread={"leader": "you may not"})
    found = check(blind)
    assert {each.level for each in found} == {Level.UNSEEN}
    assert exit_code(found) == Exit.FORBIDDEN
    assert "Not checked: you may not." in picture(found, Screen())
    assert picture(found, Screen()).endswith("who may read everything, run this command.")


def test_a_fault_is_worse_than_a_missing_right() -> None:
    found = check(replace(WELL, nodes=None, leases=[]))
    assert exit_code(found) == Exit.REFUSED
    assert document(found)["worst"] == "ERROR"
