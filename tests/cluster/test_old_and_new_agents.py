"""An agent of the commit before beside the controller of this tree, and the other way round."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.test_old_and_new import Releases, releases
from tests.kernel import charge_reading
from tests.kube.api import Api, Object
from tests.kube.programs import Program
from tests.preflight import _cgroup2, _pages, _reader, _root
from tests.testnode.hugepages import reserved_pages
from tests.testnode.process import TestNode
from tests.tracking import hugetlbfs
from tests.waiting import eventually
from tests.workloads import command

__all__ = ["releases"]  # a fixture
MIB = 1 << 20
QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
NODES = "hugetlb.dev/v1alpha1/hugetlbnodes"


@dataclass(frozen=True)
class World:
    """A node with a hugetlbfs, and a namespace with the quota "q" of 16Mi."""

    releases: Releases
    node: TestNode
    mount: Path
    namespace: str

    @property
    def api(self) -> Api:
        return self.releases.plane.api

    def start_agent(self, release: str) -> Program:
        """Start the node's agent, and wait until it has reported."""
        before = self.reported_at()
        programs = self.releases.programs(release)
        agent = programs.start_agent(self.node.name, cgroup_root=self.node.cgroup_parent)
        # The second agent may find nothing new, and then reports after a minute.
        eventually(lambda: self.reported_at() not in ("", before), timeout=120)
        return agent

    def reported_at(self) -> str:
        found = [
            each for each in self.api.list(NODES) if each["metadata"]["name"] == self.node.name
        ]
        return str(found[0].get("status", {}).get("reportedAt", "")) if found else ""

    def status(self) -> Object:
        found: Object = self.api.get(QUOTAS, "q", namespace=self.namespace).get("status") or {}
        return found

    def retained(self) -> str:
        return str(self.status().get("retained", {}).get("hugepages-2Mi", "0"))

    def run(self, name: str, maps: str) -> None:
        """Run a pod of 8Mi that leaves a file, until the pod has succeeded."""
        limits = {"memory": "64Mi", "cpu": "100m", "hugepages-2Mi": "8Mi"}
        container = {
            "name": "c",
            "image": "none",
            "resources": {"limits": limits},
            "volumeMounts": [{"name": "huge", "mountPath": str(self.mount)}],
            "command": command("map_pages", maps, f"--file={self.mount / name}"),
        }
        spec = {
            "restartPolicy": "Never",
            "nodeName": self.node.name,
            "containers": [container],
            "volumes": [{"name": "huge", "hostPath": {"path": str(self.mount)}}],
        }
        metadata = {"name": name, "namespace": self.namespace}
        body: Object = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self.api.create("v1/pods", body)

        def has_succeeded() -> bool:
            pod = self.api.get("v1/pods", name, namespace=self.namespace)
            return bool(pod.get("status", {}).get("phase") == "Succeeded")

        eventually(has_succeeded)


@pytest.fixture
def world(releases: Releases, tmp_path: Path) -> Iterator[World]:
    for check in (_root, _cgroup2, _pages, _reader):
        if (missing := check()) is not None:
            (pytest.fail if os.environ.get("REQUIRE_LAYERS") == "1" else pytest.skip)(missing)
    plane, unique = releases.plane, uuid.uuid4().hex[:8]
    namespace, name = f"test-{unique}", f"node-{unique}"
    plane.create_namespace(namespace)
    quota = {
        "apiVersion": "hugetlb.dev/v1alpha1",
        "kind": "HugeTLBQuota",
        "metadata": {"name": "q", "namespace": namespace},
        "spec": {"hard": {"hugepages-2Mi": "16Mi"}},
    }
    plane.api.create(QUOTAS, quota)
    capacity = {"hugepages-2Mi": "64Mi"}
    with (
        reserved_pages(2 * MIB, 16),
        hugetlbfs(tmp_path / "huge") as superblock,
        TestNode(name, plane.admin_kubeconfig, capacity=capacity) as node,
    ):
        yield World(releases, node, superblock.path, namespace)
        for programs in (releases.now, releases.before):
            programs.stop()
        for file in superblock.path.iterdir():
            file.unlink()
        plane.api.delete("v1/nodes", name)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("first", "second"), [("before", "now"), ("now", "before")])
def test_retained_pages_stay_charged_when_another_agent_replaces_the_agent(
    world: World, first: str, second: str
) -> None:
    """The controller and the second agent are from one tree, the first agent from the other."""
    charge_reading.build()
    charge_reading.build(world.releases.tree / "operator/hugetlb_quota/node/reader")
    controller = world.releases.programs(second).start_controller(webhooks=False)
    controller.wait_ready()
    agent = world.start_agent(first)
    eventually(lambda: "used" in world.status())
    world.run("one", "4Mi")
    eventually(lambda: world.retained() == "4Mi")

    agent.stop()
    successor = world.start_agent(second)
    eventually(lambda: world.retained() == "4Mi", hold=2)
    world.run("two", "6Mi")
    eventually(lambda: world.retained() == "10Mi")
    (world.mount / "one").unlink()
    eventually(lambda: world.retained() == "6Mi")
    assert world.status()["used"] == {"hugepages-2Mi": "6Mi"}
    for program in (agent, successor, controller):
        program.stop()
        assert "Traceback" not in program.log()
