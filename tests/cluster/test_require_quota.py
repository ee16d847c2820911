"""With admission.requireQuota, pods without a quota get no pages, on a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube.api import Api, ApiError, Object
from tests.kube.cluster import Cluster
from tests.kube.quotas import quota_object
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
WHY = "no HugeTLBQuota of namespace free selects the pod, and this cluster gives huge pages"


@pytest.fixture(scope="module")
def api(assets: Path) -> Iterator[Api]:
    values = {"admission": {"requireQuota": True}}
    with Cluster(assets=assets, values=values) as running:
        running.control_plane.create_namespace("free")
        api = running.control_plane.api
        # Without a quota, no condition shows that the rules are in force.
        eventually(lambda: WHY in _refusal(api), timeout=60)
        yield api


def _refusal(api: Api) -> str:
    try:
        api.create("v1/pods", pod("probe", "2Mi"), dry_run=True)
    except ApiError as error:
        return error.message
    return ""


def template(request: str | None) -> Object:
    resources = {"cpu": "1m", "memory": "16Mi"} | (
        {} if request is None else {"hugepages-2Mi": request}
    )
    container = {"name": "main", "image": "none", "resources": {"limits": resources}}
    return {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [container]}}


def pod(name: str, request: str | None) -> Object:
    made = template(request)
    metadata = made["metadata"] | {"name": name, "namespace": "free"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": made["spec"]}


def test_only_governed_pods_get_pages(api: Api) -> None:
    replica_set = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "a", "namespace": "free"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "a"}},
            "template": template("2Mi"),
        },
    }
    with pytest.raises(ApiError, match=WHY):
        api.create("v1/pods", pod("refused", "2Mi"))
    api.create("v1/pods", pod("small", None))
    api.delete("v1/pods", "small", namespace="free")
    api.create("apps/v1/replicasets", replica_set)

    def is_reported() -> bool:
        conditions = api.get("apps/v1/replicasets", "a", namespace="free")["status"]
        return any(WHY in each["message"] for each in conditions.get("conditions", ()))

    eventually(is_reported)
    quota = quota_object("free", "q", {"hard": {"hugepages-2Mi": "8Mi"}})
    api.create(QUOTAS, quota)
    api.create("v1/pods", pod("governed", "2Mi"))
    used = {"hugepages-2Mi": "4Mi"}
    eventually(lambda: api.get(QUOTAS, "q", namespace="free")["status"]["used"] == used, timeout=90)
