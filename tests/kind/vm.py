"""``python -m tests.kind.vm``: make a cluster with kind in a virtual machine; run tests/e2e on it.

This makes Docker's disk, kind and the node's image without a registry. kubectl, helm and the scenes
run on the host, and use the API server that kind publishes on the machine's address. The arguments
are pytest's. Environment: KEEP=1 keeps the cluster after the suite and prints how to reach it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from image.build import TREE
from tests.kind import disk, node, programs
from tests.kube import build
from tests.vm import image, network, previous, qemu, scenes
from tests.vm.machine import Machine
from tests.vm.network import Address
from tests.vm.steps import StepFailed, run, say, step

CLUSTER = "e2e"
CONTAINER = f"{CLUSTER}-control-plane"
MEMORY_MIB = 6144
"""Huge pages take 1.5 GiB of the memory, the control plane another 1 GiB."""
DOCKER_TIMEOUT = 300.0
CREATE_TIMEOUT = 1500.0
SETTLE_TIMEOUT = 600.0
TRIES = 3
"""How often to try: kind waits only 30 s for the node's systemd, too short on a busy host."""


def main() -> int:
    """Return pytest's exit status, or 1 if the cluster can't be made."""
    return scenes.run_in_scratch("hugetlb-quota-kind-", _run)


def _run(scratch: Path) -> int:
    operator, before = image.built(), previous.release(scratch)
    machine_disk = disk.disk(programs.built(), scenes.archives(operator, before))
    # kind's own time limits are too short for an emulation in one thread.
    emulator = dataclasses.replace(qemu.best(), threads="multi")
    address = Address(1)
    network.enter()
    network.make([address])
    seed = {
        "env": f"NAME=docker\nADDRESS={address.ip}\nGATEWAY={network.HOST}\n".encode(),
        "kind.json": json.dumps(configuration(address)).encode(),
    }
    folder = scratch / "docker"
    machine = Machine(
        "docker", address, machine_disk, folder, seed, qemu=emulator, memory_mib=MEMORY_MIB
    )
    try:
        with step("booting a machine with Docker, emulated"):
            _wait_docker(machine)
        kubeconfig = scratch / "kubeconfig"
        _create(machine)
        kubeconfig.write_text(machine.shell(f"kind get kubeconfig --name {CLUSTER}"))
        environment = _environment(scratch, kubeconfig, operator, before)
        with step("waiting until the API server and kube-proxy have settled"):
            _settle(environment)
        say("running tests/e2e on kind")
        command = [sys.executable, "-m", "pytest", "-q", *(sys.argv[1:] or ["tests/e2e"])]
        status = subprocess.run(command, cwd=TREE, env=environment).returncode
        if os.environ.get("KEEP") == "1":
            _keep(machine, kubeconfig)
    finally:
        machine.stop()
    return status


def configuration(address: Address) -> dict[str, Any]:
    """Return kind's configuration: one node, its API server published on the machine's address."""
    no_election = [{"name": "leader-elect", "value": "false"}]
    # Processor time is scarce, memory is not.
    rarely = [{"name": "GOGC", "value": "400"}]
    patches = [
        {
            "kind": "InitConfiguration",
            # The cluster has no DNS server, and no program needs one.
            "skipPhases": ["preflight", "addon/coredns"],
            "timeouts": {
                "controlPlaneComponentHealthCheck": "15m0s",
                "kubernetesAPICall": "5m0s",
                "kubeletHealthCheck": "10m0s",
                "etcdAPICall": "5m0s",
            },
        },
        {
            "kind": "ClusterConfiguration",
            # RSA keys and leases are slow on an emulated processor.
            "encryptionAlgorithm": "ECDSA-P256",
            "etcd": {
                "local": {
                    "extraArgs": [{"name": "unsafe-no-fsync", "value": "true"}],
                    "extraEnvs": rarely,
                }
            },
            "apiServer": {"extraEnvs": rarely},
            "controllerManager": {"extraArgs": no_election, "extraEnvs": rarely},
            "scheduler": {"extraArgs": no_election, "extraEnvs": rarely},
        },
    ]
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "networking": {
            # The node's image configures Debian's CNI plugins.
            "disableDefaultCNI": True,
            "kubeProxyMode": "nftables",
            "apiServerAddress": address.ip,
            "apiServerPort": 6443,
        },
        "nodes": [
            {
                "role": "control-plane",
                "image": node.name(),
                "extraMounts": [{"hostPath": disk.STORE, "containerPath": "/var/lib/containerd"}],
                "kubeadmConfigPatches": [json.dumps(patch) for patch in patches],
            }
        ],
    }


def _wait_docker(machine: Machine) -> None:
    deadline = time.monotonic() + DOCKER_TIMEOUT
    while True:
        machine.check_alive()
        try:
            machine.shell("docker version > /dev/null", timeout=30)
        except StepFailed as error:
            if time.monotonic() > deadline:
                raise StepFailed(f"{error}\n{machine.diagnose()}") from error
            time.sleep(1)
        else:
            return


def _create(machine: Machine) -> None:
    """Run `kind create cluster` with its output on the terminal. Raises StepFailed."""
    options = "--config /run/node/kind.json --wait 10m --retain"
    create = f"kind create cluster --name {CLUSTER} {options}"
    for attempt in range(1, TRIES + 1):
        with step(f"`{create}`, in the machine: five minutes or so"):
            done = subprocess.run(
                [*machine.ssh_command(), create], timeout=CREATE_TIMEOUT, stdin=subprocess.DEVNULL
            )
        if done.returncode == 0:
            return
        said = machine.shell(f"docker logs --tail 40 {CONTAINER} 2>&1 || true")
        # Try again only if kubelet never started: kind did not wait long enough for systemd.
        late = "kubelet" not in machine.shell(f"docker top {CONTAINER} -o comm || true")
        if attempt == TRIES or not late:
            break
        say(f"kind gave up on the node; trying again. The node's last words:\n{said}")
        machine.shell(f"kind delete cluster --name {CLUSTER}", timeout=300)
    raise StepFailed(f"kind could not make a cluster; its node's last words:\n{said}")


def _settle(environment: Mapping[str, str]) -> None:
    """Wait for the schema, which kubectl needs, and kube-proxy; kind does not wait for these."""
    questions = (
        ("get", "--raw", "/openapi/v2"),
        ("get", "serviceaccount", "default"),
        ("rollout", "status", "daemonset/kube-proxy", "--namespace", "kube-system"),
    )
    deadline = time.monotonic() + SETTLE_TIMEOUT
    for question in questions:
        while True:
            try:
                run(["kubectl", *question], env=environment)
            except StepFailed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(2)
            else:
                break


def _environment(
    scratch: Path, kubeconfig: Path, operator: image.Image, before: previous.Release | None
) -> dict[str, str]:
    return {
        "E2E_PATIENCE": "420",
        # A hundred starts would take half an hour, and five at once starve the control plane.
        "E2E_STARTS": "20",
        "E2E_AT_ONCE": "2",
        **scenes.environment(
            operator, before, kubeconfig=kubeconfig, assets=build.assets(), home=scratch
        ),
        # kind does not restart a node that shuts down by itself.
        "E2E_NO_REBOOT": "1",
    }


def _keep(machine: Machine, kubeconfig: Path) -> None:
    enter = f"nsenter --net --target {os.getpid()}"
    shell = shlex.join(machine.ssh_command())
    say("The cluster is kept until Ctrl-C. As root, in another terminal:")
    say(f"  {enter} env KUBECONFIG={kubeconfig} {build.assets()}/kubectl get pods -A")
    say(f"  {enter} {shell}   # the machine")
    say(f"  {enter} {shell} -t docker exec -it {CONTAINER} bash   # kind's node")
    try:
        while True:
            machine.check_alive()
            time.sleep(5)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    sys.exit(main())
