"""Measure how a program starts in a container: ``python -m benchmarks.start``.

For each start: the wall time and the CPU time until /readyz first answers 200, and the resident
memory at that time. The result is the lowest of several starts of admission, controller (which
leads) and agent, each alone. Needs root and the control plane of the tests.
"""

from __future__ import annotations

import argparse
import os
import time
import uuid
from pathlib import Path

from benchmarks.processes import cpu_seconds
from tests import mount_namespace
from tests.kube import chart
from tests.kube.containers import Containers
from tests.kube.control_plane import ControlPlane

PROGRAMS = ("admission", "controller", "agent")
MIB = 1 << 20


def main() -> None:
    """Print a line for each program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    mount_namespace.enter()
    with ControlPlane() as plane:
        rendered = chart.render(plane.assets / "helm")
        chart.install(plane, rendered)
        for name in PROGRAMS:
            starts = [_start(Containers(plane, rendered), plane, name) for _ in range(times)]
            wall, cpu, memory = (min(values) for values in zip(*starts, strict=True))
            print(f"{name:<10} {wall:5.2f} s  {cpu:5.2f} CPU s  {memory / MIB:6.1f} MiB")


def _start(containers: Containers, plane: ControlPlane, name: str) -> tuple[float, float, int]:
    """Start once; return seconds, CPU seconds and resident bytes."""
    pod, node, extra = f"{name}-{uuid.uuid4().hex[:8]}", None, ""
    if name == "agent":
        node, extra = f"node-{pod}", f"--cgroup-root={pod}"
        plane.api.create(
            "v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}
        )
    started = time.monotonic()
    program = containers.start(name, pod, node=node, extra=extra)
    try:
        program.wait_ready()
        wall = time.monotonic() - started
        return wall, *_taken(program.child.pid)
    finally:
        containers.stop()


def _taken(pid: int) -> tuple[float, int]:
    """CPU seconds and resident bytes of a process, without its children."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return cpu_seconds(pid), resident * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
