"""``python -m tests.vm``: make the cluster, run tests/e2e on it, and stop it.

The arguments are pytest's; without arguments the whole suite runs. Environment: NODES (default 1)
is the number of nodes; KEEP=1 keeps the cluster after the suite and prints how to reach it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.vm import network, qemu, root, scenes
from tests.vm.cluster import NodeConfig, VmCluster
from tests.vm.steps import say, step

#: The cgroup names of kind: kubelet's cgroupfs driver, and a root below /kubelet.
OTHER_NAMES = NodeConfig(driver="cgroupfs", cgroup_root="/kubelet")
AGAIN = "reboot or qos or static or sidecars"
"""The scenes that run with OTHER_NAMES, from the reboot on."""
MAY_BE_SKIPPED = (
    "the node has the hugetlb controller",
    "the cluster has one node with huge pages",
    "name no release to upgrade from",
)
"""The allowed reasons of skips; a skip for another reason fails the run."""
WITHOUT_HUGETLB = NodeConfig(kernel="cgroup_disable=hugetlb")


def main() -> int:
    """Return pytest's exit status, or 1 if the cluster can't be made."""
    return scenes.run_in_scratch("hugetlb-quota-vm-", _run)


def _run(scratch: Path) -> int:
    operator = scenes.Operator.built(scratch)
    disk = root.disk(operator.archives())
    emulator = qemu.best()
    network.enter()
    nodes = [NodeConfig() for _ in range(int(os.environ.get("NODES", "1")))]
    with disk.held() as held, VmCluster(held, scratch, nodes, emulator) as cluster:
        plane = cluster.control_plane
        environment = operator.environment(
            kubeconfig=cluster.kubeconfig,
            assets=plane.assets,
            home=plane.directory,
            defaults={"E2E_MAY_SKIP": "|".join(MAY_BE_SKIPPED)},
        )
        status = _scenes(cluster, environment, sys.argv[1:])
        scenes.keep_if_wanted(cluster.machines, plane.assets / "kubectl", cluster.kubeconfig)
    return status


def _scenes(cluster: VmCluster, environment: Mapping[str, str], arguments: list[str]) -> int:
    """Run pytest with `arguments`; without arguments, run all scenes in all configurations."""
    if arguments:
        return scenes.run_pytest(environment, *arguments)
    say("running tests/e2e: systemd names the cgroups")
    status = scenes.run_pytest({**environment, "E2E_LEAVE": "1"}, "tests/e2e", "-k", "not reboot")
    for machine in cluster.machines:
        cluster.configure(machine, OTHER_NAMES)
    say("running the reboot, and scenes after it: cgroupfs names the cgroups, below /kubelet")
    # The order matters: the reboot in test_lifecycle.py switches to the other names.
    files = ("tests/e2e/test_lifecycle.py", "tests/e2e/test_limits.py")
    status = scenes.run_pytest({**environment, "E2E_LEAVE": "1"}, *files, "-k", AGAIN) or status
    with step("booting the first node again, without the hugetlb controller"):
        cluster.replace(cluster.machines[0], WITHOUT_HUGETLB)
    return scenes.run_pytest(environment, "tests/e2e/test_unusable_node.py") or status


if __name__ == "__main__":
    sys.exit(main())
