"""Special clusters: only IPv6, and critical pods that need a ResourceQuota."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kube import chart
from tests.kube.api import ApiError, Object
from tests.kube.containers import Containers
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program
from tests.kube.quotas import quota_object
from tests.waiting import eventually

CRITICAL = ("system-node-critical", "system-cluster-critical")
QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
NODES = "hugetlb.dev/v1alpha1/hugetlbnodes"


@pytest.fixture(scope="module")
def plane(assets: Path) -> Iterator[ControlPlane]:
    """A control plane on ::1 that admits critical pods only with a ResourceQuota for them."""
    with ControlPlane(assets, address="::1", limited_priority_classes=CRITICAL) as running:
        yield running


@pytest.fixture
def containers(plane: ControlPlane, helm: Path) -> Iterator[Containers]:
    if os.geteuid() != 0:
        pytest.skip("root is needed to make namespaces")
    rendered = chart.render(helm)
    chart.install(plane, rendered)
    started = Containers(plane, rendered)
    yield started
    started.stop()


def pod(namespace: str, name: str, *, hugepages: str = "", **spec: object) -> Object:
    limits = {"cpu": "1", "memory": "1Gi"} | ({"hugepages-2Mi": hugepages} if hugepages else {})
    container = {"name": "c", "image": "none", "resources": {"limits": limits}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [container], **spec},
    }


def is_everywhere(program: Program) -> bool:
    """Whether one listening socket serves IPv4 and IPv6, as ss(8) shows."""
    port = program.address.rpartition(":")[2]
    listening = Path("/proc/net/tcp6").read_text().splitlines()
    return any(re.search(rf": 0{{32}}:{int(port):04X} \S+ 0A ", line) for line in listening)


def test_the_operator_works_on_ipv6_alone(
    containers: Containers, plane: ControlPlane, unique: Callable[[str], str]
) -> None:
    node, namespace = unique("node"), unique("ns")
    plane.api.create("v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    plane.create_namespace(namespace)
    admission = containers.start("admission", unique("admission"))
    controller = containers.start("controller", unique("controller"))
    agent = containers.start(
        "agent", unique("agent"), node=node, extra=f"--cgroup-root={unique('none')}"
    )
    for program in (admission, controller, agent):
        program.wait_ready()
        assert program.address.split("//")[1].startswith("[::1]:")
        assert is_everywhere(program)
    # Each rendering has another secret in the webhooks' paths.
    chart.register_webhooks(plane, containers.chart, admission.address)
    quota = quota_object(namespace, "q", {"hard": {"hugepages-2Mi": "64Mi"}})
    plane.api.create(QUOTAS, quota)

    def used() -> str:
        status = plane.api.get(QUOTAS, "q", namespace=namespace).get("status", {})
        return str(status.get("pods", {}).get("hugepages-2Mi"))

    eventually(lambda: plane.api.list(NODES, fields=f"metadata.name={node}"))
    # Admission waits a moment until the controller has counted the quota.
    eventually(lambda: plane.api.get(QUOTAS, "q", namespace=namespace).get("status"))
    plane.api.create("v1/pods", pod(namespace, "fits", hugepages="64Mi"))
    with pytest.raises(ApiError, match=f"HugeTLBQuota {namespace}/q has no room"):
        plane.api.create("v1/pods", pod(namespace, "too-much", hugepages="64Mi"))
    eventually(lambda: used() == "64Mi")


@pytest.mark.parametrize("critical", CRITICAL)
def test_the_charts_resourcequota_admits_critical_pods(
    plane: ControlPlane, helm: Path, critical: str, unique: Callable[[str], str]
) -> None:
    namespace = unique("operator")
    plane.create_namespace(namespace)

    def create() -> None:
        plane.api.create("v1/pods", pod(namespace, "critical", priorityClassName=critical))

    with pytest.raises(ApiError, match="insufficient quota to match these scopes"):
        create()
    rendered = chart.render(
        helm, namespace=namespace, values={"priorityClassQuota": {"create": True}}
    )
    for quota in rendered.of_kind("ResourceQuota"):
        plane.api.apply(quota, manager="helm")

    refused: list[str] = []

    def created() -> bool:
        try:
            create()
        except ApiError as error:
            refused.append(str(error))
            return False
        return True

    eventually(created)
    # Wait until the controller manager has counted the quota.
    assert [why for why in refused if "quota" not in why] == []
