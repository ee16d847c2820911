"""A node that can't limit pods: the HugeTLBNode says so, and no program crash-loops."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.e2e import operator
from tests.e2e.host import Host
from tests.e2e.kubectl import apply, delete, wait
from tests.e2e.pods import condition, container, pod, wait_phase

Seen = Callable[[str], None]
CALM = 75.0
"""In seconds. kubelet restarts a program that ends at once after 10, 20 and 40 s."""


@pytest.fixture
def unusable(released: Host) -> Host:
    """The node, if its kernel has no hugetlb controller; otherwise skip."""
    if "hugetlb" in released.run("cat /sys/fs/cgroup/cgroup.controllers").split():
        pytest.skip("the node has the hugetlb controller: cgroup_disable=hugetlb is not set")
    return released


def test_a_node_without_the_hugetlb_controller(unusable: Host, namespace: str, seen: Seen) -> None:
    node = unusable.node

    def reported() -> str:
        status, reason, message = condition(operator.node_report(node), "Ready")
        return f"{reason}: {message}" if status == "False" and "hugetlb" in message else ""

    wait("HugeTLBNode to say that the controller is missing", reported)
    # Replace the agent, so that its restart count begins at 0.
    for each in operator.pods("agent", node):
        delete("pod", each["metadata"]["name"], operator.NAMESPACE)

    def ready() -> bool:
        agents = operator.pods("agent", node)
        return [condition(each, "Ready")[0] for each in agents] == ["True"]

    wait("an agent to be Ready", ready)
    time.sleep(CALM)
    (agent,) = operator.pods("agent", node)
    starts = [each["restartCount"] for each in agent["status"]["containerStatuses"]]
    assert not any(starts), f"the agent's containers restarted: {starts}"
    assert ready()
    message: str = wait("HugeTLBNode to say the same", reported)
    # A pod without huge pages runs as on any other node.
    apply(pod(namespace, "small", container("sleep", "infinity")))
    wait_phase(namespace, "small")
    seen(f"Ready False, {message[:110]}")
    seen(f"the agent is Ready, 0 restarts in {CALM:.0f} s; a pod without huge pages runs")
