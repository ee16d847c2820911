"""Create HugeTLBQuotas in tests."""

from __future__ import annotations

from tests.kube.api import Api, Object
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"


def create_quota(api: Api, quota: Object) -> None:
    """Create a quota and wait until the quota holds.

    Before the controller's first count, the API server may not ask admission about pods:
    a pod that is created then passes, whatever the limit.
    """
    api.create(QUOTAS, quota)
    name, namespace = quota["metadata"]["name"], quota["metadata"]["namespace"]

    def is_counted() -> bool:
        status = api.get(QUOTAS, name, namespace=namespace).get("status") or {}
        return "observedGeneration" in status

    eventually(is_counted, timeout=60)
