"""``python -m tests.kind.vm``: make a cluster with kind in a virtual machine; run tests/e2e on it.

This makes Docker's disk, kind and the node's image without a registry. kubectl, helm and the scenes
run on the host, and use the API server that kind publishes on the machine's address. The arguments
are pytest's. Environment: KEEP=1 keeps the cluster after the suite and prints how to reach it.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kind import disk, node, programs
from tests.kube import build
from tests.vm import network, qemu, scenes
from tests.vm.machine import Machine, variables
from tests.vm.network import Address
from tests.vm.steps import StepFailed, run, say, step

CLUSTER = "e2e"
CONTAINER = f"{CLUSTER}-control-plane"
MEMORY_MIB = 6144
"""Huge pages take 1.5 GiB of the memory, the control plane another 1 GiB."""
DOCKER_TIMEOUT = 300.0
CREATE_TIMEOUT = 1500.0
USABLE_TIMEOUT = 600.0
TRIES = 3
"""How often to try: kind waits only 30 s for the node's systemd, too short on a busy host."""


def main() -> int:
    """Return pytest's exit status, or 1 if the cluster can't be made."""
    return scenes.run_in_scratch("hugetlb-quota-kind-", _run)


def _run(scratch: Path) -> int:
    operator = scenes.Operator.built(scratch)
    machine_disk = disk.disk(programs.built(), operator.archives())
    # kind's own time limits are too short for an emulation in one thread.
    emulator = dataclasses.replace(qemu.best(), threads="multi")
    address = Address(1)
    network.enter()
    network.make([address])
    seed = {
        "env": variables("docker", address),
        "kind.json": json.dumps(configuration(address)).encode(),
    }
    folder = scratch / "docker"
    machine = Machine(
        "docker", address, machine_disk, folder, seed, qemu=emulator, memory_mib=MEMORY_MIB
    )
    try:
        with step("booting a machine with Docker, emulated"):
            deadline = time.monotonic() + DOCKER_TIMEOUT
            machine.wait_until(lambda: _has_docker(machine), "run Docker", deadline)
        kubeconfig = scratch / "kubeconfig"
        _create(machine)
        kubeconfig.write_text(machine.shell(f"kind get kubeconfig --name {CLUSTER}"))
        environment = _environment(scratch, kubeconfig, operator)
        with step("waiting for the API server's schema and for kube-proxy"):
            _wait_usable(environment)
        say("running tests/e2e on kind")
        status = scenes.run_pytest(environment, *(sys.argv[1:] or ["tests/e2e"]))
        kubectl, node_shell = build.assets() / "kubectl", f"docker exec -it {CONTAINER} bash"
        scenes.keep_if_wanted([machine], kubectl, kubeconfig, inside=node_shell)
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


def _has_docker(machine: Machine) -> bool:
    try:
        machine.shell("docker version > /dev/null", timeout=30)
    except StepFailed:
        return False
    return True


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
        log = machine.shell(f"docker logs --tail 40 {CONTAINER} 2>&1 || true")
        # Try again only if kubelet never started: kind did not wait long enough for systemd.
        late = "kubelet" not in machine.shell(f"docker top {CONTAINER} -o comm || true")
        if attempt == TRIES or not late:
            break
        say(f"kind gave up on the node; trying again. The end of the node's log:\n{log}")
        machine.shell(f"kind delete cluster --name {CLUSTER}", timeout=300)
    raise StepFailed(f"kind could not make a cluster. The end of the node's log:\n{log}")


def _wait_usable(environment: Mapping[str, str]) -> None:
    """Wait for the schema, which kubectl needs, and kube-proxy; kind does not wait for these."""
    requests = (
        ("get", "--raw", "/openapi/v2"),
        ("get", "serviceaccount", "default"),
        ("rollout", "status", "daemonset/kube-proxy", "--namespace", "kube-system"),
    )
    deadline = time.monotonic() + USABLE_TIMEOUT
    for request in requests:
        while True:
            try:
                run(["kubectl", *request], env=environment)
            except StepFailed:
                if time.monotonic() > deadline:
                    raise
                time.sleep(2)
            else:
                break


def _environment(scratch: Path, kubeconfig: Path, operator: scenes.Operator) -> dict[str, str]:
    environment = operator.environment(
        kubeconfig=kubeconfig,
        assets=build.assets(),
        home=scratch,
        # Five pod starts at once starve the control plane, which runs on the node.
        defaults={"E2E_PATIENCE": "420", "E2E_AT_ONCE": "2"},
    )
    # kind does not restart a node that shuts down by itself.
    return {**environment, "E2E_NO_REBOOT": "1"}


if __name__ == "__main__":
    sys.exit(main())
