"""The agent as a process on real cgroups: killed, started again, and cut off from its API.

The API server is a stand-in that holds a few objects, so that the test decides what is
told when, and can take it away. tests/cluster has the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.kube.process import free_ports
from tests.testnode import cgroup_tree, naming
from tests.workloads import command

Json = dict[str, Any]
MIB = 1 << 20
SECONDS = 30.0
#: Less than the agent's periods: what comes so soon came of an event.
SOON = 4.0
GROUP = "/apis/hugetlb.dev/v1alpha1"
ID = "1f" * 32


class Api:
    """Pods, quotas and the node's report, listed and watched over plain HTTP."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.version = 100
        self.objects: dict[str, dict[str, Json]] = {"pods": {}, "hugetlbquotas": {}}
        self.report: Json | None = None
        self._events: dict[str, list[tuple[int, Json]]] = {"pods": [], "hugetlbquotas": []}
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def start(self) -> None:
        """Serve, on the same port as the time before."""
        application = web.Application()
        for path, kind in (("/api/v1/pods", "pods"), (f"{GROUP}/hugetlbquotas", "hugetlbquotas")):
            application.router.add_get(path, self._collection(kind))
        application.router.add_get("/api/v1/nodes/n", self._node)
        application.router.add_get(f"{GROUP}/hugetlbnodes/n", self._read)
        application.router.add_post(f"{GROUP}/hugetlbnodes", self._write)
        application.router.add_put(f"{GROUP}/hugetlbnodes/n/status", self._write)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
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

    async def stop(self) -> None:
        """Be gone, with every watch."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def set(self, kind: str, namespace: str, name: str, **content: Any) -> None:
        known = self.objects[kind].get(f"{namespace}/{name}", {})
        metadata = {**known.get("metadata", {}), **content.pop("metadata", {})}
        metadata |= {"namespace": namespace, "name": name}
        await self._store(kind, "MODIFIED" if known else "ADDED", known | content, metadata)

    async def delete(self, kind: str, namespace: str, name: str) -> int:
        """The resourceVersion of its end."""
        gone = self.objects[kind].pop(f"{namespace}/{name}")
        await self._store(kind, "DELETED", gone, gone["metadata"])
        return self.version

    @property
    def status(self) -> Json:
        status: Json = (self.report or {}).get("status") or {}
        return status

    def listed(self) -> list[str]:
        return [pod["uid"] for pod in self.status.get("pods", ())]

    async def _store(self, kind: str, event: str, body: Json, metadata: Json) -> None:
        self.version += 1
        stored = {**body, "metadata": {**metadata, "resourceVersion": str(self.version)}}
        if event != "DELETED":
            self.objects[kind][f"{metadata['namespace']}/{metadata['name']}"] = stored
        async with self._changed:
            self._events[kind].append((self.version, {"type": event, "object": stored}))
            self._changed.notify_all()

    def _collection(self, kind: str) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.StreamResponse:
            if "watch" not in request.query:
                metadata = {"resourceVersion": str(self.version)}
                items = list(self.objects[kind].values())
                return web.json_response({"metadata": metadata, "items": items})
            assert kind != "pods" or request.query["fieldSelector"] == "spec.nodeName=n"
            seen = int(request.query["resourceVersion"])
            stream = web.StreamResponse()
            await stream.prepare(request)
            while True:
                for version, event in list(self._events[kind]):
                    if version > seen:
                        await stream.write(json.dumps(event).encode() + b"\n")
                        seen = version
                async with self._changed:
                    await self._changed.wait()

        return answer

    async def _node(self, request: web.Request) -> web.Response:
        return web.json_response({"metadata": {"name": "n", "uid": "node-uid"}})

    async def _read(self, request: web.Request) -> web.Response:
        if self.report is None:
            return web.json_response({"reason": "NotFound", "message": "none yet"}, status=404)
        return web.json_response(self.report)

    async def _write(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.version += 1
        body["metadata"] |= {"uid": "report-uid", "resourceVersion": str(self.version)}
        self.report = body
        return web.json_response(body)


class Agent:
    """``python -m hugetlb_quota.agent`` for the node ``n``."""

    def __init__(self, api: Api, subtree: Path, log: Path) -> None:
        self.api, self.subtree, self.log = api, subtree, log
        self.process: Process | None = None
        self.port = 0

    async def start(self) -> None:
        (self.port,) = free_ports(1)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "hugetlb_quota.agent", "--node-name=n"),
                *(f"--cgroup-root={self.subtree.name}", "--bind=127.0.0.1"),
                f"--health-port={self.port}",
                env={"KUBECONFIG": str(self.api.kubeconfig), "HOME": str(self.log.parent)},
                stderr=log,
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


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    api = Api(tmp_path / "kubeconfig")
    await api.start()
    await api.set("hugetlbquotas", "ns", "q", spec={"hard": {"hugepages-2Mi": "64Mi"}})
    yield api
    await api.stop()


@pytest.fixture
async def agent(api: Api, cgroup_subtree: Path, tmp_path: Path) -> AsyncIterator[Agent]:
    for qos in ("Guaranteed", "Burstable"):
        cgroup_tree.make(cgroup_subtree, cgroup_subtree / naming.qos_level("systemd", qos))
    agent = Agent(api, cgroup_subtree, tmp_path / "agent.log")
    yield agent
    if agent.process:
        await agent.end(signal.SIGKILL)


def make_cgroup(agent: Agent, uid: str, kubelet: int = 32) -> Path:
    """What kubelet makes: the pod's cgroup with its ``max`` in MiB, and a container's."""
    pod = agent.subtree / naming.pod_level("systemd", "Burstable", uid)
    cgroup_tree.make(agent.subtree, pod)
    cgroup_tree.write_limits(pod, {2 * MIB: kubelet * MIB})
    (pod / naming.container_name("systemd", ID)).mkdir()
    return pod


async def bind(api: Api, uid: str, ask: str = "8Mi", namespace: str = "ns") -> None:
    container = {"name": "c", "resources": {"requests": {"hugepages-2Mi": ask}}}
    spec = {"nodeName": "n", "containers": [container]}
    await api.set("pods", namespace, uid, metadata={"uid": uid}, spec=spec)


def limits(cgroup: Path) -> tuple[str, str]:
    """``rsvd.max`` and ``max`` in MiB, as text."""
    rsvd, faults = (
        (cgroup / f"hugetlb.2MB.{limit}").read_text().strip() for limit in ("rsvd.max", "max")
    )
    return tuple(v if v == "max" else str(int(v) // MIB) for v in (rsvd, faults))  # type: ignore[return-value]


async def until(holds: Callable[[], object], seconds: float = SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


async def test_it_enforces_reports_and_ends_when_told(agent: Agent, api: Api) -> None:
    await agent.start()
    await agent.ready()
    await bind(api, "aa-bb")
    await until(lambda: api.listed() == ["aa-bb"])
    pod = make_cgroup(agent, "aa-bb")
    await until(lambda: limits(pod) == ("8", "8"))
    statuses = [{"name": "c", "containerID": f"containerd://{ID}"}]
    await api.set("pods", "ns", "aa-bb", status={"containerStatuses": statuses})
    container = pod / naming.container_name("systemd", ID)
    await until(lambda: limits(container) == ("8", "8"))
    await api.set("pods", "ns", "aa-bb", status={"phase": "Succeeded"})
    ended = api.version
    await until(lambda: int(api.status["podsResourceVersion"]) >= ended)
    assert api.listed() == ["aa-bb"]  # its cgroup is there
    cgroup_tree.remove(pod)
    await until(lambda: api.listed() == [], SOON)
    assert await agent.probe("/healthz") == (200, "ok\n")
    assert await agent.end(signal.SIGTERM) == 0


async def test_a_pod_follows_its_quotas(agent: Agent, api: Api) -> None:
    await agent.start()
    await agent.ready()
    await bind(api, "aa-bb", namespace="other")
    pod = make_cgroup(agent, "aa-bb")
    await until(lambda: limits(pod) == ("32", "32"))
    await api.set("hugetlbquotas", "other", "q", spec={"hard": {"hugepages-2Mi": "64Mi"}})
    await until(lambda: limits(pod) == ("8", "8"), SOON)
    await until(lambda: api.listed() == ["aa-bb"], SOON)
    selector = {"matchLabels": {"app": "another"}}
    await api.set("hugetlbquotas", "other", "q", spec={"hard": {}, "podSelector": selector})
    await until(lambda: api.listed() == [], SOON)
    cgroup_tree.write_limits(pod, {2 * MIB: 32 * MIB})
    await until(lambda: limits(pod) == ("32", "32"))


async def test_killed_and_started_again_it_gets_everything_right(
    agent: Agent, api: Api, pages: Callable[[int], None]
) -> None:
    pages(4)
    await agent.start()
    await bind(api, "ending")
    await bind(api, "drifting")
    ending, drifting = make_cgroup(agent, "ending"), make_cgroup(agent, "drifting")
    await until(lambda: (limits(ending), limits(drifting)) == (("8", "8"), ("8", "8")))
    await until(lambda: api.listed() == ["drifting", "ending"])
    holder = subprocess.Popen(
        command("map_pages", "4Mi", "--hold"),
        stdout=subprocess.PIPE,
        preexec_fn=lambda: cgroup_tree.write(
            ending / naming.container_name("systemd", ID) / "cgroup.procs", "0"
        ),
    )
    assert holder.stdout
    holder.stdout.readline()

    await agent.end(signal.SIGKILL)
    # While no agent runs: one pod is deleted by force and its process lives on, another's
    # limits are written over, a third comes.
    end = await api.delete("pods", "ns", "ending")
    for file in ("hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"):
        cgroup_tree.write(drifting / file, "max")
    await bind(api, "new")
    new = make_cgroup(agent, "new")

    await agent.start()
    await agent.ready()
    assert (limits(drifting), limits(new)) == (("8", "8"), ("8", "8"))
    await until(lambda: int(api.status["podsResourceVersion"]) >= end)
    entries = {pod["uid"]: pod for pod in api.status["pods"]}
    assert sorted(entries) == ["drifting", "ending", "new"]
    assert entries["ending"]["charge"] == {"hugepages-2Mi": "8Mi"}
    assert entries["ending"]["inUse"] == {"hugepages-2Mi": "4Mi"}
    holder.kill()
    holder.communicate()
    cgroup_tree.remove(ending)
    await until(lambda: api.listed() == ["drifting", "new"])


async def test_cut_off_from_the_api_it_enforces_what_it_knows(agent: Agent, api: Api) -> None:
    await agent.start()
    await agent.ready()
    await bind(api, "governed")
    governed = make_cgroup(agent, "governed")
    await until(lambda: limits(governed) == ("8", "8"))

    await api.stop()
    cgroup_tree.write(governed / "hugetlb.2MB.rsvd.max", "max")
    await until(lambda: limits(governed) == ("8", "8"))
    # Nobody knows yet whose it is: kubelet's own limit holds, in mmap too.
    unknown = make_cgroup(agent, "unknown", kubelet=6)
    await until(lambda: limits(unknown) == ("6", "6"))

    await api.start()
    await bind(api, "unknown", ask="4Mi")
    await until(lambda: limits(unknown) == ("4", "4"))
    await until(lambda: api.listed() == ["governed", "unknown"])


async def test_without_an_api_it_begins_with_what_kubelet_wrote(agent: Agent, api: Api) -> None:
    await api.stop()
    unknown = make_cgroup(agent, "unknown", kubelet=6)
    await agent.start()
    await until(lambda: limits(unknown) == ("6", "6"))
    status, missing = await agent.probe("/readyz")
    assert (status, "the pods of this node" in missing) == (503, True)
    assert (await agent.probe("/healthz"))[0] == 200
    await api.start()
    await agent.ready()
    assert await agent.end(signal.SIGTERM) == 0
