"""HugeTLBQuota and ResourceQuota admit the same random pods under flat quotas."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from hugetlb_quota import quantity
from hugetlb_quota.accounting.demand import demand
from tests import seeds
from tests.generated_pods import Json, pod_spec
from tests.kube.api import Api, ApiError
from tests.kube.cluster import Cluster
from tests.waiting import eventually

SIZE = "hugepages-2Mi"
LIMIT = "64Mi"
STEPS = 150
QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"


@pytest.fixture
def namespaces(cluster: Cluster, cluster_namespace: str) -> Iterator[tuple[str, str]]:
    """One namespace with a HugeTLBQuota, and one with a ResourceQuota of the same limit."""
    ours, theirs = cluster_namespace, f"{cluster_namespace}-native"
    cluster.control_plane.create_namespace(theirs)
    api = cluster.control_plane.api
    metadata = {"name": "flat"}
    api.create(
        QUOTAS,
        {
            "apiVersion": "hugetlb.dev/v1alpha1",
            "kind": "HugeTLBQuota",
            "metadata": {**metadata, "namespace": ours},
            "spec": {"hard": {SIZE: LIMIT}},
        },
    )
    api.create(
        "v1/resourcequotas",
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {**metadata, "namespace": theirs},
            "spec": {"hard": {f"requests.{SIZE}": LIMIT}},
        },
    )
    yield ours, theirs
    api.delete("v1/namespaces", theirs)


def test_the_same_pods_are_admitted(cluster: Cluster, namespaces: tuple[str, str]) -> None:
    seed = seeds.seed()
    draw = random.Random(seed)
    api = cluster.control_plane.api
    ours, theirs = namespaces
    eventually(lambda: _used_ours(api, ours) == 0 and _used_theirs(api, theirs) == 0)
    living: list[str] = []
    refused = 0
    for step in range(STEPS):
        if living and draw.random() < 0.35:
            name = living.pop(draw.randrange(len(living)))
            for namespace in namespaces:
                api.delete("v1/pods", name, namespace=namespace, grace_seconds=0)
            # Both quotas count a deletion with a delay. Wait before the next comparison.
            eventually(lambda: _are_counted(api, ours, theirs))
            continue
        name = f"p{step}"
        spec = pod_spec(draw, sizes=(SIZE,))
        admitted = {namespace: _create(api, namespace, name, spec) for namespace in namespaces}
        assert admitted[ours] == admitted[theirs], f"SEED={seed} step {step}: {spec}"
        if admitted[ours]:
            living.append(name)
        else:
            refused += 1
    assert refused >= 10
    eventually(lambda: _used_ours(api, ours) == _used_theirs(api, theirs))


def _create(api: Api, namespace: str, name: str, spec: Json) -> bool:
    # No node has the label, so no pod is bound and a deletion is immediate.
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {**spec, "nodeSelector": {"nowhere": "at-all"}},
    }
    try:
        api.create("v1/pods", body)
    except ApiError as error:
        if not any(words in error.message for words in ("exceeded quota", "is missing")):
            raise
        return False
    return True


def _are_counted(api: Api, ours: str, theirs: str) -> bool:
    really = sum(sum(demand(pod["spec"]).values()) for pod in api.list("v1/pods", namespace=ours))
    return _used_ours(api, ours) == really == _used_theirs(api, theirs)


def _used_ours(api: Api, namespace: str) -> int | None:
    status = api.get(QUOTAS, "flat", namespace=namespace).get("status") or {}
    return _bytes((status.get("used") or {}).get(SIZE))


def _used_theirs(api: Api, namespace: str) -> int | None:
    status = api.get("v1/resourcequotas", "flat", namespace=namespace).get("status") or {}
    return _bytes((status.get("used") or {}).get(f"requests.{SIZE}"))


def _bytes(amount: str | None) -> int | None:
    return None if amount is None else quantity.parse(amount)
