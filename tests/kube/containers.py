"""Run the operator's programs as containers, to test all settings of the chart's containers.

Command, user, capabilities, volumes and environment are the chart's, except for ports and the
test's own arguments. The root file system is read-only. The API server's address and the token
are where kubelet puts them, and there is no kubeconfig.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.kube.chart import Chart, Container
from tests.kube.container import Mount, Specification
from tests.kube.control_plane import ControlPlane
from tests.kube.endpoints import Endpoint
from tests.kube.process import Child, free_ports
from tests.kube.programs import Program, rewritten
from tests.kube.service_accounts import create_token

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
PORTS = {"admission": "--port", "controller": "--health-port", "agent": "--health-port"}
OTHER_FLAGS = {"admission": {"--drain-seconds": "0"}}


class Containers:
    """Starts programs of an installed chart and stops all of them at the end. Needs root."""

    def __init__(self, control_plane: ControlPlane, chart: Chart) -> None:
        self._control_plane = control_plane
        self.chart = chart
        self.running: list[Program] = []

    def start(
        self, name: str, pod: str, *, node: str | None = None, cgroup: str = "", extra: str = ""
    ) -> Program:
        """Start "admission", "controller" or "agent" as the pod `pod`; it is not ready yet.

        `cgroup`: the directory of the container's cgroup; "" for the test's own cgroup.
        `extra`: one more argument.
        """
        plane = self._control_plane
        container = self.chart.container(name)
        (port,) = free_ports(1, plane.address)
        fields = {
            "metadata.namespace": self.chart.namespace,
            "metadata.name": pod,
            "spec.nodeName": node or "",
        }
        variables = {variable: fields[field] for variable, field in container.fields.items()}
        flags = {PORTS[name]: str(port), **OTHER_FLAGS.get(name, {})}
        command = rewritten(container.command, flags, variables)
        directory = plane.directory / f"container-{pod}"
        root = directory / "root"
        root.mkdir(parents=True)
        specification = Specification(
            root=str(root),
            command=[*command, extra] if extra else command,
            environment=self._environment(pod, variables),
            user=container.user,
            group=container.group,
            capabilities=sorted(container.capabilities),
            mounts=[self._token(container, directory, node), *self._volumes(container, directory)],
            cgroup=cgroup,
        )
        child = Child(
            f"container {pod}",
            specification.wrapped(),
            plane.logs / f"container-{pod}.log",
            {"PATH": os.environ.get("PATH", "")},
        )
        scheme = "https" if name == "admission" else "http"
        kubeconfig = plane.service_account_kubeconfig(
            self.chart.namespace, container.service_account, node=node
        )
        program = Program(name, child, Endpoint(scheme, plane.address, port).url, kubeconfig)
        program.identity = pod
        self.running.append(program)
        return program

    def stop(self) -> None:
        """Stop all programs, the last started first."""
        while self.running:
            self.running.pop().stop()

    def _environment(self, pod: str, variables: Mapping[str, str]) -> dict[str, str]:
        """The variables of the image, of kubelet and of the chart; no HOME, no USER."""
        host, _, port = self._control_plane.server.removeprefix("https://").rpartition(":")
        return {
            "PATH": f"{Path(sys.prefix, 'bin')}:/usr/bin:/bin",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOSTNAME": pod,
            "KUBERNETES_SERVICE_HOST": host.strip("[]"),
            "KUBERNETES_SERVICE_PORT": port,
            **variables,
        }

    def _token(self, container: Container, directory: Path, node: str | None) -> Mount:
        namespace = self.chart.namespace
        api = self._control_plane.api
        token = create_token(api, namespace, container.service_account, node=node)
        content = {
            "token": token.encode(),
            "ca.crt": self._control_plane.ca_file.read_bytes(),
            "namespace": namespace.encode(),
        }
        return Mount(str(_readable(directory / "token", content, container)), TOKEN)

    def _volumes(self, container: Container, directory: Path) -> list[Mount]:
        mounts = []
        for target, volume in container.volumes.items():
            if volume["name"].startswith("reclaim-"):
                # The directory on this machine may be in use by an agent that runs here.
                made = directory / volume["name"]
                made.mkdir()
                source = str(made)
            else:
                source = volume["hostPath"]["path"]
            mounts.append(Mount(source, target, volume["readOnly"]))
        return mounts


def _readable(directory: Path, content: Mapping[str, bytes], container: Container) -> Path:
    """Write files that the container's group may read, as kubelet does with an fsGroup."""
    directory.mkdir()
    for name, data in content.items():
        file = directory / name
        file.write_bytes(data)
        os.chown(file, 0, container.group)
        file.chmod(0o440)
    return directory
