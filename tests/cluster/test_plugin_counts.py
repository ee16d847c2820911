"""``kubectl hugetlb who`` lists exactly what the controller has counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.cluster.plugin_world import NODES, QUOTAS, SIZE, a_pod
from tests.cluster.test_plugin import hugetlb
from tests.kube.cluster import Cluster
from tests.kube.quotas import quota_object
from tests.waiting import eventually


@pytest.fixture
def bound(cluster: Cluster, unique: Callable[[str], str]) -> Iterator[str]:
    """A Node with a HugeTLBNode; nothing runs there."""
    name, api = unique("reporting"), cluster.control_plane.api
    api.create("v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    yield name
    api.delete("v1/nodes", name)
    api.delete(NODES, name)


def test_who_explains_everything_that_is_counted(
    cluster: Cluster, cluster_namespace: str, bound: str
) -> None:
    api, namespace = cluster.control_plane.api, cluster_namespace
    for name, parent in (("top", None), ("low", {"namespace": namespace, "name": "top"})):
        api.create(QUOTAS, quota(namespace, name, parent))
    eventually(lambda: all(counted(cluster, namespace, name) for name in ("top", "low")))
    pod = api.create("v1/pods", a_pod("living", "8Mi", namespace=namespace, node=bound))
    own = {"uid": pod["metadata"]["uid"], "namespace": namespace, "name": "living"}
    gone = {"uid": f"gone-of-{namespace}", "namespace": namespace, "name": "gone"}
    created = api.create(
        NODES,
        {"apiVersion": "hugetlb.dev/v1alpha1", "kind": "HugeTLBNode", "metadata": {"name": bound}},
    )
    report = {
        "bootID": "boot",
        "podsResourceVersion": created["metadata"]["resourceVersion"],
        "reportedAt": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "pods": [
            {**own, "live": True, "demand": {SIZE: "8Mi"}, "charged": {SIZE: "2Mi"}},
            {**gone, "live": False, "charged": {SIZE: "4Mi"}},
        ],
    }
    api.replace(NODES, created | {"status": report}, subresource="status")

    def is_counted() -> bool:
        used = status(cluster, namespace, "top")
        return (used["pods"], used["retained"], used.get("reservations")) == (
            {SIZE: "8Mi"},
            {SIZE: "4Mi"},
            [],
        )

    eventually(is_counted)
    for name in ("top", "low"):
        done = hugetlb(
            cluster.control_plane.admin_kubeconfig, "who", f"{namespace}/{name}", "-o", "json"
        )
        found = json.loads(done.stdout)
        assert [(each["kind"], each["pod"], each["holds"]) for each in found["holders"]] == [
            ("pod", f"{namespace}/living", {SIZE: "8Mi"}),
            ("retained", f"{namespace}/gone", {SIZE: "4Mi"}),
        ]
        assert all(each["quotas"] == [f"{namespace}/low"] for each in found["holders"])
        assert found["unexplained"] == {}


def quota(namespace: str, name: str, parent: dict[str, str] | None) -> dict[str, Any]:
    """A quota; a quota without a parent selects no pod."""
    spec: dict[str, Any] = {"hard": {SIZE: "64Mi"}}
    if parent is None:
        spec["podSelector"] = {"matchLabels": {"no": "pod"}}
    else:
        spec["parentRef"] = parent
    return quota_object(namespace, name, spec)


def status(cluster: Cluster, namespace: str, name: str) -> Any:
    found = cluster.control_plane.api.get(QUOTAS, name, namespace=namespace)
    return found.get("status") or {}


def counted(cluster: Cluster, namespace: str, name: str) -> bool:
    return bool(status(cluster, namespace, name).get("observedGeneration"))
