"""``check`` finds each fault, and says a remedy."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trustme

from hugetlb_quota.plugin import check_webhooks
from hugetlb_quota.plugin.check import check
from hugetlb_quota.plugin.facts import CRDS, LEASE, WEBHOOKS, Facts
from hugetlb_quota.plugin.findings import Level, document, exit_code, picture, worst
from hugetlb_quota.plugin.problem import Exit
from hugetlb_quota.plugin.reports import read_report
from hugetlb_quota.plugin.table import Screen
from tests.unit.plugin.worlds import NOW, quota, report, world

Json = dict[str, Any]
CA = base64.b64encode(trustme.CA().cert_pem.bytes()).decode()
NODE = {
    "metadata": {"name": "n1"},
    "status": {"capacity": {"hugepages-2Mi": "1Gi"}, "nodeInfo": {"bootID": "boot"}},
}


def webhooks(bundle: str = CA, policy: str = "Fail") -> list[Json]:
    service = {"namespace": "hugetlb-system", "name": "admission"}
    return [
        {
            "webhooks": [
                {
                    "name": name,
                    "failurePolicy": policy,
                    "rules": [{"operations": ["CREATE"]}],
                    "clientConfig": {"caBundle": bundle, "service": service},
                }
                for name in WEBHOOKS
            ]
        }
    ]


def workload(name: str, *, version: str = "0.1.0", **status: int) -> Json:
    return {
        "metadata": {
            "namespace": "hugetlb-system",
            "name": name,
            "labels": {"app.kubernetes.io/version": version},
        },
        "spec": {"replicas": 2, "template": {"spec": {"containers": [{"image": f"i:{version}"}]}}},
        "status": status,
    }


def workloads(**changed: Json) -> dict[str, list[Json]]:
    found = {
        "admission": workload("admission", availableReplicas=2, updatedReplicas=2),
        "controller": workload("controller", availableReplicas=2, updatedReplicas=2),
        "agent": workload(
            "agent", desiredNumberScheduled=2, numberAvailable=2, updatedNumberScheduled=2
        ),
    }
    return {name: [each] for name, each in {**found, **changed}.items()}


def lease(**spec: Any) -> Json:
    held = {
        "holderIdentity": "controller-1",
        "renewTime": "2026-11-26T11:59:55.000000Z",
        "leaseDurationSeconds": 20,
    }
    metadata = {"namespace": "hugetlb-system", "name": LEASE}
    return {"metadata": metadata, "spec": {**held, **spec}}


def quotas(*raws: Json) -> tuple[Any, ...]:
    return tuple(world(raws).quotas.values())


WELL = Facts(
    now=NOW,
    version="0.1.0",
    crds={
        name: {"status": {"conditions": [{"type": "Established", "status": "True"}]}}
        for name in CRDS
    },
    webhooks=webhooks(),
    endpoints={"hugetlb-system/admission": 2},
    workloads=workloads(),
    leases=[lease()],
    nodes=[NODE],
    reports=[read_report(report("n1"))],
    quotas=quotas(quota("a/b", "64Mi")),
)


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
OK       nodes       Fresh reports of 1 node.
OK       quotas      1 quota, all of them counted and in order.
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


@pytest.mark.parametrize(
    ("days_left", "level"), [(-1, Level.ERROR), (1, Level.WARNING), (400, Level.OK)]
)
def test_an_ended_or_ending_ca_is_a_finding(days_left: int, level: Level) -> None:
    ca = trustme.CA()
    bundle = base64.b64encode(ca.cert_pem.bytes()).decode()
    ends = check_webhooks.end_of(bundle)
    assert ends is not None
    now = ends - timedelta(days=days_left)
    hooks = webhooks(bundle)
    found = check(replace(WELL, now=now, webhooks=hooks))
    assert max(each.level for each in found if each.topic == "webhooks") == level


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


def test_webhooks_without_rules_are_an_error_if_there_is_a_quota() -> None:
    silent = webhooks()
    del silent[0]["webhooks"][0]["rules"]
    (found,) = [each for each in check(replace(WELL, webhooks=silent)) if each.topic == "webhooks"]
    assert found.level == Level.ERROR
    assert "pods.hugetlb.dev has no rules, so the API server does not call" in found.message
    (found,) = [
        each
        for each in check(replace(WELL, webhooks=silent, quotas=()))
        if each.topic == "webhooks"
    ]
    assert found.level == Level.OK
    assert "Without a quota, admission decides about no pod." in found.message
