"""``python -m tests.vm``: make the cluster, run tests/e2e on it, and end it.

Arguments are pytest's. Environment: NODES (1) is the number of node machines; KEEP=1 leaves the
cluster running after the suite and says how to get in.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.kube import build
from tests.vm import image, images, network, root
from tests.vm.cluster import NodeConfig, VmCluster
from tests.vm.steps import StepFailed, say

TREE = Path(__file__).resolve().parents[2]


def main() -> int:
    """Return pytest's status, or 1 when the cluster could not be made."""
    try:
        operator = image.built()
        archives = [images.pause(), images.workload(), operator.archive]
        disk = root.disk(archives)
        network.enter()
        nodes = [NodeConfig() for _ in range(int(os.environ.get("NODES", "1")))]
        with (
            tempfile.TemporaryDirectory(prefix="hugetlb-quota-vm-") as directory,
            VmCluster(disk, Path(directory), nodes) as cluster,
        ):
            status = _suite(cluster, operator.name)
            if os.environ.get("KEEP") == "1":
                _keep(cluster)
        return status
    except (StepFailed, build.AssetsMissingError) as error:
        say(str(error))
        return 1


def _environment(cluster: VmCluster, operator_image: str) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{cluster.control_plane.assets}:{os.environ['PATH']}",
        "KUBECONFIG": str(cluster.kubeconfig),
        "HOME": str(cluster.control_plane.directory),  # nothing of the user's helm and kubectl
        "E2E_IMAGE": operator_image,
        "E2E_WORKLOAD_IMAGE": images.WORKLOAD_IMAGE.removeprefix("docker.io/library/"),
    }


def _suite(cluster: VmCluster, operator_image: str) -> int:
    say("running tests/e2e")
    command = [sys.executable, "-m", "pytest", "-q", *(sys.argv[1:] or ["tests/e2e"])]
    done = subprocess.run(command, cwd=TREE, env=_environment(cluster, operator_image))
    return done.returncode


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
