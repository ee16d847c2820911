"""One quota for the pods of several nodes, if the cluster has several nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.e2e import operator
from tests.e2e.host import Host, nodes_with_pages
from tests.e2e.kubectl import CommandFailed, apply, delete, wait
from tests.e2e.pods import (
    HOSTNAME,
    container,
    pod,
    quota,
    wait_counted,
    wait_log,
    wait_used,
)
from tests.e2e.test_limits import REFUSED, uid_of, wait_limits

Seen = Callable[[str], None]


@pytest.fixture
def hosts(installed: Host) -> Iterator[list[Host]]:
    """Two nodes that have huge pages."""
    names = [each["metadata"]["name"] for each in nodes_with_pages()]
    others = [name for name in names if name != installed.node]
    if not others:
        pytest.skip("the cluster has one node with huge pages: NODES=2 makes two")
    other = Host(others[0])
    other.start()
    yield [installed, other]
    other.stop()


def test_a_quota_over_pods_of_two_nodes(hosts: list[Host], namespace: str, seen: Seen) -> None:
    """Each node limits its pod; the quota counts both pods and refuses a third."""
    apply(quota(namespace, "q", "20Mi"))
    wait_counted(namespace, "q")
    command = ("sh", "-c", "map -x 24; map 8")
    for host in hosts:
        where = {HOSTNAME: host.node}
        main = container(*command, pages="8Mi")
        apply(pod(namespace, host.node, main, nodeSelector=where))
    for host in hosts:
        assert f"mmap 24 MiB: {REFUSED}" in wait_log(namespace, host.node, "touched 8 MiB")
        wait_limits(host, uid_of(namespace, host.node), 8)
    wait_used(namespace, "q", "16Mi")
    with pytest.raises(CommandFailed, match="16Mi of 20Mi is used"):
        apply(pod(namespace, "third", container("sleep", "infinity", pages="8Mi")))
    for host in hosts:
        wait_reported(host.node, uid_of(namespace, host.node))
    delete("pod", hosts[1].node, namespace)
    wait_used(namespace, "q", "8Mi")
    seen(f"8Mi on each of {', '.join(host.node for host in hosts)}; a third pod is refused")
    seen("8Mi when the pod of one node is gone")


def wait_reported(node: str, uid: str) -> None:
    """Wait until the report of a node lists a pod."""

    def reported() -> bool:
        pods = operator.node_report(node).get("status", {}).get("pods", [])
        return uid in {each["uid"] for each in pods}

    wait(f"HugeTLBNode {node} to have pod {uid}", reported)
