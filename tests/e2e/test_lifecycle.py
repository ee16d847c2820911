"""Scenes that remove the operator or reboot the node; these run last."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import operator
from tests.e2e.host import Host
from tests.e2e.kubectl import apply, delete, get, wait
from tests.e2e.pods import (
    condition,
    container,
    pod,
    quota,
    used,
    wait_counted,
    wait_log,
    wait_phase,
    wait_used,
)
from tests.e2e.test_limits import uid_of, wait_limits
from tests.e2e.test_retained import leave

Seen = Callable[[str], None]
OTHER = "pages"
"""Another name for the release."""
REBOOT = 420.0
"""The timeout for a node to boot and to start its pods again, in seconds."""


def holder(namespace: str, name: str = "holder") -> None:
    """Start a pod that uses 8Mi, and wait until the quota is charged."""
    apply(pod(namespace, name, container("map", "8", pages="8Mi")))
    wait_log(namespace, name, "touched 8 MiB")
    wait_used(namespace, "q", "8Mi")


def test_uninstall_and_install_under_another_name_with_a_pod_running(
    installed: Host, namespace: str, seen: Seen
) -> None:
    apply(quota(namespace, "q", "16Mi"))
    wait_counted(namespace, "q")
    holder(namespace)
    uid = uid_of(namespace, "holder")
    operator.uninstall()
    assert get("pod", "holder", namespace)["status"]["phase"] == "Running"
    wait_limits(installed, uid, 8)
    # No program refuses pods now. The next controller counts the new pods.
    apply(pod(namespace, "meanwhile", container("map", "8", pages="16Mi")))
    wait_phase(namespace, "meanwhile")
    operator.install(release=OTHER)
    operator.wait_enforced(installed.node)
    wait_used(namespace, "q", "24Mi")
    found = get("hugetlbquota", "q", namespace)
    assert condition(found, "WithinLimits")[:2] == ("False", "OverLimit")
    delete("pod", "meanwhile", namespace)
    wait_used(namespace, "q", "8Mi")
    operator.uninstall(OTHER)
    operator.install()
    operator.wait_enforced(installed.node)
    seen("limits stay without the operator; a pod made meanwhile is counted: 24Mi of 16Mi")
    seen(f"installed as {OTHER}, and as {operator.RELEASE} again")


def test_upgrade_from_the_commit_before(installed: Host, namespace: str, seen: Seen) -> None:
    chart, image = os.environ.get("E2E_PREVIOUS_CHART"), os.environ.get("E2E_PREVIOUS_IMAGE")
    if not chart or not image:
        pytest.skip("E2E_PREVIOUS_CHART and E2E_PREVIOUS_IMAGE name no release to upgrade from")
    repository, _, tag = image.partition(":")
    older = {"image.repository": repository, "image.tag": tag}
    operator.install(Path(chart), verb="upgrade", **older)
    operator.wait_enforced(installed.node)
    apply(quota(namespace, "q", "16Mi"))
    wait_counted(namespace, "q")
    holder(namespace)
    operator.install(verb="upgrade")
    operator.wait_enforced(installed.node)
    assert used(namespace, "q") == "8Mi"
    wait_limits(installed, uid_of(namespace, "holder"), 8)
    apply(pod(namespace, "after", container("map", "8", pages="8Mi")))
    wait_used(namespace, "q", "16Mi")
    wait_phase(namespace, "after")
    seen(f"from {image}: 8Mi stay charged and limited; the next pod is admitted")


def test_a_reboot_of_the_node(installed: Host, namespace: str, seen: Seen) -> None:
    folder = "/dev/hugepages"
    if "hugetlbfs" not in installed.run(f"stat -f -c %T {folder} 2>/dev/null || true"):
        pytest.skip(f"the node has no hugetlbfs at {folder}")
    if os.environ.get("E2E_NO_REBOOT"):
        pytest.skip("E2E_NO_REBOOT is set: this node must not be rebooted")
    apply(quota(namespace, "q", "32Mi"))
    wait_counted(namespace, "q")
    leave(namespace, folder)
    apply(pod(namespace, "stays", container("map", "8", pages="8Mi")))
    wait_log(namespace, "stays", "touched 8 MiB")
    wait_used(namespace, "q", "16Mi")
    before = boot_id(installed.node)
    installed.later("systemctl reboot")
    wait("the node to boot again", lambda: boot_id(installed.node) != before, patience=REBOOT)
    wait("the node's shell", installed.answers, patience=REBOOT)
    # The reboot removed the file; kubelet restarted the pod, which stays charged.
    wait(
        "the quota to use 8Mi, for the pod alone",
        lambda: used(namespace, "q") == "8Mi",
        patience=REBOOT,
    )
    operator.wait_enforced(installed.node)
    wait_limits(installed, uid_of(namespace, "stays"), 8)
    seen("16Mi before, 8Mi after: the file is gone, the pod runs on and is limited")


def boot_id(node: str) -> str:
    """The boot ID in the Node's status."""
    return str(get("node", node)["status"]["nodeInfo"]["bootID"])
