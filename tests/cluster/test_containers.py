"""Every program as its container: the chart's user, a read-only root, nothing in the environment.

A program fails here if it needs something that its container lacks: a home, the name of its user, a
folder for temporary files, DNS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.kube import chart
from tests.kube.containers import Containers
from tests.kube.control_plane import ControlPlane
from tests.kube.quotas import quota_object
from tests.waiting import eventually

LEASES = "coordination.k8s.io/v1/leases"
NODES = "hugetlb.dev/v1alpha1/hugetlbnodes"
QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"


@pytest.fixture
def containers(control_plane: ControlPlane, helm: os.PathLike[str]) -> Iterator[Containers]:
    if os.geteuid() != 0:
        pytest.skip("root is needed to make namespaces")
    rendered = chart.render(helm)  # type: ignore[arg-type]
    chart.install(control_plane, rendered)
    started = Containers(control_plane, rendered)
    yield started
    started.stop()


def test_admission_becomes_ready(containers: Containers, unique: Callable[[str], str]) -> None:
    admission = containers.start("admission", unique("admission"))
    admission.wait_ready()
    assert admission.stop() == 0


def test_the_controller_leads_and_handles_a_deletion(
    containers: Containers,
    control_plane: ControlPlane,
    namespace: str,
    unique: Callable[[str], str],
) -> None:
    # There is no webhook configuration for the controller to complete.
    controller = containers.start("controller", unique("controller"), extra="--webhooks=")
    controller.wait_ready()

    def leads() -> bool:
        assert controller.child.exit_status is None, controller.log()
        held = control_plane.api.get(LEASES, "hugetlb-quota-controller", namespace=chart.NAMESPACE)
        return bool(held["spec"]["holderIdentity"] == controller.identity)

    eventually(lambda: "leads" in controller.log() and leads(), timeout=60)
    quota = quota_object(namespace, "q", {"hard": {"hugepages-2Mi": "64Mi"}})
    control_plane.api.create(QUOTAS, quota, namespace=namespace)

    def stored() -> dict[str, object]:
        found = control_plane.api.get(QUOTAS, "q", namespace=namespace)
        assert controller.child.exit_status is None, controller.log()
        return found

    # The work of the recount, and of kopf.
    eventually(lambda: stored().get("status", {}).get("observedGeneration"))  # type: ignore[attr-defined]
    eventually(lambda: stored()["metadata"].get("finalizers"))  # type: ignore[attr-defined]
    control_plane.api.delete(QUOTAS, "q", namespace=namespace)
    eventually(lambda: not control_plane.api.list(QUOTAS, fields=f"metadata.namespace={namespace}"))
    assert controller.stop() == 0


def test_the_agent_reports(
    containers: Containers, control_plane: ControlPlane, node: str, unique: Callable[[str], str]
) -> None:
    # The agent has its own cgroup root, so it sees no nodes of other tests.
    agent = containers.start(
        "agent", unique("agent"), node=node, extra=f"--cgroup-root={unique('none')}"
    )
    agent.wait_ready()
    eventually(lambda: control_plane.api.list(NODES, fields=f"metadata.name={node}"))
    assert agent.stop() == 0
