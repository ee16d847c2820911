"""The operator's programs as processes, started from the commands the chart ships.

Only addresses, ports and files change. Each has its own ServiceAccount's token, and the
capabilities its container would have.
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
"""Seconds; importing kopf alone takes two on a busy machine."""


class Program:
    """One running program of the operator."""

    def __init__(self, name: str, child: Child, address: str, kubeconfig: Path) -> None:
        self.name = name
        self.identity = ""
        """A controller's, in the Lease."""
        self.address = address
        """Scheme, host and port that it serves."""
        self.metrics = f"{address}/metrics"
        """Where Prometheus reads its metrics."""
        self.kubeconfig = kubeconfig
        """Its ServiceAccount's, to try what it may do."""
        self.child = child
        # As kubelet asks: it checks no certificate.
        self._tls = ssl._create_unverified_context()

    def is_ready(self) -> bool:
        """Whether GET /readyz is answered with 200."""
        try:
            answer = urllib.request.urlopen(f"{self.address}/readyz", timeout=5, context=self._tls)
            with answer:
                return int(answer.status) == 200
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Wait for /readyz; ProgramError with the end of its log when it ends or stays unready."""
        self.child.wait_ready(self.is_ready, timeout)

    def stop(self, timeout: float = 15.0) -> int:
        """SIGTERM; the exit status (-9 when it had to be killed after `timeout` seconds)."""
        return self.child.stop(timeout)

    def kill9(self) -> int:
        """SIGKILL, as a crash; the exit status."""
        return self.child.kill9()

    def start_again(self) -> None:
        """Start it anew on the same port, with the same token; not yet ready."""
        self.child = self.child.again()

    def log(self) -> str:
        """Read what it has written since its start."""
        return self.child.output()


class Programs:
    """Starts programs of one installed chart, and stops them all at the end.

    `source`: another tree's folder `operator`, whose programs these are.
    """

    def __init__(
        self, control_plane: ControlPlane, installed: Chart, *, source: Path | None = None
    ) -> None:
        self._control_plane = control_plane
        self._chart = installed
        self._source = {} if source is None else {"PYTHONPATH": str(source)}
        self.running: list[Program] = []

    def start_admission(self, *, port: int | None = None, drain_seconds: int | None = 0) -> Program:
        """Start one replica; not yet ready. The webhooks still have to be pointed at it.

        `drain_seconds`: how long it serves on at its end; None is what the chart says.
        """
        free = free_ports(2)
        port, health_port = port or free[0], free[1]
        command = self._chart.container("admission").command
        flags: dict[str, str] = {}
        # The release before this one may serve from files.
        if any(word.startswith("--path-secret=") for word in command):
            flags |= self._files()
        more = {"--port": str(port), "--health-port": str(health_port)}
        if drain_seconds is not None:
            more["--drain-seconds"] = str(drain_seconds)
        # The release before this one has none of these.
        flags |= {f: v for f, v in more.items() if any(w.startswith(f"{f}=") for w in command)}
        program = self._start("admission", f"https://127.0.0.1:{port}", flags)
        program.metrics = f"http://127.0.0.1:{health_port}/metrics"
        return program

    def _files(self) -> dict[str, str]:
        """What is served with, in files, as releases without the Secret of it take it."""
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
        """Start one replica; not yet ready. `identity` is its pod's name.

        Without `webhooks` it counts though nobody is asked about pods.
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
        """Start the agent of a Node that exists; not yet ready.

        `cgroup_root`: the part of the cgroup2 tree that is this node's, below its mount.
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
        """Start what runs before the release is deleted."""
        return self._start("uninstall", "", {})

    def stop(self) -> None:
        """Stop all, agents last started first."""
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
    """Fill in `$(NAME)`, replace the values of flags that are there, and run this Python.

    A flag that the shipped command lacks is an error: what is tested must be what ships.
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
