"""The life of a pod on the node, in kubelet's order, from its cgroup's creation to its removal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.testnode import cgroup_tree, containers, volumes
from tests.testnode.demand import huge_page_requests
from tests.testnode.naming import Driver, container_name, kubepods, pod_level, qos_level
from tests.testnode.status import ContainerState, Phase, final_phase, now, phase_so_far, pod_status

log = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], Awaitable[None]]
_RESTART_SECONDS = 1.0
_DEFAULT_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


@dataclass(frozen=True)
class Place:
    """The cgroup subtree and the state directory of a node."""

    root: Path
    """The cgroup2 mount."""
    parent: Path
    """The node's subtree, at or below ``root``."""
    state_dir: Path
    driver: Driver
    node_name: str = "node"
    rsvd: bool = False
    """Whether to write ``rsvd.max`` too, as kubelet does since 1.29."""

    def pods_cgroup(self) -> Path:
        """The node's kubepods cgroup."""
        return self.parent / kubepods(self.driver)

    def pod_cgroup(self, pod: Mapping[str, Any]) -> Path:
        """The cgroup of this pod."""
        qos = (pod.get("status") or {}).get("qosClass", "BestEffort")
        return self.parent / pod_level(self.driver, qos, pod["metadata"]["uid"])

    def pod_dir(self, pod: Mapping[str, Any]) -> Path:
        """The pod's directory; kubelet's is ``/var/lib/kubelet/pods/<uid>``."""
        return self.state_dir / "pods" / str(pod["metadata"]["uid"])

    def make(self, allocatable: Mapping[int, int] | None = None) -> None:
        """Make kubepods and the QoS levels.

        ``allocatable``: the limit of kubepods, as bytes by page size in bytes; None: no limit.
        The QoS levels have no limit.
        """
        limits = cgroup_tree.unbounded() if allocatable is None else allocatable
        cgroup_tree.make(self.root, self.pods_cgroup())
        cgroup_tree.write_limits(self.pods_cgroup(), limits, rsvd=self.rsvd)
        for qos in ("Burstable", "BestEffort"):
            level = self.parent / qos_level(self.driver, qos)
            cgroup_tree.make(self.root, level)
            cgroup_tree.write_limits(level, cgroup_tree.unbounded(), rsvd=self.rsvd)


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by the variable NAME of ``env``, as in a container's command."""
    return re.sub(
        r"\$(\$?)\(([^)]*)\)",
        lambda hit: f"$({hit[2]})" if hit[1] else env.get(hit[2], hit[0]),
        text,
    )


class PodRun:
    """Runs one pod: ``run`` is the pod's whole life, and ``terminate`` ends it.

    Every change calls ``report`` with the new PodStatus JSON.
    """

    def __init__(self, pod: dict[str, Any], place: Place, report: Report) -> None:
        self.pod = pod
        self.place = place
        self._report = report
        self._spec: dict[str, Any] = pod["spec"]
        self._policy: str = self._spec.get("restartPolicy", "Always")
        self.cgroup = place.pod_cgroup(pod)
        self._dir = place.pod_dir(pod)
        self._ipc: Path | None = None
        self._volumes: dict[str, str] = {}
        self.inits = [self._state(one) for one in self._spec.get("initContainers") or ()]
        self.mains = [self._state(one) for one in self._spec["containers"]]
        self._live: dict[str, containers.Container] = {}
        self._stopping = asyncio.Event()
        self._grace = float(self._spec.get("terminationGracePeriodSeconds") or 30)
        self._started_at = now()
        self._final: Phase | None = None
        self._reporting = asyncio.Lock()

    def _state(self, spec: Mapping[str, Any]) -> ContainerState:
        return ContainerState(
            spec["name"], spec.get("image", ""), spec.get("restartPolicy") == "Always"
        )

    def terminate(self, grace_seconds: float) -> None:
        """Send SIGTERM, and SIGKILL after the grace; a later call may shorten the grace."""
        self._grace = min(self._grace, grace_seconds) if self._stopping.is_set() else grace_seconds
        self._stopping.set()

    def write_limits(self) -> None:
        """Write the pod's limits to its cgroup: 0 for page sizes that the pod does not request."""
        cgroup_tree.write_limits(self.cgroup, huge_page_requests(self._spec), rsvd=self.place.rsvd)

    async def run(self) -> None:
        """Run the pod; return when its processes, mounts and cgroup are gone.

        The node reports the final phase before it removes the cgroup, as kubelet does.
        """
        try:
            try:
                await self._set_up()
            except (volumes.VolumeError, cgroup_tree.CgroupError, OSError) as error:
                await self._cannot_run(str(error))
            else:
                await self._run_containers()
            self._final = final_phase(self.inits, self.mains)
            await self.report()
        finally:
            # A cancelled task must also remove what it made.
            await asyncio.shield(self._tear_down())

    async def _set_up(self) -> None:
        cgroup_tree.make(self.place.root, self.cgroup)
        self.write_limits()
        self._dir.mkdir(parents=True)
        self._volumes = volumes.set_up(self.pod, self._dir)
        if not self._spec.get("hostIPC"):
            self._ipc = self._dir / "ipc"
            self._ipc.touch()
            await _new_ipc_namespace(self._ipc)

    async def _cannot_run(self, message: str) -> None:
        """Keep the pod Pending with the reason until it is deleted, as kubelet does."""
        log.warning("pod %s cannot run: %s", self.pod["metadata"]["name"], message)
        for state in (*self.inits, *self.mains):
            state.wait("CreateContainerConfigError", message)
        await self.report()
        await self._stopping.wait()

    async def _run_containers(self) -> None:
        sidecars: list[asyncio.Task[None]] = []
        mains: list[asyncio.Task[None]] = []
        try:
            for spec, state in zip(self._spec.get("initContainers") or (), self.inits, strict=True):
                if self._stopping.is_set():
                    break
                if state.sidecar:
                    sidecars.append(asyncio.create_task(self._keep(spec, state, "Always")))
                    await self._until_started(state)
                    continue
                once = "Never" if self._policy == "Never" else "OnFailure"
                await self._keep_until_stopped([asyncio.create_task(self._keep(spec, state, once))])
                if state.exit_code != 0:
                    break
            else:
                mains = [
                    asyncio.create_task(self._keep(spec, state, self._policy))
                    for spec, state in zip(self._spec["containers"], self.mains, strict=True)
                ]
                await self._keep_until_stopped(mains)
            # Sidecars end after the containers, in reverse order.
            self._stopping.set()
            for task, state in reversed(list(zip(sidecars, self._sidecars(), strict=False))):
                await self._end([task], [state])
        finally:
            for task in (*sidecars, *mains):
                task.cancel()
            await asyncio.gather(*sidecars, *mains, return_exceptions=True)

    def _sidecars(self) -> list[ContainerState]:
        return [state for state in self.inits if state.sidecar]

    async def _until_started(self, state: ContainerState) -> None:
        while not state.id and not self._stopping.is_set():
            await asyncio.sleep(0.01)

    async def _keep_until_stopped(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Wait until the containers have ended; end them if the pod must end."""
        stop = asyncio.create_task(self._stopping.wait())
        try:
            while not self._stopping.is_set() and (busy := [t for t in tasks if not t.done()]):
                await asyncio.wait([stop, *busy], return_when=asyncio.FIRST_COMPLETED)
            await self._end(tasks, [*self.mains, *(s for s in self.inits if not s.sidecar)])
            for task in tasks:
                task.result()
        finally:
            stop.cancel()
            for task in tasks:
                task.cancel()

    async def _end(
        self, tasks: Sequence[asyncio.Task[None]], states: Sequence[ContainerState]
    ) -> None:
        """Send SIGTERM, and SIGKILL after the grace, which a second delete may shorten."""
        for state in states:
            if state.name in self._live:
                self._live[state.name].send(signal.SIGTERM)
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not all(task.done() for task in tasks):
            if loop.time() - began >= self._grace:
                for state in states:
                    if state.name in self._live:
                        cgroup_tree.kill(self._live[state.name].cgroup)
            await asyncio.wait(tasks, timeout=0.1)

    async def _keep(self, spec: Mapping[str, Any], state: ContainerState, policy: str) -> None:
        """Run one container, and restart it as its restart policy says."""
        while True:
            await self._run_once(spec, state)
            await self.report()
            again = policy == "Always" or (policy == "OnFailure" and state.exit_code != 0)
            if not again or self._stopping.is_set():
                return
            state.wait("CrashLoopBackOff", f"restarting in {_RESTART_SECONDS:g} s")
            await self.report()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _RESTART_SECONDS)
                # The pod ended during the wait: the last run's exit code counts.
                state.terminated, state.waiting = state.last_terminated, ""
                return

    async def _run_once(self, spec: Mapping[str, Any], state: ContainerState) -> None:
        container_id = containers.new_id()
        cgroup = self.cgroup / container_name(self.place.driver, container_id)
        try:
            container = await containers.start(
                container_id, cgroup, self._dir / "containers" / container_id,
                self._command(spec), self._ipc,
            )  # fmt: skip
        except (containers.StartError, volumes.VolumeError, ValueError, OSError) as error:
            state.start(container_id)
            state.end(128, str(error), "StartError")
            return
        self._live[state.name] = container
        state.start(container_id)
        if self._stopping.is_set():
            container.send(signal.SIGTERM)
        await self.report()
        try:
            state.end(await container.wait(), container.message())
        finally:
            del self._live[state.name]

    def _command(self, spec: Mapping[str, Any]) -> containers.Command:
        env = _DEFAULT_ENV | {"HOSTNAME": self.pod["metadata"]["name"]}
        for variable in spec.get("env") or ():
            env[variable["name"]] = self._value(variable, env)
        words = [*(spec.get("command") or ()), *(spec.get("args") or ())]
        if not words:
            raise ValueError(
                f"container {spec['name']} has no command: write one, because this test node reads "
                "no images"
            )
        security = (self._spec.get("securityContext") or {}) | (spec.get("securityContext") or {})
        uid = security.get("runAsUser", 0)
        groups = [*security.get("supplementalGroups", ())]
        if security.get("fsGroup") is not None:
            groups.append(security["fsGroup"])
        return containers.Command(
            argv=[expand(word, env) for word in words],
            env=env,
            cwd=spec.get("workingDir") or "/",
            mounts=volumes.container_mounts(spec, self._volumes),
            uid=uid,
            gid=security.get("runAsGroup", 0),
            groups=groups,
            privileged=bool(security.get("privileged")),
        )

    def _value(self, variable: Mapping[str, Any], env: Mapping[str, str]) -> str:
        if "valueFrom" not in variable:
            return expand(variable.get("value", ""), env)
        path = (variable["valueFrom"].get("fieldRef") or {}).get("fieldPath")
        metadata = self.pod["metadata"]
        fields = {
            "metadata.name": metadata["name"],
            "metadata.namespace": metadata.get("namespace", "default"),
            "metadata.uid": metadata["uid"],
            "spec.nodeName": self.place.node_name,
            "status.podIP": "127.0.0.1",
            "status.hostIP": "127.0.0.1",
        }
        if path not in fields:
            raise ValueError(
                f"variable {variable['name']}: this test node supports fieldRef only to "
                f"{', '.join(fields)}"
            )
        return str(fields[path])

    async def _tear_down(self) -> None:
        """Remove processes, volumes and the cgroup, in kubelet's order."""
        if self.cgroup.exists():
            cgroup_tree.kill(self.cgroup)
        try:
            for container in list(self._live.values()):
                await container.wait()
        finally:
            volumes.tear_down(self._dir)
            await asyncio.to_thread(cgroup_tree.remove, self.cgroup)

    async def report(self) -> None:
        """Report the present status; each report waits until the report before is written."""
        async with self._reporting:
            await self._report(self.status())

    def status(self) -> dict[str, Any]:
        """The present PodStatus as JSON."""
        reached = self._final or phase_so_far(self.inits, self.mains)
        return pod_status(self.pod, self.inits, self.mains, reached, self._started_at)


async def _new_ipc_namespace(file: Path) -> None:
    """Make an IPC namespace; a mount at ``file`` keeps it until the end of the pod."""
    process = await asyncio.create_subprocess_exec("unshare", f"--ipc={file}", "true")
    if await asyncio.wait_for(process.wait(), 10) != 0:
        raise OSError(f"unshare could not make an IPC namespace at {file}")
