"""A control plane with the operator installed from its chart, for tests and the demo."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.kube import chart as charts
from tests.kube.build import Progress
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program, Programs


class Cluster:
    """A context manager in which admission and controller run; `start_agent` starts an agent.

    `values`: the values of the chart. `control_plane`: an existing control plane, which stays
    running at the end.
    """

    control_plane: ControlPlane
    chart: charts.Chart
    programs: Programs
    admission: Program
    controller: Program

    def __init__(
        self,
        *,
        values: Mapping[str, Any] | None = None,
        control_plane: ControlPlane | None = None,
        assets: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._values = values
        self._progress = progress
        self._owns_control_plane = control_plane is None
        self.control_plane = control_plane or ControlPlane(assets, progress=progress)

    def __enter__(self) -> Self:
        if self._owns_control_plane:
            self.control_plane.__enter__()
        try:
            self._install()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the programs, and the control plane unless the caller passed it."""
        if hasattr(self, "programs"):
            self.programs.stop()
        if self._owns_control_plane:
            self.control_plane.close()

    def start_agent(
        self, node: str, *, cgroup_root: str | None = None, host_root: Path = Path("/")
    ) -> Program:
        """Start the agent of an existing Node, and wait until the agent is ready."""
        agent = self.programs.start_agent(node, cgroup_root=cgroup_root, host_root=host_root)
        agent.wait_ready()
        self._say(f"agent of {node} is ready")
        return agent

    def _install(self) -> None:
        started = time.monotonic()
        plane = self.control_plane
        self._say("installing the chart")
        self.chart = charts.render(plane.assets / "helm", values=self._values)
        charts.install(plane, self.chart, certificates=False)
        self.programs = Programs(plane, self.chart)
        self._say("starting admission and controller")
        self.admission = self.programs.start_admission()
        charts.register_webhooks(plane, self.chart, self.admission.address, complete=False)
        # Admission waits for the certificate that the leading controller makes.
        self.controller = self.programs.start_controller()
        self.admission.wait_ready()
        self.controller.wait_ready()
        self._say(f"the operator is up after {time.monotonic() - started:.1f} s")

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress(text)
