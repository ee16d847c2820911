"""Everything that ``check`` reads in a cluster where all is well, and parts of it."""

from __future__ import annotations

import base64
from typing import Any

import trustme

from hugetlb_quota.kube.controller_lease import LEASE
from hugetlb_quota.plugin.facts import CRDS, WEBHOOKS, Facts
from hugetlb_quota.plugin.reports import read_report
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
