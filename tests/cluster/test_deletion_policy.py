"""The policy of a quota decides whether the quota can be deleted while files stay charged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.left_files import leave_file
from tests.kube.api import Api, ApiError, Object
from tests.kube.cluster import Cluster
from tests.kube.quotas import create_quota, quota_object
from tests.testnode.hugepages import reserved_pages
from tests.testnode.process import TestNode
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
NODES = "hugetlb.dev/v1alpha1/hugetlbnodes"
PAGE = 2 << 20
LEFT = {"hugepages-2Mi": "4Mi"}


@pytest.fixture
def worker(cluster: Cluster, unique: Callable[[str], str]) -> Iterator[TestNode]:
    name = unique("worker")
    kubeconfig = cluster.control_plane.user_kubeconfig(f"system:node:{name}", "system:nodes")
    with reserved_pages(PAGE, 4):
        with TestNode(name, kubeconfig, capacity={"hugepages-2Mi": "8Mi"}) as node:
            agent = cluster.start_agent(name, cgroup_root=node.cgroup_parent)
            yield node
            agent.stop()
        cluster.control_plane.api.delete("v1/nodes", name)


class Team:
    """A root quota, a team's quota below it in another namespace, and a file that a pod left."""

    def __init__(self, cluster: Cluster, node: TestNode, hugetlbfs: Path, namespace: str) -> None:
        self.api: Api = cluster.control_plane.api
        self.root, self.namespace = namespace, f"{namespace}-team"
        self.file = hugetlbfs / "left"
        cluster.control_plane.create_namespace(self.namespace, {"team": namespace})
        children = {"childNamespaces": {"matchLabels": {"team": namespace}}}
        self._make(self.root, "root", children)
        self._make(self.namespace, "team", {"parentRef": {"namespace": self.root, "name": "root"}})
        leave_file(self.api, self.namespace, node.name, self.file)
        for where, name in ((self.namespace, "team"), (self.root, "root")):
            # For a moment both the pod and its file are charged: then nothing may be deleted.
            eventually(lambda: self._charged(where, name) == (LEFT, LEFT))  # noqa: B023

    def retained(self, namespace: str, name: str) -> Object:
        return self._charged(namespace, name)[0]

    def _charged(self, namespace: str, name: str) -> tuple[Object, Object]:
        """The retained charge, and the whole use."""
        status = self.api.get(QUOTAS, name, namespace=namespace).get("status") or {}
        return status.get("retained") or {}, status.get("used") or {}

    def exists(self) -> bool:
        return bool(self.api.list(QUOTAS, namespace=self.namespace))

    def delete(self) -> None:
        self.api.delete(QUOTAS, "team", namespace=self.namespace)

    def let_reparent(self) -> None:
        policy = {"spec": {"deletionPolicy": "Reparent"}}
        self.api.patch(QUOTAS, "team", policy, namespace=self.namespace)

    def _make(self, namespace: str, name: str, spec: Object) -> None:
        body = quota_object(namespace, name, {"hard": {"hugepages-2Mi": "8Mi"}, **spec})
        create_quota(self.api, body)


@pytest.fixture
def team(cluster: Cluster, worker: TestNode, hugetlbfs: Path, cluster_namespace: str) -> Team:
    return Team(cluster, worker, hugetlbfs, cluster_namespace)


def test_refuse_names_the_file_until_the_file_is_removed(team: Team) -> None:
    with pytest.raises(ApiError, match=str(team.file)):
        team.delete()
    team.file.unlink()
    eventually(lambda: team.retained(team.namespace, "team") == {})
    team.delete()
    eventually(lambda: not team.exists())


def test_reparent_charges_the_quota_above_at_every_moment(team: Team) -> None:
    team.let_reparent()
    team.delete()

    def gone() -> bool:
        assert team.retained(team.root, "root") == LEFT  # the root is charged at every moment
        return not team.exists()

    eventually(gone)
    eventually(lambda: team.retained(team.root, "root") == LEFT, hold=1.0)
    team.file.unlink()
    eventually(lambda: team.retained(team.root, "root") == {})


def test_a_deleted_namespace_leaves_its_charges_to_the_quota_above(team: Team) -> None:
    team.api.delete("v1/namespaces", team.namespace)
    eventually(lambda: not team.exists(), timeout=60)
    assert team.retained(team.root, "root") == LEFT
