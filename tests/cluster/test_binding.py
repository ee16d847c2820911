"""A trusted binder changes a pod's labels without admission, and the count follows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.test_quota_moves import QUOTAS, run, used
from tests.kube.api import Api, Object
from tests.kube.cluster import Cluster
from tests.kube.quotas import create_quota, quota_object
from tests.waiting import eventually


@pytest.fixture
def api(cluster: Cluster) -> Api:
    return cluster.control_plane.api


def make(api: Api, namespace: str, team: str) -> None:
    spec = {"hard": {"hugepages-2Mi": "64Mi"}, "podSelector": {"matchLabels": {"team": team}}}
    body = quota_object(namespace, team, spec)
    create_quota(api, body)


def within_limits(api: Api, namespace: str, name: str) -> str:
    conditions = api.get(QUOTAS, name, namespace=namespace)["status"]["conditions"]
    return str(next(each["status"] for each in conditions if each["type"] == "WithinLimits"))


def test_a_pod_that_a_binder_moves_is_counted_and_reported(
    api: Api, cluster_namespace: str, unique: Callable[[str], str]
) -> None:
    namespace, node = cluster_namespace, unique("node")
    api.create("v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    for team in ("a", "b"):
        make(api, namespace, team)
        run(api, namespace, f"of-{team}", "64Mi", team=team)
    eventually(lambda: used(api, namespace) == {"a": "64Mi", "b": "64Mi"})
    binding: Object = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": "of-a", "namespace": namespace, "labels": {"team": "b"}},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
    api.create("v1/pods", binding, name="of-a", subresource="binding")
    eventually(lambda: used(api, namespace) == {"a": "0", "b": "128Mi"})
    eventually(lambda: within_limits(api, namespace, "b") == "False")
    api.delete("v1/pods", "of-a", namespace=namespace, grace_seconds=0)
    api.delete("v1/nodes", node)
