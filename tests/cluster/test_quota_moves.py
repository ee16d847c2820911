"""A quota moves to another parent with all that is charged to it, or stays where it is."""

from __future__ import annotations

import pytest

from tests.kube.api import Api, ApiError, Object
from tests.kube.cluster import Cluster
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"


@pytest.fixture
def api(cluster: Cluster) -> Api:
    return cluster.control_plane.api


def make(api: Api, namespace: str, name: str, hard: str, parent: str | None = None) -> None:
    spec: Object = {"hard": {"hugepages-2Mi": hard}}
    if parent is None:
        spec["podSelector"] = {"matchLabels": {"none": "at-all"}}
    else:
        spec["parentRef"] = {"namespace": namespace, "name": parent}
    body = {
        "apiVersion": "hugetlb.dev/v1alpha1",
        "kind": "HugeTLBQuota",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    }
    api.create(QUOTAS, body)


def run(api: Api, namespace: str, name: str, amount: str) -> None:
    resources = {"hugepages-2Mi": amount, "cpu": "1m", "memory": "1Mi"}
    container = {
        "name": "main",
        "image": "none",
        "resources": {"requests": resources, "limits": resources},
    }
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"containers": [container], "nodeSelector": {"nowhere": "at-all"}},
    }
    api.create("v1/pods", body)


def move(api: Api, namespace: str, name: str, parent: str) -> None:
    change = {"spec": {"parentRef": {"namespace": namespace, "name": parent}}}
    api.patch(QUOTAS, name, change, namespace=namespace)


def used(api: Api, namespace: str) -> dict[str, str]:
    return {
        each["metadata"]["name"]: each["status"]["used"]["hugepages-2Mi"]
        for each in api.list(QUOTAS, namespace=namespace)
        if each.get("status", {}).get("used")
    }


def settled(api: Api, namespace: str) -> bool:
    """Whether nothing is reserved; the identity of a pod without a node may stay."""
    return all(
        len(line.split()) == 7
        for each in api.list(QUOTAS, namespace=namespace)
        for line in each.get("status", {}).get("reservations", ["unknown"])
    )


def test_charges_move_with_the_quota_or_it_stays(api: Api, cluster_namespace: str) -> None:
    namespace = cluster_namespace
    make(api, namespace, "old", "128Mi")
    make(api, namespace, "new", "96Mi")
    make(api, namespace, "small", "64Mi")
    make(api, namespace, "team", "64Mi", parent="old")
    run(api, namespace, "a", "64Mi")
    eventually(lambda: settled(api, namespace))
    assert used(api, namespace) == {"old": "64Mi", "new": "0", "small": "0", "team": "64Mi"}

    move(api, namespace, "team", "new")
    # In the new parent from the moment of the change: it was reserved before the answer.
    assert used(api, namespace)["new"] == "64Mi"
    after = {"old": "0", "new": "64Mi", "small": "0", "team": "64Mi"}
    eventually(lambda: used(api, namespace) == after and settled(api, namespace))

    api.patch(QUOTAS, "small", {"spec": {"hard": {"hugepages-2Mi": "64Mi"}}}, namespace=namespace)
    make(api, namespace, "other", "32Mi", parent="small")
    # "other" selects the pod too, so 64Mi are charged to "small" by now.
    eventually(lambda: used(api, namespace).get("small") == "64Mi")
    api.patch(QUOTAS, "small", {"spec": {"hard": {"hugepages-2Mi": "96Mi"}}}, namespace=namespace)
    with pytest.raises(ApiError, match="team can't be moved with what is charged to it"):
        move(api, namespace, "team", "small")
    assert api.get(QUOTAS, "team", namespace=namespace)["spec"]["parentRef"]["name"] == "new"
    assert used(api, namespace)["small"] == "64Mi"
