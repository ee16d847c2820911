"""A test node with the real scheduler, and with the identity and rights of a kubelet."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import preflight
from tests.kernel.conftest import require
from tests.kube.control_plane import ControlPlane
from tests.testnode import volumes
from tests.testnode.hugepages import reserved_pages
from tests.testnode.naming import DRIVERS, Driver, pod_level
from tests.testnode.process import TestNode
from tests.workloads import command

MIB = 1 << 20
PAGE = 2 * MIB
Json = dict[str, Any]


@pytest.fixture(params=DRIVERS)
def running(
    request: pytest.FixtureRequest, control_plane: ControlPlane, unique: Callable[[str], str]
) -> Iterator[TestNode]:
    """A ready node with room for 16 pages, and with the identity of a kubelet."""
    for check in (preflight._root, preflight._cgroup2, preflight._pages):
        require(check())
    driver: Driver = request.param
    name = unique("node")
    kubeconfig = control_plane.user_kubeconfig(f"system:node:{name}", "system:nodes")
    with (
        reserved_pages(PAGE, 16),
        TestNode(
            name, kubeconfig, driver=driver,
            capacity={"hugepages-2Mi": "32Mi"}, labels={"example.com/test": name},
        ) as node,
    ):  # fmt: skip
        yield node
        if request.session.testsfailed:
            print(node.output())
    control_plane.api.delete("v1/nodes", name)


def pod(name: str, namespace: str, node: TestNode, *argv: str, huge: str = "", **spec: Any) -> Json:
    resources = {"hugepages-2Mi": huge, "memory": "16Mi"} if huge else {}
    container = {
        "name": "main",
        "image": "none",
        "command": list(argv),
        "resources": {"requests": resources, "limits": resources},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": {"example.com/test": node.name},
            "containers": [container],
            **spec,
        },
    }


def wait(plane: ControlPlane, made: Json, holds: Callable[[Json | None], bool]) -> Json | None:
    meta = made["metadata"]
    return plane.api.wait_for("v1/pods", meta["name"], holds, namespace=meta["namespace"])


def phase_is(*phases: str) -> Callable[[Json | None], bool]:
    return lambda found: found is not None and found["status"].get("phase") in phases


def wait_running(plane: ControlPlane, node: TestNode, made: Json) -> Path:
    """Wait until the pod runs; return its cgroup."""
    live = wait(plane, made, phase_is("Running"))
    assert live is not None
    level = pod_level(node.driver, live["status"]["qosClass"], live["metadata"]["uid"])
    return node.cgroup_path / level


def test_the_node_registers_like_a_kubelet(running: TestNode, control_plane: ControlPlane) -> None:
    node = control_plane.api.get("v1/nodes", running.name)
    assert node["status"]["allocatable"]["hugepages-2Mi"] == "32Mi"
    assert node["status"]["nodeInfo"]["bootID"] == (
        Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    )
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == running.name
    assert {c["type"]: c["status"] for c in node["status"]["conditions"]}["Ready"] == "True"
    lease = control_plane.api.wait_for(
        "coordination.k8s.io/v1/leases",
        running.name,
        lambda found: found is not None,
        namespace="kube-node-lease",
    )
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == running.name


def test_a_pod_is_scheduled_and_runs_and_its_status_has_the_output(
    running: TestNode, control_plane: ControlPlane, namespace: str
) -> None:
    made = control_plane.api.create(
        "v1/pods", pod("a", namespace, running, *command("map_pages", "8Mi"), huge="8Mi")
    )
    over = wait(control_plane, made, phase_is("Succeeded", "Failed"))
    assert over is not None
    terminated = over["status"]["containerStatuses"][0]["state"]["terminated"]
    assert json.loads(terminated["message"]) == {
        "requested": 8 * MIB, "huge": 8 * MIB, "fallback": 0, "errno": None, "resident": 8 * MIB,
    }  # fmt: skip
    assert terminated["exitCode"] == 0
    assert over["status"]["phase"] == "Succeeded"
    cgroup = running.cgroup_path / pod_level(
        running.driver, over["status"]["qosClass"], over["metadata"]["uid"]
    )
    until(lambda: not cgroup.exists())
    # The node removed the pod of the finished program; the object stays.
    control_plane.api.delete("v1/pods", "a", namespace=namespace)
    wait(control_plane, made, lambda found: found is None)


def test_a_pod_that_does_not_fit_stays_pending(
    running: TestNode, control_plane: ControlPlane, namespace: str
) -> None:
    made = control_plane.api.create("v1/pods", pod("a", namespace, running, "true", huge="64Mi"))
    refused = wait(
        control_plane,
        made,
        lambda found: found is not None and "conditions" in found["status"],
    )
    assert refused is not None
    assert "Insufficient hugepages-2Mi" in refused["status"]["conditions"][0]["message"]


def test_a_deletion_removes_the_cgroup_before_the_object(
    running: TestNode, control_plane: ControlPlane, namespace: str
) -> None:
    # The pod ends slowly, so that a wrong order is visible.
    slow = "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.05; done"
    made = control_plane.api.create(
        "v1/pods",
        pod(
            "a", namespace, running, "sh", "-c", slow, huge="4Mi",
            volumes=[{"name": "huge", "emptyDir": {"medium": "HugePages"}}],
            terminationGracePeriodSeconds=15,
        ),
    )  # fmt: skip
    cgroup = wait_running(control_plane, running, made)
    assert (cgroup / "hugetlb.2MB.max").read_text() == f"{4 * MIB}\n"
    assert volumes.mounts_below(running.state_dir)
    until(lambda: any(traps_term(pid) for pid in pids(cgroup)))
    control_plane.api.delete("v1/pods", "a", namespace=namespace)
    seen_alive: list[Json | None] = []

    def look(found: Json | None) -> bool:
        # Read the object before the cgroup: without the object, there must be no cgroup.
        if cgroup.exists():
            seen_alive.append(found)
        return found is None

    wait(control_plane, made, look)
    assert seen_alive
    assert None not in seen_alive
    assert not volumes.mounts_below(running.state_dir)


def test_the_pods_of_a_killed_node_run_until_it_returns(
    running: TestNode, control_plane: ControlPlane, namespace: str
) -> None:
    made = control_plane.api.create("v1/pods", pod("a", namespace, running, "sleep", "600"))
    cgroup = wait_running(control_plane, running, made)
    before = pids(cgroup)
    running.kill()
    time.sleep(0.2)
    assert pids(cgroup) == before != []
    control_plane.api.delete("v1/pods", "a", namespace=namespace)
    running.start()
    wait(control_plane, made, lambda found: found is None)
    assert not cgroup.exists()
    until(lambda: not any(Path(f"/proc/{pid}/root").exists() for pid in before))


def test_a_forced_deletion_also_ends_the_pod(
    running: TestNode, control_plane: ControlPlane, namespace: str
) -> None:
    made = control_plane.api.create("v1/pods", pod("a", namespace, running, "sleep", "600"))
    cgroup = wait_running(control_plane, running, made)
    control_plane.api.delete("v1/pods", "a", namespace=namespace, grace_seconds=0)
    until(lambda: not cgroup.exists())


@pytest.mark.parametrize("end", ["SIGTERM", "end of stdin"])
def test_a_node_that_ends_leaves_nothing_behind(
    running: TestNode, control_plane: ControlPlane, namespace: str, end: str
) -> None:
    spec = pod(
        "a", namespace, running, "sleep", "600", huge="4Mi",
        volumes=[{"name": "huge", "emptyDir": {"medium": "HugePages"}}],
    )  # fmt: skip
    made = control_plane.api.create("v1/pods", spec)
    wait(control_plane, made, phase_is("Running"))
    before = pids(running.cgroup_path)
    assert before
    process = running._started()
    if end == "SIGTERM":
        process.terminate()
    else:
        assert process.stdin
        process.stdin.close()
    assert process.wait(20) == 0
    assert not running.cgroup_path.exists()
    assert not volumes.mounts_below(running.state_dir)
    assert not any(Path(f"/proc/{pid}/root").exists() for pid in before)


def pids(cgroup: Path) -> list[str]:
    found = [path.read_text().split() for path in sorted(cgroup.rglob("cgroup.procs"))]
    return [pid for some in found for pid in some]


def traps_term(pid: str) -> bool:
    """Whether the process is a shell that handles SIGTERM."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return fields["Name"] == "sh" and bool(int(fields["SigCgt"], 16) >> signal.SIGTERM - 1 & 1)


def until(holds: Callable[[], bool], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not so after {timeout:g} s"
        time.sleep(0.05)
