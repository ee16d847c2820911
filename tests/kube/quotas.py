"""Make HugeTLBQuotas in tests."""

from __future__ import annotations

from tests.kube.api import Api, Object
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"


def quota_object(namespace: str, name: str, spec: Object) -> Object:
    """A HugeTLBQuota for the API server."""
    return {
        "apiVersion": "hugetlb.dev/v1alpha1",
        "kind": "HugeTLBQuota",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    }


def create_quota(api: Api, quota: Object) -> None:
    """Create a quota, and wait until it is in force.

    Before the controller's first count, the API server may not call admission for pods. A pod
    that is created then is admitted, whatever the limit.
    """
    api.create(QUOTAS, quota)
    name, namespace = quota["metadata"]["name"], quota["metadata"]["namespace"]

    def is_counted() -> bool:
        status = api.get(QUOTAS, name, namespace=namespace).get("status") or {}
        return "observedGeneration" in status

    eventually(is_counted, timeout=60)
