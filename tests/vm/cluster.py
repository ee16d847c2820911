"""A control plane on the host, with nodes in virtual machines."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import yaml

from tests.kube.control_plane import ControlPlane
from tests.kube.endpoints import Endpoint
from tests.vm import network
from tests.vm.machine import Machine, variables
from tests.vm.network import Address
from tests.vm.qemu import Qemu
from tests.vm.root import Disk
from tests.vm.steps import step

NODE_READY_TIMEOUT = 420.0


@dataclass(frozen=True)
class NodeConfig:
    """The cgroup driver and root of kubelet and containerd, and kernel parameters."""

    driver: str = "systemd"
    cgroup_root: str = "/"
    kernel: str = ""
    """More kernel parameters; a reboot does not change these."""


class VmCluster:
    """A context manager in which all nodes are Ready.

    The caller must first enter a new network namespace: `network.enter`.
    """

    def __init__(self, disk: Disk, directory: Path, configs: list[NodeConfig], qemu: Qemu) -> None:
        self._disk = disk
        self._qemu = qemu
        self._directory = directory
        self._configs = configs
        self.machines: list[Machine] = []
        self.control_plane = ControlPlane(node_side_address=network.HOST)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.control_plane.admin_kubeconfig

    def __enter__(self) -> Self:
        addresses = [Address(number + 1) for number in range(len(self._configs))]
        network.make(addresses)
        with step("starting the control plane"):
            self.control_plane.__enter__()
        try:
            with step(f"booting {len(addresses)} node(s), emulated: a minute or so until Ready"):
                for address, config in zip(addresses, self._configs, strict=True):
                    self.machines.append(self._boot(address, config))
                self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the machines, then the control plane."""
        for machine in self.machines:
            machine.stop()
        self.machines.clear()
        self.control_plane.close()

    def configure(self, machine: Machine, config: NodeConfig) -> None:
        """Change a node's configuration; the change takes effect at the next boot."""
        machine.reseed(self._seed(machine.name, machine.address, config))

    def replace(self, machine: Machine, config: NodeConfig) -> None:
        """Replace a machine by a new one with the same name and the original disk; wait for it.

        Raises StepFailed.
        """
        before = self._boot_id(machine.name)
        machine.stop()
        new = self._boot(machine.address, config)
        self.machines[self.machines.index(machine)] = new
        deadline = time.monotonic() + NODE_READY_TIMEOUT
        new.wait_until(lambda: self._boot_id(new.name) != before, "boot again", deadline)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until every node is Ready. Raises StepFailed with the end of the node's logs."""
        deadline = time.monotonic() + NODE_READY_TIMEOUT
        for machine in self.machines:
            machine.wait_until(partial(self._is_ready, machine.name), "be Ready", deadline)

    def _boot(self, address: Address, config: NodeConfig) -> Machine:
        name = f"node-{address.number}"
        seed = self._seed(name, address, config)
        directory = self._directory / name
        return Machine(
            name, address, self._disk, directory, seed, qemu=self._qemu, kernel=config.kernel
        )

    def _seed(self, name: str, address: Address, config: NodeConfig) -> dict[str, bytes]:
        plane = self.control_plane
        certificate, key = plane.certificates.server(f"kubelet-{name}", name, address.ip)
        env = variables(
            name,
            address,
            POD_CIDR=address.pods,
            DRIVER=config.driver,
            CGROUP_ROOT=config.cgroup_root,
        )
        return {
            "env": env,
            "ca.pem": plane.ca_file.read_bytes(),
            "kubelet.pem": certificate.read_bytes(),
            "kubelet.key": key.read_bytes(),
            "kubelet.kubeconfig": self._node_kubeconfig(f"system:node:{name}", "system:nodes"),
            "kube-proxy.kubeconfig": self._node_kubeconfig("system:kube-proxy", None),
        }

    def _node_kubeconfig(self, user: str, group: str | None) -> bytes:
        """Return a kubeconfig with inline certificates and the server's address for nodes."""
        plane = self.control_plane
        config = yaml.safe_load(plane.user_kubeconfig(user, group).read_text())
        cluster, identity = config["clusters"][0]["cluster"], config["users"][0]["user"]
        cluster["server"] = Endpoint("https", network.HOST, plane.endpoints.apiserver.port).url
        _inline(cluster, "certificate-authority")
        _inline(identity, "client-certificate")
        _inline(identity, "client-key")
        text: str = yaml.safe_dump(config)
        return text.encode()

    def _node(self, name: str) -> Any:
        found = self.control_plane.api.list("v1/nodes", fields=f"metadata.name={name}")
        return found[0] if found else None

    def _boot_id(self, name: str) -> str:
        return str(self._node(name)["status"]["nodeInfo"]["bootID"])

    def _is_ready(self, name: str) -> bool:
        node = self._node(name)
        conditions = node["status"].get("conditions", []) if node else []
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _inline(holder: dict[str, str], key: str) -> None:
    path = Path(holder.pop(key))
    holder[f"{key}-data"] = base64.b64encode(path.read_bytes()).decode()
