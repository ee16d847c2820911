"""Run the operator's programs as processes, with the commands of the chart.

Only addresses, ports and files differ. Each program has its ServiceAccount's token and the
capabilities of its container.
"""

from __future__ import annotations

import os
import re
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.kube import chart
from tests.kube.chart import Chart
from tests.kube.control_plane import ControlPlane
from tests.kube.process import Child, free_ports

READY_TIMEOUT = 60.0
"""In seconds; the import of kopf alone takes two seconds on a busy machine."""


class Program:
    """One running program of the operator."""

    def __init__(self, name: str, child: Child, address: str, kubeconfig: Path) -> None:
        self.name = name
        self.identity = ""
        """The controller's identity in the Lease."""
        self.address = address
        """Scheme, host and port of the program's server."""
        self.metrics = f"{address}/metrics"
        """The URL of the metrics."""
        self.kubeconfig = kubeconfig
        """The kubeconfig of the program's ServiceAccount, to test its rights."""
        self.child = child
        # kubelet's probes do not verify the certificate.
        self._tls = ssl._create_unverified_context()

    def is_ready(self) -> bool:
        """Whether GET /readyz returns 200."""
        try:
            answer = urllib.request.urlopen(f"{self.address}/readyz", timeout=5, context=self._tls)
            with answer:
                return int(answer.status) == 200
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Wait for /readyz; ProgramError if the program ends or is not ready in time."""
        self.child.wait_ready(self.is_ready, timeout)

    def stop(self, timeout: float = 15.0) -> int:
        """Send SIGTERM; return the exit status (-9 if it was killed after `timeout` seconds)."""
        return self.child.stop(timeout)

    def kill9(self) -> int:
        """Send SIGKILL, like a crash; return the exit status."""
        return self.child.kill9()

    def start_again(self) -> None:
        """Start the program again with the same port and token; it is not ready yet."""
        self.child = self.child.again()

    def log(self) -> str:
        """Read the output since the last start."""
        return self.child.output()


class Programs:
    """Starts programs of an installed chart and stops all of them at the end.

    `source`: the folder `operator` of another tree, to run the programs of that tree.
    """

    def __init__(
        self, control_plane: ControlPlane, installed: Chart, *, source: Path | None = None
    ) -> None:
        self._control_plane = control_plane
        self._chart = installed
        self._source = {} if source is None else {"PYTHONPATH": str(source)}
        self.running: list[Program] = []

    def start_admission(
        self,
        *,
        port: int | None = None,
        drain_seconds: int | None = 0,
        tls: Path | None = None,
    ) -> Program:
        """Start a replica; it is not ready yet. The caller must point the webhooks at it.

        `drain_seconds`: how long the replica serves after SIGTERM; None for the chart's value.
        `tls`: the folder of tls.crt and tls.key, for a chart that mounts a Secret of its own.
        """
        free = free_ports(2)
        port, health_port = port or free[0], free[1]
        command = self._chart.container("admission").command
        flags: dict[str, str] = {}
        # The previous release may read its certificate and path from files.
        if any(word.startswith("--path-secret=") for word in command):
            flags |= self._files()
        elif tls is not None:
            flags |= {"--tls-cert": str(tls / "tls.crt"), "--tls-key": str(tls / "tls.key")}
        more = {"--port": str(port), "--health-port": str(health_port)}
        if drain_seconds is not None:
            more["--drain-seconds"] = str(drain_seconds)
        # The previous release may lack these flags.
        flags |= {f: v for f, v in more.items() if any(w.startswith(f"{f}=") for w in command)}
        program = self._start("admission", f"https://127.0.0.1:{port}", flags)
        program.metrics = f"http://127.0.0.1:{health_port}/metrics"
        return program

    def _files(self) -> dict[str, str]:
        """Flags and files of the certificate, key and path, for releases that read files."""
        serving = chart.serving(self._control_plane, self._chart)
        assert serving.pair is not None
        content = {
            "--tls-cert": serving.pair.certificate,
            "--tls-key": serving.pair.key,
            "--path-secret": serving.path,
        }
        flags = {}
        for flag, text in content.items():
            file = self._control_plane.directory / f"admission{flag}"
            file.write_text(text)
            flags[flag] = str(file)
        return flags

    def start_controller(
        self, *, identity: str | None = None, webhooks: bool = True, extra: tuple[str, ...] = ()
    ) -> Program:
        """Start a replica; it is not ready yet. `identity`: the name of its pod.

        With `webhooks` False it does not manage the webhooks, and counts all the same.
        """
        if not webhooks:
            extra = (*extra, "--webhooks=")
        port = free_ports(1)[0]
        identity = identity or f"controller-{port}"
        controller = self._start(
            "controller",
            f"http://127.0.0.1:{port}",
            {"--health-port": str(port)},
            pod={"metadata.name": identity},
            extra=extra,
        )
        controller.identity = identity
        return controller

    def start_agent(
        self,
        node: str,
        *,
        cgroup_root: str | None = None,
        host_root: Path = Path("/"),
        extra: tuple[str, ...] = (),
    ) -> Program:
        """Start the agent of an existing Node; the agent is not ready yet.

        `cgroup_root`: the path of the node's subtree, below the cgroup2 mount.
        """
        port = free_ports(1)[0]
        if cgroup_root is not None:
            extra = (f"--cgroup-root={cgroup_root}", *extra)
        return self._start(
            "agent",
            f"http://127.0.0.1:{port}",
            {"--health-port": str(port), "--host-root": str(host_root)},
            pod={"spec.nodeName": node},
            node=node,
            extra=extra,
        )

    def start_uninstall(self) -> Program:
        """Start the program of helm's pre-delete hook."""
        return self._start("uninstall", "", {})

    def stop(self) -> None:
        """Stop all programs, the last started first."""
        while self.running:
            self.running.pop().stop()

    def _bind(self, name: str) -> dict[str, str]:
        return {} if name == "uninstall" else {"--bind": "127.0.0.1"}

    def _start(
        self,
        name: str,
        address: str,
        flags: Mapping[str, str],
        *,
        pod: Mapping[str, str] | None = None,
        node: str | None = None,
        extra: tuple[str, ...] = (),
    ) -> Program:
        container = self._chart.container(name)
        fields = {"metadata.namespace": self._chart.namespace, **(pod or {})}
        variables = {variable: fields[field] for variable, field in container.fields.items()}
        command = rewritten(container.command, {**self._bind(name), **flags}, variables)
        kubeconfig = self._control_plane.service_account_kubeconfig(
            self._chart.namespace, container.service_account, node=node
        )
        directory = self._control_plane.directory
        child = Child(
            f"{name} of {node}" if node else name,
            [*command, *extra],
            self._control_plane.logs / (f"{name}-{node or address.rpartition(':')[2]}.log"),
            {
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(directory),
                "KUBECONFIG": str(kubeconfig),
                "PYTHONUNBUFFERED": "1",
                **self._source,
                **variables,
            },
            capabilities=container.capabilities,
        )
        program = Program(name, child, address, kubeconfig)
        self.running.append(program)
        return program


def rewritten(
    command: tuple[str, ...], flags: Mapping[str, str], variables: Mapping[str, str]
) -> list[str]:
    """Replace `$(NAME)`, the values of `flags`, and "python" by this interpreter.

    Raises LookupError for a flag that the chart's command lacks, so that tests run the shipped
    command.
    """
    filled = [re.sub(r"\$\((\w+)\)", lambda m: variables[m[1]], word) for word in command]
    for flag, value in flags.items():
        places = [i for i, word in enumerate(filled) if word.startswith(f"{flag}=")]
        if len(places) != 1:
            raise LookupError(f"the chart's command has {flag} {len(places)} times: {command}")
        filled[places[0]] = f"{flag}={value}"
    if filled[0] == "python":
        filled[0] = sys.executable
    return filled
