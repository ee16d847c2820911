"""What a pod leaves in a file counts in its quota until the file goes, on a real API server."""

from __future__ import annotations

import os
import shlex
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota import quantity
from hugetlb_quota.api.node import HugeTLBNode
from hugetlb_quota.api.quota import HugeTLBQuota
from tests.kube.api import ApiError, Object
from tests.kube.cluster import Cluster
from tests.kube.programs import Program
from tests.preflight import _cgroup2, _pages, _root
from tests.testnode.hugepages import reserved_pages
from tests.testnode.process import TestNode
from tests.tracking import hugetlbfs
from tests.waiting import eventually
from tests.workloads import command

MIB = 1 << 20
NODES = "hugetlb.dev/v1alpha1/hugetlbnodes"
QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"


class World:
    """One node with its agent, a hugetlbfs of its host, and a namespace under a quota of 16Mi."""

    def __init__(self, cluster: Cluster, namespace: str, node: TestNode, mount: Path) -> None:
        self.cluster, self.api, self.namespace = cluster, cluster.control_plane.api, namespace
        self.node, self.mount = node, mount
        self.agents: list[Program] = []
        quota = {
            "apiVersion": "hugetlb.dev/v1alpha1",
            "kind": "HugeTLBQuota",
            "metadata": {"name": "q", "namespace": namespace},
            "spec": {"hard": {"hugepages-2Mi": "16Mi"}},
        }
        self.api.create(QUOTAS, quota, namespace=namespace)

    def start_agent(self) -> Program:
        name, cgroup_root = self.node.name, self.node.cgroup_parent
        self.agents.append(self.cluster.start_agent(name, cgroup_root=cgroup_root))
        return self.agents[-1]

    def restart_controller(self) -> None:
        """As a crash of its container: it leads on at once under the same name."""
        before = self.cluster.controller
        before.kill9()
        self.cluster.controller = self.cluster.programs.start_controller(identity=before.identity)
        self.cluster.controller.wait_ready()

    def quota(self, name: str = "q") -> Any:
        found = self.api.get(QUOTAS, name, namespace=self.namespace)
        return HugeTLBQuota.model_validate(found).status

    def report(self) -> Any:
        return HugeTLBNode.model_validate(self.api.get(NODES, self.node.name)).status

    def exact(self) -> Any:
        """The condition Exact of the last report."""
        (found,) = (each for each in self.report().conditions if each.type == "Exact")
        return found

    def has_reported(self) -> bool:
        names = [each["metadata"]["name"] for each in self.api.list(NODES)]
        return self.node.name in names and bool(self.report().boot_id)

    def make_quota(self, name: str) -> None:
        """A quota below q of the pods that have its name as a label."""
        spec = {
            "hard": {"hugepages-2Mi": "16Mi"},
            "parentRef": {"namespace": self.namespace, "name": "q"},
            "podSelector": {"matchLabels": {"quota": name}},
        }
        metadata = {"name": name, "namespace": self.namespace}
        kind = {"apiVersion": "hugetlb.dev/v1alpha1", "kind": "HugeTLBQuota"}
        self.api.create(QUOTAS, {**kind, "metadata": metadata, "spec": spec})

    def fill(self, file: str, maps: str) -> list[str]:
        """The command that does so and ends."""
        return command("map_pages", maps, f"--file={self.mount / file}")

    def run(self, name: str, asks: str, maps: str) -> None:
        """A pod that maps ``maps`` of a file of its name and ends."""
        self.start(name, asks, self.fill(name, maps))

    def start(self, name: str, asks: str, argv: list[str], **labels: str) -> None:
        """A pod that runs ``argv`` once."""
        resources = {"limits": {"hugepages-2Mi": asks, "memory": "64Mi", "cpu": "100m"}}
        volume = {"name": "huge", "hostPath": {"path": str(self.mount)}}
        container = {
            "name": "c",
            "image": "none",
            "resources": resources,
            "volumeMounts": [{"name": "huge", "mountPath": str(self.mount)}],
            "command": argv,
        }
        spec = {
            "restartPolicy": "Never",
            "nodeName": self.node.name,
            "containers": [container],
            "volumes": [volume],
        }
        metadata = {"name": name, "namespace": self.namespace, "labels": labels}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self.api.create("v1/pods", body, namespace=self.namespace)

    def delete(self, name: str) -> None:
        self.api.delete("v1/pods", name, namespace=self.namespace)

    @contextmanager
    def used_never_below(self, least: str) -> Iterator[None]:
        """Looks at the quota's use all the time."""
        seen, over = set[int](), threading.Event()

        def look() -> None:
            while not over.wait(0.02):
                seen.add(quantity.parse(self.quota().used["hugepages-2Mi"]))

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()
        assert seen
        assert min(seen) >= quantity.parse(least)

    def is_over(self, name: str) -> bool:
        pod = self.api.get("v1/pods", name, namespace=self.namespace)
        return bool(pod.get("status", {}).get("phase") == "Succeeded")


@pytest.fixture
def world(cluster: Cluster, cluster_namespace: str, tmp_path: Path) -> Iterator[World]:
    for check in (_root, _cgroup2, _pages):
        if (missing := check()) is not None:
            (pytest.fail if os.environ.get("REQUIRE_LAYERS") == "1" else pytest.skip)(missing)
    kubeconfig = cluster.control_plane.admin_kubeconfig
    name = f"node-{uuid.uuid4().hex[:8]}"
    with (
        reserved_pages(2 * MIB, 8),
        hugetlbfs(tmp_path / "huge") as superblock,
        TestNode(name, kubeconfig, capacity={"hugepages-2Mi": "64Mi"}) as node,
    ):
        world = World(cluster, cluster_namespace, node, superblock.path)
        try:
            yield world
        finally:
            for agent in world.agents:
                agent.stop()
            for file in superblock.path.iterdir():
                file.unlink()
            cluster.control_plane.api.delete("v1/nodes", name)


def test_a_file_stays_charged_until_it_is_removed_through_kill_9(world: World) -> None:
    agent = world.start_agent()
    world.run("leaver", asks="12Mi", maps="10Mi")
    eventually(lambda: world.is_over("leaver"))
    eventually(lambda: world.quota().retained == {"hugepages-2Mi": "10Mi"})
    eventually(lambda: world.quota().used == {"hugepages-2Mi": "10Mi"})
    (file,) = (each for each in world.report().files if each.path == "leaver")
    assert (file.pod, file.charged) == (f"{world.namespace}/leaver", "10Mi")
    assert (file.mount, file.retained) == (str(world.mount), True)
    with pytest.raises(ApiError) as refused:
        world.run("late", asks="8Mi", maps="8Mi")
    assert "10Mi" in refused.value.message

    agent.kill9()
    os.truncate(world.mount / "leaver", 4 * MIB)
    world.start_agent()
    eventually(lambda: world.quota().used == {"hugepages-2Mi": "4Mi"})
    world.run("late", asks="8Mi", maps="8Mi")
    (world.mount / "leaver").unlink()
    eventually(lambda: world.is_over("late"))
    eventually(lambda: world.quota().used == {"hugepages-2Mi": "8Mi"})
    eventually(lambda: world.exact().status == "True")


def test_a_file_is_told_with_its_volume(world: World) -> None:
    """A hostPath's and an emptyDir's, the pod's end and a kill -9 later still."""
    agent = world.start_agent()

    def container(name: str, mount: str, file: str) -> Object:
        return {
            "name": name,
            "image": "none",
            "resources": {"limits": {"hugepages-2Mi": "2Mi", "memory": "64Mi", "cpu": "100m"}},
            "volumeMounts": [{"name": name, "mountPath": mount}],
            "command": command("map_pages", "2Mi", f"--file={mount}/{file}", "--hold"),
        }

    (world.mount / "db").mkdir()
    spec = {
        "nodeName": world.node.name,
        "terminationGracePeriodSeconds": 1,
        "containers": [
            container("data", "/data", "kept"),
            container("scratch", "/scratch", "passing"),
        ],
        "volumes": [
            {"name": "data", "hostPath": {"path": str(world.mount / "db")}},
            {"name": "scratch", "emptyDir": {"medium": "HugePages"}},
        ],
    }
    metadata = {"name": "two", "namespace": world.namespace}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    world.api.create("v1/pods", body, namespace=world.namespace)

    def told() -> set[tuple[str, str, bool]]:
        pod = f"{world.namespace}/two"
        files = [each for each in world.report().files if each.pod == pod]
        return {(each.path, each.volume, each.retained) for each in files}

    eventually(lambda: told() == {("db/kept", "data", False), ("passing", "scratch", False)})
    world.api.delete("v1/pods", "two", namespace=world.namespace)
    eventually(lambda: told() == {("db/kept", "data", True)})
    agent.kill9()
    reported = world.report().reported_at
    world.start_agent()
    # The new one's own report, of a pod that the API server has no more.
    eventually(lambda: world.report().reported_at > reported, timeout=90)
    assert told() == {("db/kept", "data", True)}
    (world.mount / "db/kept").unlink()
    (world.mount / "db").rmdir()


@pytest.mark.parametrize("controller", ["goes on", "is another"])
def test_a_pod_whose_whole_life_fell_in_its_agents_downtime(world: World, controller: str) -> None:
    agent = world.start_agent()
    eventually(world.has_reported)
    agent.kill9()
    world.run("unseen", asks="12Mi", maps="10Mi")
    eventually(lambda: world.is_over("unseen"))
    world.delete("unseen")
    with world.used_never_below("10Mi"):
        # An agent would have told of it by now: the quota does.
        eventually(lambda: [each.pod for each in world.quota().unreported])
        if controller == "is another":
            world.restart_controller()
        eventually(lambda: world.quota().used == {"hugepages-2Mi": "12Mi"}, hold=1)
        world.start_agent()
        eventually(lambda: world.quota().retained == {"hugepages-2Mi": "10Mi"})
        eventually(lambda: world.quota().used == {"hugepages-2Mi": "10Mi"}, hold=1)
    assert world.quota().unreported == []
    (row,) = world.report().retained
    assert row.quotas == [f"{world.namespace}/q"]
    assert world.exact().status == "False"
    assert f"{world.namespace}/unseen" in world.exact().message
    (world.mount / "unseen").unlink()
    eventually(lambda: world.quota().used == {"hugepages-2Mi": "0"})
    eventually(lambda: world.exact().status == "True")


def test_a_relabelled_pods_files_stay_with_the_quota_that_was_charged(world: World) -> None:
    """Under q, which governs it all the time, in a and then in b; the agent is away meanwhile."""
    agent = world.start_agent()
    for name in "ab":
        world.make_quota(name)
    # It goes on when it is told to, by its first file's becoming readable to nobody.
    wait = f"while [ $(stat -c %a {world.mount / 'one'}) != 0 ]; do sleep 0.1; done"
    steps = [shlex.join(world.fill("one", "4Mi")), wait, shlex.join(world.fill("two", "6Mi"))]
    world.start("mover", "10Mi", ["/bin/sh", "-c", "; ".join(steps)], quota="a")
    eventually(lambda: [(f.path, f.charged) for f in world.report().files] == [("one", "4Mi")])
    assert world.quota("a").used == {"hugepages-2Mi": "10Mi"}

    agent.kill9()
    labels = {"metadata": {"labels": {"quota": "b"}}}
    world.api.patch("v1/pods", "mover", labels, namespace=world.namespace)
    eventually(lambda: world.quota("b").pods == {"hugepages-2Mi": "10Mi"})
    # Its node has not told yet what stays with a.
    eventually(lambda: world.quota("a").used == {"hugepages-2Mi": "10Mi"}, hold=1.0, timeout=0.0)
    world.start_agent()
    used = ["10Mi"]

    def is_told() -> bool:
        used.append(world.quota("a").used["hugepages-2Mi"])
        return used[-1] == "4Mi"

    eventually(is_told, hold=1.0, every=0.01)
    assert set(used) <= {"10Mi", "4Mi"}
    a, b, q = (world.quota(name) for name in ("a", "b", "q"))
    assert not world.is_over("mover")
    assert (a.retained, b.retained) == ({"hugepages-2Mi": "4Mi"}, {})
    assert [(file.path, file.pod) for file in a.retained_files] == [
        (str(world.mount / "one"), f"{world.namespace}/mover")
    ]
    assert b.used == {"hugepages-2Mi": "10Mi"}
    # While the pod runs, its demand and its first file; never too little.
    assert q.used == {"hugepages-2Mi": "14Mi"}

    (world.mount / "one").chmod(0)
    eventually(lambda: world.is_over("mover"))
    left = {"a": "4Mi", "b": "6Mi", "q": "10Mi"}
    for name, amount in left.items():
        eventually(lambda: world.quota(name).used == {"hugepages-2Mi": amount})  # noqa: B023
    (world.mount / "one").unlink()
    eventually(lambda: world.quota("a").used == {"hugepages-2Mi": "0"})
    eventually(lambda: world.quota().used == {"hugepages-2Mi": "6Mi"})
    eventually(lambda: world.exact().status == "True")
