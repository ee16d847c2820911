"""``python -m tests.vm``: make the cluster, run tests/e2e on it, and stop it.

The arguments are pytest's; without arguments the whole suite runs. Environment: NODES (default 1)
is the number of nodes; KEEP=1 keeps the cluster after the suite and prints how to reach it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from image.build import TREE
from tests.vm import image, network, previous, qemu, root, scenes
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
    operator, before = image.built(), previous.release(scratch)
    disk = root.disk(scenes.archives(operator, before))
    emulator = qemu.best()
    network.enter()
    nodes = [NodeConfig() for _ in range(int(os.environ.get("NODES", "1")))]
    with disk.held() as held, VmCluster(held, scratch, nodes, emulator) as cluster:
        environment = _environment(cluster, operator, before)
        status = _scenes(cluster, environment, sys.argv[1:])
        if os.environ.get("KEEP") == "1":
            _keep(cluster)
    return status


def _environment(
    cluster: VmCluster, operator: image.Image, before: previous.Release | None
) -> dict[str, str]:
    plane = cluster.control_plane
    return {
        # An emulated node needs some seconds of both processors for each pod start.
        "E2E_STARTS": "20",
        "E2E_MAY_SKIP": "|".join(MAY_BE_SKIPPED),
        **scenes.environment(
            operator,
            before,
            kubeconfig=cluster.kubeconfig,
            assets=plane.assets,
            home=plane.directory,
        ),
    }


def _scenes(cluster: VmCluster, environment: Mapping[str, str], arguments: list[str]) -> int:
    """Run pytest with `arguments`; without arguments, run all scenes in all configurations."""
    if arguments:
        return _pytest(environment, *arguments)
    say("running tests/e2e: systemd names the cgroups")
    status = _pytest({**environment, "E2E_LEAVE": "1"}, "tests/e2e", "-k", "not reboot")
    for machine in cluster.machines:
        cluster.configure(machine, OTHER_NAMES)
    say("running the reboot, and scenes after it: cgroupfs names the cgroups, below /kubelet")
    # The order matters: the reboot in test_lifecycle.py switches to the other names.
    files = ("tests/e2e/test_lifecycle.py", "tests/e2e/test_limits.py")
    status = _pytest({**environment, "E2E_LEAVE": "1"}, *files, "-k", AGAIN) or status
    with step("booting the first node again, without the hugetlb controller"):
        cluster.replace(cluster.machines[0], WITHOUT_HUGETLB)
    return _pytest(environment, "tests/e2e/test_unusable_node.py") or status


def _pytest(environment: Mapping[str, str], *arguments: str) -> int:
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=TREE, env=dict(environment)).returncode


def _keep(cluster: VmCluster) -> None:
    enter = f"nsenter --net --target {os.getpid()}"
    kubectl = f"{cluster.control_plane.assets}/kubectl"
    say("The cluster is kept until Ctrl-C. As root, in another terminal:")
    say(f"  {enter} env KUBECONFIG={cluster.kubeconfig} {kubectl} get pods -A")
    for machine in cluster.machines:
        say(f"  {enter} {shlex.join(machine.ssh_command())}   # {machine.name}")
    try:
        while True:
            for machine in cluster.machines:
                machine.check_alive()
            time.sleep(5)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    sys.exit(main())
