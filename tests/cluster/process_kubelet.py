"""Runs the pods of the operator's Deployments as processes, for real rollouts.

The Deployment controller and the scheduler of the control plane decide which pods exist. This
module starts the program of each pod, reports the pod as Ready, and ends the program after the
deletion of the pod.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from tests.chaos.faults import port_of
from tests.chaos.forwarder import Forwarder
from tests.kube import chart as charts
from tests.kube.api import Object, Objects
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program, Programs

NODE = "processes"
READY_TIMEOUT = 240.0
"""In seconds; several programs start at the same time, on a machine that does other work."""
HEARTBEAT = 20.0
"""In seconds."""
COMPONENT = "app.kubernetes.io/component"


class ProcessKubelet:
    """A node that runs the pods of admission and controller as processes.

    `releases`: starters of the programs, by the tag of the pod's image.
    `forwarder`: acts as admission's Service, with the replicas that are Ready.
    """

    def __init__(
        self, plane: ControlPlane, releases: Mapping[str, Programs], forwarder: Forwarder
    ) -> None:
        self._plane = plane
        self._releases = releases
        self._forwarder = forwarder
        self._deleted: dict[str, asyncio.Event] = {}
        self._ready: Counter[str] = Counter()
        self.fewest: dict[str, int] = {}
        """The fewest Ready replicas after the deletion of a replica, by component."""
        self.most: Counter[str] = Counter()
        """The most pods at the same time, without deleted pods, by component."""
        self.ended: dict[str, int] = {}
        """The exit status of each ended program, by pod."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Make the node, and run its pods inside the context; the programs run on afterwards."""
        await asyncio.to_thread(self._make_node)
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def pods(self) -> Objects:
        """List the pods of the node."""
        return self._plane.api.list(
            "v1/pods", namespace=charts.NAMESPACE, fields=f"spec.nodeName={NODE}"
        )

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            while True:
                pods = await asyncio.to_thread(self.pods)
                there: Counter[str] = Counter()
                for pod in pods:
                    uid = pod["metadata"]["uid"]
                    if uid not in self._deleted:
                        self._deleted[uid] = asyncio.Event()
                        group.create_task(self._live(pod))
                    if "deletionTimestamp" in pod["metadata"]:
                        self._deleted[uid].set()
                    else:
                        there[pod["metadata"]["labels"][COMPONENT]] += 1
                self.most |= there
                await asyncio.sleep(0.1)

    async def _live(self, pod: Object) -> None:
        """Start the pod's program, and end it when the pod is deleted."""
        meta, component = pod["metadata"], pod["metadata"]["labels"][COMPONENT]
        program = await asyncio.to_thread(self._start, pod)
        async with asyncio.timeout(READY_TIMEOUT):
            while not await asyncio.to_thread(program.is_ready):
                await self._revive(component, program)
                await asyncio.sleep(0.1)
        if component == "admission":
            self._forwarder.take_in(port_of(program))
        self._ready[component] += 1
        await asyncio.to_thread(self._report_ready, meta["name"])
        await self._wait_deleted(meta["uid"], component, program)
        # The Service removes the pod before SIGTERM.
        if component == "admission":
            self._forwarder.leave_out(port_of(program))
        self._ready[component] -= 1
        left = self._ready[component]
        self.fewest[component] = min(left, self.fewest.get(component, left))
        grace = float(pod["spec"]["terminationGracePeriodSeconds"])
        self.ended[meta["name"]] = await asyncio.to_thread(program.stop, grace)
        await asyncio.to_thread(
            self._plane.api.delete,
            "v1/pods",
            meta["name"],
            namespace=meta["namespace"],
            grace_seconds=0,
        )

    async def _wait_deleted(self, uid: str, component: str, program: Program) -> None:
        while not self._deleted[uid].is_set():
            await self._revive(component, program)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._deleted[uid].wait(), 1)

    async def _revive(self, component: str, program: Program) -> None:
        """Start an ended controller again: on a busy machine a controller can lose its Lease."""
        if program.child.exit_status is not None:
            assert component == "controller", program.log()
            await asyncio.to_thread(program.start_again)

    def _start(self, pod: Object) -> Program:
        (container,) = pod["spec"]["containers"]
        programs = self._releases[container["image"].rpartition(":")[2]]
        if container["name"] == "admission":
            return programs.start_admission(drain_seconds=None)
        return programs.start_controller(identity=pod["metadata"]["name"])

    def _report_ready(self, name: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": now}
        self._plane.api.patch(
            "v1/pods",
            name,
            {"status": {"phase": "Running", "conditions": [ready]}},
            namespace=charts.NAMESPACE,
            subresource="status",
        )

    def _make_node(self) -> None:
        labels = {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": labels}}
        self._plane.api.create("v1/nodes", node)
        self._report_node()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            await asyncio.to_thread(self._report_node)

    def _report_node(self) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ready = {"type": "Ready", "status": "True", "reason": "Test", "lastHeartbeatTime": now}
        resources = {"cpu": "8", "memory": "16Gi", "pods": "100"}
        status = {"capacity": resources, "allocatable": resources, "conditions": [ready]}
        self._plane.api.patch("v1/nodes", NODE, {"status": status}, subresource="status")
