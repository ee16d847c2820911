"""A quota moves to another parent with all its charges, or the move is refused."""

from __future__ import annotations

import json

import pytest

from tests.kube.api import Api, ApiError, Object
from tests.kube.cluster import Cluster
from tests.kube.quotas import create_quota, quota_object
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"


@pytest.fixture
def api(cluster: Cluster) -> Api:
    return cluster.control_plane.api


def make(api: Api, namespace: str, name: str, hard: str, parent: str | None = None) -> None:
    create_quota(api, quota(namespace, name, hard, parent))


def quota(namespace: str, name: str, hard: str, parent: str | None = None) -> Object:
    spec: Object = {"hard": {"hugepages-2Mi": hard}}
    if parent is None:
        spec["podSelector"] = {"matchLabels": {"none": "at-all"}}
    else:
        spec["parentRef"] = {"namespace": namespace, "name": parent}
    return quota_object(namespace, name, spec)


def run(api: Api, namespace: str, name: str, amount: str, **labels: str) -> None:
    resources = {"hugepages-2Mi": amount, "cpu": "1m", "memory": "1Mi"}
    container = {
        "name": "main",
        "image": "none",
        "resources": {"requests": resources, "limits": resources},
    }
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
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


def is_counted(api: Api, namespace: str) -> bool:
    """Whether no quota has a reservation; the identity of a pod without a node may stay."""
    return all(
        len(line.split()) == 7
        for each in api.list(QUOTAS, namespace=namespace)
        for line in each.get("status", {}).get("reservations", ["unknown"])
    )


def test_charges_move_with_the_quota_or_the_move_is_refused(
    api: Api, cluster_namespace: str
) -> None:
    namespace = cluster_namespace
    make(api, namespace, "old", "128Mi")
    make(api, namespace, "new", "96Mi")
    make(api, namespace, "small", "64Mi")
    make(api, namespace, "team", "64Mi", parent="old")
    run(api, namespace, "a", "64Mi")
    eventually(lambda: is_counted(api, namespace))
    assert used(api, namespace) == {"old": "64Mi", "new": "0", "small": "0", "team": "64Mi"}

    move(api, namespace, "team", "new")
    # The new parent has the charge at once, because admission reserved it before the change.
    assert used(api, namespace)["new"] == "64Mi"
    after = {"old": "0", "new": "64Mi", "small": "0", "team": "64Mi"}
    eventually(lambda: used(api, namespace) == after and is_counted(api, namespace))

    api.patch(QUOTAS, "small", {"spec": {"hard": {"hugepages-2Mi": "64Mi"}}}, namespace=namespace)
    make(api, namespace, "other", "32Mi", parent="small")
    # "other" selects the pod too, so 64Mi are charged to "small" by now.
    eventually(lambda: used(api, namespace).get("small") == "64Mi")
    api.patch(QUOTAS, "small", {"spec": {"hard": {"hugepages-2Mi": "96Mi"}}}, namespace=namespace)
    with pytest.raises(ApiError, match="team can't be moved with its charge"):
        move(api, namespace, "team", "small")
    assert api.get(QUOTAS, "team", namespace=namespace)["spec"]["parentRef"]["name"] == "new"
    assert used(api, namespace)["small"] == "64Mi"


def test_a_wider_selector_that_exceeds_the_roots_limit_gives_a_warning(
    cluster: Cluster, api: Api, cluster_namespace: str
) -> None:
    namespace = cluster_namespace
    make(api, namespace, "root", "64Mi")
    run(api, namespace, "a", "64Mi")
    run(api, namespace, "b", "64Mi")  # no quota governs these pods
    make(api, namespace, "leaf", "64Mi")
    parent = {"spec": {"parentRef": {"namespace": namespace, "name": "root"}}}
    api.patch(QUOTAS, "leaf", parent, namespace=namespace)
    change = json.dumps({"spec": {"podSelector": None}})
    done = cluster.control_plane.kubectl(
        "patch", "htq", "leaf", f"--namespace={namespace}", "--type=merge", f"--patch={change}"
    )
    assert f"{namespace}/root has room for 64Mi of hugepages-2Mi" in done.stderr
    eventually(lambda: used(api, namespace) == {"root": "128Mi", "leaf": "128Mi"})

    def has_event() -> bool:
        return any(
            each["regarding"]["name"] == "root"
            and "128Mi of hugepages-2Mi is charged" in each["note"]
            for each in api.list("events.k8s.io/v1/events", namespace=namespace)
        )

    eventually(has_event)


def test_refused_pods_make_one_event(cluster: Cluster, api: Api, cluster_namespace: str) -> None:
    namespace = cluster_namespace
    make(api, namespace, "root", "64Mi")
    make(api, namespace, "leaf", "64Mi", parent="root")
    eventually(lambda: used(api, namespace) == {"root": "0", "leaf": "0"})

    def refuse(times: int) -> None:
        for number in range(times):
            with pytest.raises(ApiError, match="has room for 64Mi"):
                run(api, namespace, f"p-{number}", "66Mi")

    def refusals() -> list[tuple[str, int]]:
        events = api.list("events.k8s.io/v1/events", namespace=namespace)
        return sorted(
            (each["regarding"]["name"], each.get("series", {}).get("count", 1))
            for each in events
            if each["reason"] == "PodRefused"
        )

    refuse(5)
    # A period of ten minutes may end at this moment.
    eventually(lambda: sum(count for _, count in refusals()) == 10)
    refuse(5)
    eventually(lambda: sum(count for _, count in refusals()) == 20)
    assert {name for name, _ in refusals()} == {"root", "leaf"}
    assert len(refusals()) <= 4
    described = cluster.control_plane.kubectl("describe", "htq", "leaf", f"--namespace={namespace}")
    assert "PodRefused" in described.stdout
