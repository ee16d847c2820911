"""Pods that request more than any node has: the sums exceed 2^63, and no other pod is refused."""

from __future__ import annotations

import pytest

from tests.cluster.test_quota_moves import QUOTAS, make, run
from tests.kube.api import Api, ApiError, Object
from tests.kube.cluster import Cluster
from tests.waiting import eventually

ENORMOUS = "8589934591Gi"
"""The largest amount that Kubernetes accepts: 2^63 bytes less 1Gi."""
TWICE = "17179869182Gi"


@pytest.fixture
def api(cluster: Cluster) -> Api:
    return cluster.control_plane.api


def run_enormous(api: Api, namespace: str, name: str) -> None:
    resources = {"hugepages-1Gi": ENORMOUS, "cpu": "1m", "memory": "1Mi"}
    container = {"name": "main", "image": "none", "resources": {"limits": resources}}
    body: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"containers": [container], "nodeSelector": {"nowhere": "at-all"}},
    }
    api.create("v1/pods", body)


def test_small_pods_are_admitted_and_counted_beside_enormous_pods(
    api: Api, cluster: Cluster, cluster_namespace: str
) -> None:
    namespace = cluster_namespace
    make(api, namespace, "root", "64Mi")
    make(api, namespace, "leaf", "64Mi", parent="root")
    for name in ("a", "b"):
        run_enormous(api, namespace, name)
    run(api, namespace, "small", "64Mi")

    def sums(field: str) -> list[Object]:
        found = api.list(QUOTAS, namespace=namespace)
        return [each.get("status", {}).get(field) for each in found]

    both = {"hugepages-1Gi": TWICE, "hugepages-2Mi": "64Mi"}
    assert sums("used") == [both, both]  # the reservations of admission
    eventually(lambda: sums("pods") == [both, both])
    assert sums("used") == [both, both]
    with pytest.raises(ApiError, match="has no room"):
        run(api, namespace, "one-more", "2Mi")
    # A user can set a limit for that size. Then the limit is in force.
    limit = {"spec": {"hard": {"hugepages-1Gi": "1Gi"}}}
    api.patch(QUOTAS, "root", limit, namespace=namespace)
    with pytest.raises(ApiError, match=f"{TWICE} of 1Gi is used"):
        run_enormous(api, namespace, "c")
    table = cluster.control_plane.kubectl("get", "htq", "-n", namespace).stdout
    assert TWICE in table
    for name in ("a", "b"):
        api.delete("v1/pods", name, namespace=namespace)
    eventually(lambda: all(each["hugepages-2Mi"] == "64Mi" for each in sums("used")))
    eventually(lambda: all(each.get("hugepages-1Gi", "0") == "0" for each in sums("used")))
