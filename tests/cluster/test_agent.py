"""The agent on a real API server, with the chart's rights, beside the kubelet of a test node."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.api.node import HugeTLBNode
from tests.kube import chart
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program, Programs
from tests.kube.quotas import quota_object
from tests.preflight import _cgroup2, _pages, _root
from tests.testnode.hugepages import reserved_pages
from tests.testnode.process import TestNode
from tests.waiting import eventually
from tests.workloads import command

MIB = 1 << 20
NODES = "hugetlb.dev/v1alpha1/hugetlbnodes"
QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"


class World:
    """One node with its agent, and a namespace under a quota."""

    def __init__(self, plane: ControlPlane, programs: Programs, node: TestNode) -> None:
        self.api, self.programs, self.node = plane.api, programs, node
        self.namespace = f"team-{uuid.uuid4().hex[:8]}"
        plane.create_namespace(self.namespace)
        quota = quota_object(self.namespace, "q", {"hard": {"hugepages-2Mi": "64Mi"}})
        self.api.create(QUOTAS, quota, namespace=self.namespace)

    def start_agent(self) -> Program:
        """Start the agent, and wait until it sets limits and has reported once."""
        agent = self.programs.start_agent(self.node.name, cgroup_root=self.node.cgroup_parent)
        agent.wait_ready()
        eventually(
            lambda: self.node.name in {each["metadata"]["name"] for each in self.api.list(NODES)}
        )
        return agent

    def report(self) -> Any:
        return HugeTLBNode.model_validate(self.api.get(NODES, self.node.name)).status

    def listed(self) -> list[str]:
        return sorted(pod.name for pod in self.report().pods)

    def run(
        self, name: str, maps: str, request: str, *options: str, annotations: Object | None = None
    ) -> str:
        """Make a pod on the node; return its UID."""
        resources = {"limits": {"hugepages-2Mi": request, "memory": "64Mi", "cpu": "100m"}}
        container = {"name": "c", "image": "none", "resources": resources}
        container |= {"command": command("map_pages", maps, "--map-first", *options)}
        spec = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "nodeName": self.node.name,
            "containers": [container],
        }
        metadata = {"name": name, "namespace": self.namespace, "annotations": annotations or {}}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        uid: str = self.api.create("v1/pods", body, namespace=self.namespace)["metadata"]["uid"]
        return uid

    def pod(self, name: str) -> Object:
        return self.api.get("v1/pods", name, namespace=self.namespace)

    def delete(self, name: str) -> None:
        self.api.delete("v1/pods", name, namespace=self.namespace)

    def cgroup(self, uid: str) -> Path | None:
        found = list(self.node.cgroup_path.rglob(f"*pod{uid.replace('-', '_')}.slice"))
        return found[0] if found else None

    def limits(self, uid: str) -> tuple[int, int] | None:
        """``rsvd.max`` and ``max`` of the pod's cgroup in MiB."""
        cgroup = self.cgroup(uid)
        if cgroup is None:
            return None
        rsvd, faults = (
            (cgroup / f"hugetlb.2MB.{limit}").read_text().strip() for limit in ("rsvd.max", "max")
        )
        return (-1, -1) if "max" in (rsvd, faults) else (int(rsvd) // MIB, int(faults) // MIB)


@pytest.fixture
def world(control_plane: ControlPlane, helm: Path) -> Iterator[World]:
    for check in (_root, _cgroup2, _pages):
        if (missing := check()) is not None:
            (pytest.fail if os.environ.get("REQUIRE_LAYERS") == "1" else pytest.skip)(missing)
    shipped = chart.render(helm)
    chart.install(control_plane, shipped)
    programs = Programs(control_plane, shipped)
    name = f"node-{uuid.uuid4().hex[:8]}"
    with (
        reserved_pages(2 * MIB, 16),
        TestNode(name, control_plane.admin_kubeconfig, capacity={"hugepages-2Mi": "64Mi"}) as node,
    ):
        world = World(control_plane, programs, node)
        try:
            yield world
        finally:
            programs.stop()
            world.api.delete("v1/namespaces", world.namespace)
            world.api.delete("v1/nodes", name)


def test_limits_and_reports_survive_kill_9(world: World) -> None:
    agent = world.start_agent()
    held = world.run("held", "4Mi", "8Mi", "--hold")
    over = world.run("over", "16Mi", "8Mi", "--hold")
    eventually(lambda: [world.limits(uid) for uid in (held, over)] == [(8, 8), (8, 8)])
    eventually(lambda: world.listed() == ["held", "over"])
    eventually(
        lambda: (
            {pod.name: pod.charged for pod in world.report().pods}["held"]
            == {"hugepages-2Mi": "4Mi"}
        )
    )
    for pod in world.report().pods:
        assert (pod.namespace, pod.live) == (world.namespace, True)
    # The second pod mapped more than its limit: mmap failed, and the pod still runs.
    eventually(lambda: world.pod("over")["status"].get("phase") == "Running")
    node = world.api.get("v1/nodes", world.node.name)
    assert world.report().boot_id == node["status"]["nodeInfo"]["bootID"]
    (owner,) = world.api.get(NODES, world.node.name)["metadata"]["ownerReferences"]
    assert owner["uid"] == node["metadata"]["uid"]

    agent.kill9()
    world.delete("held")
    eventually(lambda: world.cgroup(held) is None)
    late = world.run("late", "2Mi", "4Mi", "--hold")
    eventually(lambda: world.cgroup(late) is not None)
    assert world.listed() == ["held", "over"]

    agent = world.start_agent()
    assert world.limits(late) == (4, 4)
    eventually(lambda: world.listed() == ["late", "over"])
    world.delete("over")
    world.delete("late")
    eventually(lambda: world.listed() == [])
    assert agent.stop() == 0


def test_a_pod_that_calls_itself_static_is_limited_and_listed(world: World) -> None:
    world.start_agent()
    forged = {"kubernetes.io/config.source": "file", "kubernetes.io/config.hash": "0123abcd"}
    uid = world.run("forged", "4Mi", "8Mi", "--hold", annotations=forged)
    eventually(lambda: world.limits(uid) == (8, 8))
    eventually(lambda: [pod.charged for pod in world.report().pods] == [{"hugepages-2Mi": "4Mi"}])
    world.node.kill()
    last = int(world.pod("forged")["metadata"]["resourceVersion"])
    world.api.delete("v1/pods", "forged", namespace=world.namespace, grace_seconds=0)
    eventually(lambda: int(world.report().pods_resource_version) > last)
    assert world.listed() == ["forged"]


def test_a_pod_deleted_by_force_is_listed_while_its_cgroup_exists(world: World) -> None:
    world.start_agent()
    uid = world.run("held", "4Mi", "8Mi", "--hold")
    eventually(lambda: world.limits(uid) == (8, 8))
    eventually(lambda: [pod.charged for pod in world.report().pods] == [{"hugepages-2Mi": "4Mi"}])
    # The node's kubelet is dead, so nothing ends the pod's process.
    world.node.kill()
    last = int(world.pod("held")["metadata"]["resourceVersion"])
    world.api.delete("v1/pods", "held", namespace=world.namespace, grace_seconds=0)
    eventually(lambda: int(world.report().pods_resource_version) > last)
    assert world.listed() == ["held"]
    assert world.limits(uid) == (8, 8)
    world.node.stop()
    eventually(lambda: world.listed() == [])
