"""The pages that a pod leaves in a file stay charged until the file is removed."""

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
from tests.kube.quotas import create_quota, quota_object
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
    """A node with its agent, a hugetlbfs, and a namespace with a quota of 16Mi."""

    def __init__(self, cluster: Cluster, namespace: str, node: TestNode, mount: Path) -> None:
        self.cluster, self.api, self.namespace = cluster, cluster.control_plane.api, namespace
        self.node, self.mount = node, mount
        self.agents: list[Program] = []
        quota = quota_object(namespace, "q", {"hard": {"hugepages-2Mi": "16Mi"}})
        create_quota(self.api, quota)

    def start_agent(self) -> Program:
        """Start the agent, and wait until there is a report."""
        name, cgroup_root = self.node.name, self.node.cgroup_parent
        self.agents.append(self.cluster.start_agent(name, cgroup_root=cgroup_root))
        eventually(self.has_reported)
        return self.agents[-1]

    def restart_controller(self) -> None:
        """Restart the controller like a crashed container: it leads at once, under its old name."""
        before = self.cluster.controller
        if before.child.exit_status is None:
            before.kill9()
        self.cluster.controller = self.cluster.programs.start_controller(identity=before.identity)
        self.cluster.controller.wait_ready()

    def quota(self, name: str = "q") -> Any:
        found = self.api.get(QUOTAS, name, namespace=self.namespace)
        return HugeTLBQuota.model_validate(found).status

    def identified(self, name: str) -> list[str]:
        """The nodes in the identities of a quota."""
        return [line.split()[6] for line in self.quota(name).reservations if line.count(" ") == 6]

    def report(self) -> Any:
        return HugeTLBNode.model_validate(self.api.get(NODES, self.node.name)).status

    def has_reported(self) -> bool:
        names = [each["metadata"]["name"] for each in self.api.list(NODES)]
        return self.node.name in names and bool(self.report().boot_id)

    def make_quota(self, name: str) -> None:
        """Make a quota below q that selects the pods with its name as a label."""
        spec = {
            "hard": {"hugepages-2Mi": "16Mi"},
            "parentRef": {"namespace": self.namespace, "name": "q"},
            "podSelector": {"matchLabels": {"quota": name}},
        }
        metadata = {"name": name, "namespace": self.namespace}
        kind = {"apiVersion": "hugetlb.dev/v1alpha1", "kind": "HugeTLBQuota"}
        create_quota(self.api, {**kind, "metadata": metadata, "spec": spec})

    def fill(self, file: str, maps: str) -> list[str]:
        """The command of a pod that fills a file and ends."""
        return command("map_pages", maps, f"--file={self.mount / file}")

    def run(self, name: str, request: str, maps: str) -> None:
        """Run a pod that maps ``maps`` of a file with the pod's name, and ends."""
        self.start(name, request, self.fill(name, maps))

    def move_on(self) -> None:
        """Make the agent report a newer resourceVersion, by a new pod.

        Without a new or ended pod, the agent reports a newer resourceVersion once a minute.
        """
        self.start("passing", "", ["true"])

    def start(self, name: str, request: str, argv: list[str], **labels: str) -> None:
        """Create a pod that runs ``argv`` once; ``request``: its huge pages, or ""."""
        limits = {"memory": "64Mi", "cpu": "100m"} | ({"hugepages-2Mi": request} if request else {})
        volume = {"name": "huge", "hostPath": {"path": str(self.mount)}}
        container = {
            "name": "c",
            "image": "none",
            "resources": {"limits": limits},
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
        """Check the quota's use without a pause."""
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


def test_a_file_stays_charged_through_kill_9_until_it_is_removed(world: World) -> None:
    agent = world.start_agent()
    world.run("leaver", request="12Mi", maps="10Mi")
    eventually(lambda: world.is_over("leaver"))
    eventually(lambda: world.quota().retained == {"hugepages-2Mi": "10Mi"})
    eventually(lambda: world.quota().used == {"hugepages-2Mi": "10Mi"})
    (file,) = (each for each in world.report().files if each.path == "leaver")
    assert (file.mount, file.charged) == (str(world.mount), "10Mi")
    (pod,) = (each for each in world.report().pods if each.uid == file.uid)
    assert (pod.name, pod.live) == ("leaver", False)
    (retained,) = world.quota().retained_files
    assert (retained.pod, retained.charged) == (f"{world.namespace}/leaver", "10Mi")
    with pytest.raises(ApiError) as refused:
        world.run("late", request="8Mi", maps="8Mi")
    assert "10Mi" in refused.value.message

    agent.kill9()
    os.truncate(world.mount / "leaver", 4 * MIB)
    world.start_agent()
    eventually(lambda: world.quota().used == {"hugepages-2Mi": "4Mi"})
    world.run("late", request="8Mi", maps="8Mi")
    (world.mount / "leaver").unlink()
    eventually(lambda: world.is_over("late"))
    eventually(lambda: world.quota().used == {"hugepages-2Mi": "8Mi"})


def test_a_file_is_reported_with_its_volume(world: World) -> None:
    """A file of a hostPath and of an emptyDir, also after the pod's end and a kill -9."""
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

    def reported() -> set[tuple[str, str, bool]]:
        report = world.report()
        live = {pod.uid: pod.live for pod in report.pods if pod.name == "two"}
        files = [each for each in report.files if each.uid in live]
        return {(each.path, each.volume, not live[each.uid]) for each in files}

    eventually(lambda: reported() == {("db/kept", "data", False), ("passing", "scratch", False)})
    world.api.delete("v1/pods", "two", namespace=world.namespace)
    eventually(lambda: reported() == {("db/kept", "data", True)})
    agent.kill9()
    last = world.report().reported_at
    world.start_agent()
    # The new agent reports a pod that the API server no longer has.
    eventually(lambda: world.report().reported_at > last, timeout=90)
    assert reported() == {("db/kept", "data", True)}
    (world.mount / "db/kept").unlink()
    (world.mount / "db").rmdir()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("controller", ["goes on", "is another", "is away too"])
def test_two_pods_that_lived_only_while_the_agent_was_down(world: World, controller: str) -> None:
    """The pods leave files of different sizes under different quotas."""
    agent = world.start_agent()
    for name in "ab":
        world.make_quota(name)
    left = {"a": "4Mi", "b": "6Mi"}
    for name in left:
        eventually(lambda: world.quota(name).used == {"hugepages-2Mi": "0"})  # noqa: B023
    agent.kill9()
    for name, maps in left.items():
        world.start(name, "8Mi", world.fill(name, maps), quota=name)
    for name in left:
        # After the count of a pod, only the identity names the pod that has the UID.
        eventually(lambda: world.identified(name) == [world.node.name])  # noqa: B023
    if controller == "is away too":
        world.cluster.controller.kill9()
    for name in left:
        eventually(lambda: world.is_over(name))  # noqa: B023
        world.delete(name)
    with world.used_never_below("10Mi"):
        if controller == "is another":
            world.restart_controller()
        if controller != "is away too":
            eventually(lambda: world.quota().used == {"hugepages-2Mi": "16Mi"}, hold=1)
        world.start_agent()
        if controller == "is away too":
            world.restart_controller()
        for name, maps in left.items():
            eventually(
                lambda: world.quota(name).used == {"hugepages-2Mi": maps},  # noqa: B023
                timeout=90,
            )
            assert world.quota(name).retained == {"hugepages-2Mi": maps}
        eventually(lambda: world.quota().used == {"hugepages-2Mi": "10Mi"}, hold=1)
    # No agent ever saw the pods in the API. So the lines of the pods name the quotas that pay.
    assert {pod.namespace for pod in world.report().pods} == {""}
    for name in left:
        assert world.identified(name) == [world.node.name]
        (file,) = world.quota(name).retained_files
        assert file.pod == f"{world.namespace}/{name}"
        (world.mount / name).unlink()
    if controller == "is away too":
        # For the new controller, the pods ended at an unknown time before its start.
        world.move_on()
    eventually(lambda: world.quota().used == {"hugepages-2Mi": "0"}, timeout=120)
    for name in left:
        eventually(lambda: world.quota(name).reservations == [])  # noqa: B023


def test_the_files_of_a_relabelled_pod_move_with_the_pod(world: World) -> None:
    """The quota q always governs the pod. While the agent is down, b governs it instead of a."""
    agent = world.start_agent()
    for name in "ab":
        world.make_quota(name)
    # The pod continues when its first file loses all read permissions.
    wait = f"while [ $(stat -c %a {world.mount / 'one'}) != 0 ]; do sleep 0.1; done"
    steps = [shlex.join(world.fill("one", "4Mi")), wait, shlex.join(world.fill("two", "6Mi"))]
    world.start("mover", "10Mi", ["/bin/sh", "-c", "; ".join(steps)], quota="a")
    eventually(lambda: [(f.path, f.charged) for f in world.report().files] == [("one", "4Mi")])
    # The reservation of a pod that was never counted stays until it expires.
    eventually(lambda: world.quota("a").pods == {"hugepages-2Mi": "10Mi"})

    agent.kill9()
    labels = {"metadata": {"labels": {"quota": "b"}}}
    world.api.patch("v1/pods", "mover", labels, namespace=world.namespace)
    with world.used_never_below("10Mi"):
        eventually(lambda: world.quota("b").pods == {"hugepages-2Mi": "10Mi"})
        eventually(lambda: world.quota("a").used == {"hugepages-2Mi": "0"})
        world.start_agent()
        (world.mount / "one").chmod(0)
        eventually(lambda: world.is_over("mover"))
        eventually(lambda: world.quota("b").retained == {"hugepages-2Mi": "10Mi"})
        eventually(lambda: world.quota().used == {"hugepages-2Mi": "10Mi"}, hold=1.0)
    assert world.quota("a").used == {"hugepages-2Mi": "0"}
    (world.mount / "one").unlink()
    for name in ("b", "q"):
        eventually(lambda: world.quota(name).used == {"hugepages-2Mi": "6Mi"})  # noqa: B023
