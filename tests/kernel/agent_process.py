"""The agent as a process, and a fake API server for it.

The fake server has only a few objects. So a test decides what the agent sees and when, and can stop
the server. tests/cluster uses a real API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import ssl
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.page_size import PageSize
from tests.kube.process import free_ports
from tests.testnode import cgroup_tree, naming
from tests.tracking import SMALL, Actor
from tests.workloads import command

Json = dict[str, Any]
MIB = 1 << 20
SECONDS = 60.0
#: Less than the agent's periods: a change within this time was caused by an event.
SOON = 4.0
GROUP = "/apis/hugetlb.dev/v1alpha1"
EVENTS = "/apis/events.k8s.io/v1/namespaces"
ID = "1f" * 32


class Api:
    """A fake API server with pods and the node's HugeTLBNode, over plain HTTP."""

    def __init__(self, kubeconfig: Path, tls: ssl.SSLContext | None = None) -> None:
        self.kubeconfig = kubeconfig
        self._tls = tls
        self.version = 100
        self.objects: dict[str, dict[str, Json]] = {"pods": {}, "hugetlbnodes": {}}
        self.report: Json | None = None
        self.reports: list[Json] = []
        self.published: list[Json] = []
        self._events: dict[str, list[tuple[int, Json]]] = {"pods": [], "hugetlbnodes": []}
        #: While a test holds this lock, writes of reports wait; ``waiting`` is their number.
        self.writing = asyncio.Lock()
        self.waiting = 0
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def start(self) -> None:
        """Serve, on the same port as before a stop."""
        application = web.Application()
        for path, kind in (("/api/v1/pods", "pods"), (f"{GROUP}/hugetlbnodes", "hugetlbnodes")):
            application.router.add_get(path, self._collection(kind))
        application.router.add_get("/api/v1/nodes/n", self._node)
        application.router.add_get(f"{GROUP}/hugetlbnodes/n", self._read)
        application.router.add_post(f"{GROUP}/hugetlbnodes", self._write)
        application.router.add_put(f"{GROUP}/hugetlbnodes/n/status", self._write)
        application.router.add_post(f"{EVENTS}/{{namespace}}/events", self._publish)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._tls)
        await site.start()
        self._port = self._runner.addresses[0][1]
        server = {"server": f"http://127.0.0.1:{self._port}"}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": server}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            "users": [{"name": "c", "user": {}}],
            "current-context": "c",
        }
        self.kubeconfig.write_text(json.dumps(config))

    @property
    def port(self) -> int:
        """The server's port on 127.0.0.1."""
        return self._port

    async def stop(self) -> None:
        """Stop the server and end every watch."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def set(self, kind: str, namespace: str, name: str, **content: Any) -> None:
        """Create an object, or replace the fields in ``content``."""
        old = self.objects[kind].get(f"{namespace}/{name}", {})
        metadata = {**old.get("metadata", {}), **content.pop("metadata", {})}
        metadata |= {"namespace": namespace, "name": name}
        await self._store(kind, "MODIFIED" if old else "ADDED", old | content, metadata)

    async def delete(self, kind: str, namespace: str, name: str) -> int:
        """Delete an object; return the resourceVersion of the deletion."""
        gone = self.objects[kind].pop(f"{namespace}/{name}")
        await self._store(kind, "DELETED", gone, gone["metadata"])
        return self.version

    @property
    def status(self) -> Json:
        status: Json = (self.report or {}).get("status") or {}
        return status

    async def wish(self, **spec: Any) -> None:
        """Write the spec, as the controller does."""
        async with self.writing:
            assert self.report is not None
            self.report = {**self.report, "spec": spec}
            await self._store("hugetlbnodes", "MODIFIED", self.report, self.report["metadata"])
            self.report = self.objects["hugetlbnodes"]["/n"]

    def listed(self) -> list[str]:
        """Return the UIDs of the live pods in the last report."""
        return [pod["uid"] for pod in self.status.get("pods", ()) if pod["live"]]

    def entry(self, uid: str) -> Json:
        found: list[Json] = [pod for pod in self.status.get("pods", ()) if pod["uid"] == uid]
        return found[0] if found else {}

    def charged(self, size: PageSize = SMALL) -> dict[str, int]:
        """Return the charged MiB of ``size`` by UID, of live and gone pods in the last report."""
        return charged(self.status, size)

    def left(self, size: PageSize = SMALL) -> dict[str, int]:
        """Return the charged MiB of ``size`` by UID, of gone pods in the last report."""
        return left(self.status, size)

    def condition(self, kind: str) -> Json:
        """Return the condition ``kind`` of the last report, or {} if the report has none."""
        conditions: list[Json] = self.status.get("conditions", [])
        return next((each for each in conditions if each["type"] == kind), {})

    async def _store(self, kind: str, event: str, body: Json, metadata: Json) -> None:
        self.version += 1
        stored = {**body, "metadata": {**metadata, "resourceVersion": str(self.version)}}
        if event != "DELETED":
            self.objects[kind][f"{metadata.get('namespace', '')}/{metadata['name']}"] = stored
        async with self._changed:
            self._events[kind].append((self.version, {"type": event, "object": stored}))
            self._changed.notify_all()

    def _collection(self, kind: str) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.StreamResponse:
            if "watch" not in request.query:
                metadata = {"resourceVersion": str(self.version)}
                items = list(self.objects[kind].values())
                return web.json_response({"metadata": metadata, "items": items})
            own = "spec.nodeName=n" if kind == "pods" else "metadata.name=n"
            assert request.query["fieldSelector"] == own
            seen = int(request.query["resourceVersion"])
            stream = web.StreamResponse()
            await stream.prepare(request)
            with contextlib.suppress(ConnectionResetError):  # the agent was killed
                while True:
                    for version, event in list(self._events[kind]):
                        if version > seen:
                            await stream.write(json.dumps(event).encode() + b"\n")
                            seen = version
                    async with self._changed:
                        await self._changed.wait()
            return stream

        return answer

    async def _node(self, request: web.Request) -> web.Response:
        return web.json_response({"metadata": {"name": "n", "uid": "node-uid"}})

    async def _read(self, request: web.Request) -> web.Response:
        if self.report is None:
            return web.json_response({"reason": "NotFound", "message": "none yet"}, status=404)
        return web.json_response(self.report)

    async def _write(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.waiting += 1
        async with self.writing:
            self.waiting -= 1
            old = self.report or {"spec": {}}
            stale = body["metadata"].get("resourceVersion") not in (
                None,
                old.get("metadata", {}).get("resourceVersion"),
            )
            if stale:
                return web.json_response({"reason": "Conflict", "message": "changed"}, status=409)
            report = {**old, "status": body.get("status") or {}}
            metadata = {"name": "n", "uid": "report-uid"}
            await self._store("hugetlbnodes", "MODIFIED", report, metadata)
            self.report = self.objects["hugetlbnodes"]["/n"]
            self.reports.append(self.report["status"])
            return web.json_response(self.report)

    async def _publish(self, request: web.Request) -> web.Response:
        self.published.append(await request.json())
        return web.json_response(self.published[-1])


class Agent:
    """``python -m hugetlb_quota.agent`` for node ``n``."""

    def __init__(self, api: Api, subtree: Path, log: Path) -> None:
        self.api, self.subtree, self.log = api, subtree, log
        self.cgroup_root: str | None = subtree.name
        self.process: Process | None = None
        self.port = 0
        self.program = [sys.executable, "-m", "hugetlb_quota.agent"]

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the agent's process."""
        return {"KUBECONFIG": str(self.api.kubeconfig), "HOME": str(self.log.parent)}

    async def start(self, *more: str, container: Path | None = None) -> None:
        """Start the agent.

        :param more: arguments after the usual arguments.
        :param container: the cgroup of the agent and the root of its cgroup namespace.
        """

        def enter() -> None:
            if container is not None:
                cgroup_tree.write(container / "cgroup.procs", "0")

        (self.port,) = free_ports(1)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(() if container is None else ("unshare", "--cgroup")),
                *(*self.program, "--node-name=n"),
                *(f"--health-port={self.port}", "--bind=127.0.0.1"),
                *([f"--cgroup-root={self.cgroup_root}"] if self.cgroup_root else []),
                *more,
                env=self.environment(),
                stderr=log,
                preexec_fn=enter,
            )

    async def end(self, number: signal.Signals) -> int:
        assert self.process
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(SECONDS):
            return await self.process.wait()

    async def probe(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{self.port}{path}") as answer:
                    return answer.status, await answer.text()
        return 0, ""

    async def ready(self) -> None:
        async with asyncio.timeout(SECONDS):
            while (await self.probe("/readyz"))[0] != 200:
                assert self.process
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.02)


def host_with(cgroup2: Path, root: Path) -> Path:
    """Make the root of a host as a container sees it, with only /proc and /sys; return its path.

    The root of its cgroup2 is ``cgroup2``; all other files are this machine's.
    """
    for directory in ("proc/1", "proc/sys/kernel/random", "sys/fs", "sys/devices/system"):
        (root / directory).mkdir(parents=True)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    kept = [line for line in mounts if " - hugetlbfs " in line]
    kept.append("41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    (root / "proc/1/mountinfo").write_text("\n".join(kept))
    (root / "proc/sys/kernel/random/boot_id").write_text(HostRoot().boot_id())
    (root / "sys/fs/cgroup").symlink_to(cgroup2)
    (root / "sys/kernel").symlink_to("/sys/kernel")
    return root


def make_cgroup(
    agent: Agent, uid: str, kubelet: int = 32, others: Mapping[int, int] | None = None
) -> Path:
    """Make the cgroups of a pod and its container as kubelet does; return the pod's cgroup.

    :param kubelet: kubelet's ``max`` for 2 MiB pages, in MiB.
    :param others: kubelet's ``max`` for other page sizes: bytes by page size in bytes.
    """
    pod = agent.subtree / naming.pod_level("systemd", "Burstable", uid)
    cgroup_tree.make(agent.subtree, pod)
    cgroup_tree.write_limits(pod, {2 * MIB: kubelet * MIB, **(others or {})})
    (pod / naming.container_name("systemd", ID)).mkdir()
    return pod


async def bind(
    api: Api,
    uid: str,
    demand: str | Mapping[str, str] = "8Mi",
    namespace: str = "ns",
    **metadata: Any,
) -> None:
    """Store a pod that is bound to the node; ``demand``: of 2 MiB pages, or of each size."""
    requests = {"hugepages-2Mi": demand} if isinstance(demand, str) else dict(demand)
    container = {"name": "c", "resources": {"requests": requests}}
    spec = {"nodeName": "n", "containers": [container]}
    await api.set("pods", namespace, uid, metadata={"uid": uid, **metadata}, spec=spec)


def limits(cgroup: Path) -> tuple[str, str]:
    """Return ``rsvd.max`` and ``max`` of 2 MiB pages in MiB, as text."""
    rsvd, faults = (
        (cgroup / f"hugetlb.2MB.{limit}").read_text().strip() for limit in ("rsvd.max", "max")
    )
    return tuple(v if v == "max" else str(int(v) // MIB) for v in (rsvd, faults))  # type: ignore[return-value]


async def until(holds: Callable[[], object], seconds: float = SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


class Pod:
    """A pod of the fake API server, with its cgroup and its processes."""

    def __init__(self, agent: Agent, uid: str) -> None:
        self.agent, self.api, self.uid = agent, agent.api, uid
        self.cgroup = Path()
        self._processes: list[subprocess.Popen[str]] = []
        self._actors: list[Actor] = []

    async def start(self, demand: str | Mapping[str, str] = "8Mi", namespace: str = "ns") -> None:
        """Create the pod and its cgroup.

        :param demand: the pod's request for 2 MiB pages, or for each named size.
        """
        self.namespace = namespace
        await bind(self.api, self.uid, demand, namespace)
        others = {} if isinstance(demand, str) else Charge.from_resources(demand)
        self.cgroup = make_cgroup(
            self.agent, self.uid, others={size.bytes: amount for size, amount in others.items()}
        )

    async def maps(self, size: str, *options: str) -> None:
        """Run a process that maps and touches ``size``, and keeps it mapped."""
        procs = self.cgroup / naming.container_name("systemd", ID) / "cgroup.procs"
        process = subprocess.Popen(
            command("map_pages", size, "--map-first", "--hold", *options),
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: cgroup_tree.write(procs, "0"),
        )
        self._processes.append(process)
        assert process.stdout
        for _ in range(2):  # the process prints a line after mmap, and one after the touch
            assert await asyncio.to_thread(process.stdout.readline)

    def actor(self) -> Actor:
        """Start an actor in the pod's container."""
        self._actors.append(Actor(self.cgroup / naming.container_name("systemd", ID)))
        return self._actors[-1]

    def end(self) -> None:
        """End the processes and remove the cgroup at once, as a fast kubelet does."""
        cgroup_tree.remove(self.cgroup)
        for process in self._processes:
            process.communicate()
        for actor in self._actors:
            actor.kill()

    async def delete(self) -> int:
        return await self.api.delete("pods", self.namespace, self.uid)


def charged(status: Json, size: PageSize = SMALL, live: bool | None = None) -> dict[str, int]:
    """Return the charged MiB of ``size`` by UID; ``live`` selects live or gone pods."""
    return {
        pod["uid"]: amount // MIB
        for pod in status.get("pods", ())
        if live in (None, pod["live"]) and (amount := Charge.from_sums(pod["charged"]).of(size))
    }


def left(status: Json, size: PageSize = SMALL) -> dict[str, int]:
    """Return the charged MiB of ``size`` by UID, of gone pods."""
    return charged(status, size, live=False)
