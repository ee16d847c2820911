"""The agent removes files of gone pods only if the quota has the policy Truncate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.left_files import leave_file
from tests.kube.api import Api, Object
from tests.kube.cluster import Cluster
from tests.kube.quotas import create_quota, quota_object
from tests.testnode.hugepages import reserved_pages
from tests.testnode.process import TestNode
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
PAGE = 2 << 20
#: An ordinary user.
NOBODY = 65534


@pytest.fixture
def reclaiming(assets: Path) -> Iterator[Cluster]:
    """A cluster with agents that may reclaim files."""
    with Cluster(assets=assets, values={"agent": {"reclaim": True}}) as running:
        yield running


@pytest.fixture
def worker(reclaiming: Cluster, unique: Callable[[str], str]) -> Iterator[TestNode]:
    name = unique("worker")
    kubeconfig = reclaiming.control_plane.user_kubeconfig(f"system:node:{name}", "system:nodes")
    with (
        reserved_pages(PAGE, 12),
        TestNode(name, kubeconfig, capacity={"hugepages-2Mi": "24Mi"}) as node,
    ):
        agent = reclaiming.start_agent(name, cgroup_root=node.cgroup_parent)
        yield node
        agent.stop()


def make_team(api: Api, namespace: str, retained: Object) -> None:
    body = quota_object(
        namespace, "team", {"hard": {"hugepages-2Mi": "16Mi"}, "retained": retained}
    )
    create_quota(api, body)


def test_only_unused_files_under_truncate_are_removed_in_time(
    reclaiming: Cluster, worker: TestNode, hugetlbfs: Path
) -> None:
    api = reclaiming.control_plane.api
    for namespace, retained in (
        ("tidy", {"policy": "Truncate", "after": "2s"}),
        ("keeper", {"policy": "Keep"}),
    ):
        reclaiming.control_plane.create_namespace(namespace)
        make_team(api, namespace, retained)
    leave_file(api, "keeper", worker.name, hugetlbfs / "kept", NOBODY)
    leave_file(api, "tidy", worker.name, hugetlbfs / "held", NOBODY)
    holder = os.open(hugetlbfs / "held", os.O_RDONLY)
    leave_file(api, "tidy", worker.name, hugetlbfs / "left", NOBODY)

    eventually(lambda: {each.name for each in hugetlbfs.iterdir()} == {"kept", "held"})
    eventually(lambda: {each.name for each in hugetlbfs.iterdir()} == {"kept", "held"}, hold=6)
    (event,) = api.list("v1/events", namespace="tidy", fields="reason=Reclaimed")
    assert f"{hugetlbfs}/left on node {worker.name} was truncated and removed" in event["message"]

    os.close(holder)
    eventually(lambda: {each.name for each in hugetlbfs.iterdir()} == {"kept"})
    eventually(lambda: not api.get(QUOTAS, "team", namespace="tidy")["status"]["retained"])
    assert api.get(QUOTAS, "team", namespace="keeper")["status"]["retained"]
