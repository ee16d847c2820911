"""What the controller costs: its start, its memory, at rest, under churn, and how late it is.

    python -m benchmarks.controller [--pods 1000,10000,50000] [--quotas 100,10000]
        [--nodes 500,5000] [--seconds 20] [--ends 20] [--json FILE] [--source FOLDER]

On a control plane of its own, with the controller as the chart ships it and no admission. The
sizes are taken together, the first of each, then the second; the last of a shorter list goes
on. Objects are only added from one size to the next. Pods are bound to Nodes that have no
kubelet, and each Node has a HugeTLBNode that reports its pods. CPU is in percent of one core.

``first count``: from the program's start until each quota is counted that never was. ``ready``:
from a later start until a pod that ended meanwhile is uncounted. Of both also: the most memory,
``stall``, the longest time until /healthz is answered, asked twenty times a second, and
``renewed``, the longest time from one renewal of the Lease to the next. ``rest``: nothing changes.
``heartbeats``: each node reports once a minute, and nothing but the time is new. ``churn``: ten
pods come and ten go each second; for the first size there are 2,000 pods at the least.
``fall``: from the report that shows a pod gone to the counter's fall; beside it ``native``, from
a delete to the fall of a ResourceQuota's status, by the kube-controller-manager.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from benchmarks.pods import container
from benchmarks.processes import cpu_seconds
from tests.kube import chart as charts
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program, Programs

QUOTAS = "/apis/hugetlb.dev/v1alpha1/hugetlbquotas"
REPORTS = "/apis/hugetlb.dev/v1alpha1/hugetlbnodes"
LEASES = "/apis/coordination.k8s.io/v1/leases"
GROUP = "/apis/hugetlb.dev/v1alpha1"
#: Quotas of one namespace: a root that selects no pods, and its children.
FAMILY = 10
CREATORS = 32
NODE_INFO = (
    *("machineID", "systemUUID", "kernelVersion", "osImage", "containerRuntimeVersion"),
    *("kubeletVersion", "kubeProxyVersion", "operatingSystem", "architecture"),
)


@dataclass(frozen=True)
class Start:
    """A start of the controller: seconds until it has counted, and what happened meanwhile.

    ``peak`` in MiB; ``stall`` and ``renewed`` in seconds.
    """

    took: float
    peak: float
    stall: float
    renewed: float

    def __str__(self) -> str:
        return (
            f"{self.took:.1f} s ({self.peak:.0f} MiB, stall {self.stall:.2f} s,"
            f" renewed within {self.renewed:.1f} s)"
        )


@dataclass(frozen=True)
class Figures:
    """What was measured at one size; seconds, MiB, percent of a core, writes a second."""

    pods: int
    quotas: int
    nodes: int
    first_count: Start | None
    ready: Start
    resident: float
    peak: float
    rest_cpu: float
    rest_writes: int
    heartbeat_cpu: float
    heartbeat_writes: int
    churn_cpu: float
    churn_most_writes: float
    fall_p50: float
    fall_most: float
    native_p50: float
    native_most: float


class Api:
    """Many requests at a time, as an administrator."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server

    @classmethod
    @asynccontextmanager
    async def of(cls, plane: ControlPlane) -> AsyncIterator[Api]:
        """Connect to ``plane``."""
        connector = aiohttp.TCPConnector(limit=CREATORS + 10, ssl=plane.admin_tls())
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=2**22
        ) as session:
            yield cls(session, plane.server)

    async def send(self, method: str, path: str, body: Object | None = None) -> Object:
        """One request; an answer that is an error is raised."""
        kind = "merge-patch+json" if method == "PATCH" else "json"
        async with self._session.request(
            method,
            self._server + path,
            data=None if body is None else orjson.dumps(body),
            headers={"Content-Type": f"application/{kind}"},
        ) as answer:
            said: Object = orjson.loads(await answer.read())
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {said.get('message')}")
            return said

    async def watch(self, path: str, tell: Callable[[str, Object], None]) -> None:
        """Tell of every object that is there and of every change, until it is cancelled."""
        listed = await self.send("GET", path)
        for item in listed["items"]:
            tell("LISTED", item)
        version = listed["metadata"]["resourceVersion"]
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "7200"}
        async with self._session.get(self._server + path, params=query) as answer:
            pending = b""
            async for chunk in answer.content.iter_any():
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    event = orjson.loads(line)
                    tell(event["type"], event["object"])


async def at_once(work: Iterable[Coroutine[Any, Any, object]]) -> None:
    """All of ``work``, some at a time."""
    waiting = iter(work)

    async def worker() -> None:
        for each in waiting:
            await each

    await asyncio.gather(*(worker() for _ in range(CREATORS)))


class Watcher:
    """What the quotas' statuses say, and how often they were written."""

    def __init__(self) -> None:
        self.counted: set[str] = set()
        self.used: dict[str, str] = {}
        self.writes: dict[str, int] = {}
        self.changed = asyncio.Event()

    def tell(self, kind: str, quota: Object) -> None:
        """Take in one quota, of either kind."""
        meta, status = quota["metadata"], quota.get("status") or {}
        name = f"{meta['namespace']}/{meta['name']}"
        if status.get("observedGeneration"):
            self.counted.add(name)
        self.used[name] = (status.get("used") or {}).get("hugepages-2Mi", "0")
        if kind == "MODIFIED":
            self.writes[name] = self.writes.get(name, 0) + 1
        self.changed.set()

    async def until(self, holds: Callable[[], bool], counting: Program | None = None) -> float:
        """Wait until it holds, while ``counting`` runs; the moment at which it did."""
        async with asyncio.timeout(600):
            while not holds():
                if counting is not None and counting.child.exit_status is not None:
                    raise RuntimeError(f"The controller ended:\n{counting.child.tail()}")
                self.changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await self.changed.wait()
        return time.monotonic()


class Pulse:
    """How long a controller left others waiting: who asks for its health, and its Lease."""

    def __init__(self, api: Api, controller: Program) -> None:
        self._api = api
        self._controller = controller
        self._renewed_at = 0.0
        self.stall = 0.0
        self.renewed = 0.0

    @asynccontextmanager
    async def felt(self) -> AsyncIterator[None]:
        """Feel it meanwhile."""
        tasks = [
            asyncio.create_task(self._api.watch(LEASES, self._tell)),
            asyncio.create_task(self._ask()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._renew()

    def _tell(self, _: str, lease: Object) -> None:
        if lease["spec"].get("holderIdentity") == self._controller.identity:
            self._renew()

    def _renew(self) -> None:
        now = time.monotonic()
        if self._renewed_at:
            self.renewed = max(self.renewed, now - self._renewed_at)
        self._renewed_at = now

    async def _ask(self) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                asked = time.monotonic()
                with suppress(aiohttp.ClientConnectorError):  # it does not serve yet
                    async with session.get(f"{self._controller.address}/healthz") as answer:
                        await answer.read()
                    self.stall = max(self.stall, time.monotonic() - asked)
                await asyncio.sleep(0.05)


class World:
    """What is made on the API server; it only grows."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.pods: list[Object] = []
        self.quotas = 0
        self.nodes: list[str] = []
        self._reports: dict[str, dict[str, Object]] = {}
        self._names = count()

    async def grow(self, pods: int, quotas: int, nodes: int) -> None:
        """Make what is missing."""
        families = range(self.quotas // FAMILY, quotas // FAMILY)
        await at_once(self._make_family(number) for number in families)
        self.quotas = max(self.quotas, quotas)
        await self._wait_for_accounts()
        names = [f"node-{number}" for number in range(len(self.nodes), nodes)]
        await at_once(self._make_node(name) for name in names)
        self.nodes += names
        _say(f"{self.quotas} quotas, {len(self.nodes)} nodes")
        more = pods - len(self.pods)
        await at_once(self.make_pod(self.nodes) for _ in range(more))
        _say(f"{len(self.pods)} pods")
        await at_once(self.report(name) for name in self.nodes)

    async def _make_family(self, number: int) -> None:
        namespace = f"ns-{number}"
        body: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        await self.api.send("POST", "/api/v1/namespaces", body)
        for name in ["root", *(f"team-{each}" for each in range(1, FAMILY))]:
            spec: Object = {
                "hard": {"hugepages-2Mi": "1Ti"},
                "podSelector": {"matchLabels": {"team": name}},
            }
            if name != "root":
                spec["parentRef"] = {"namespace": namespace, "name": "root"}
            body = {
                "apiVersion": "hugetlb.dev/v1alpha1",
                "kind": "HugeTLBQuota",
                "metadata": {"namespace": namespace, "name": name},
                "spec": spec,
            }
            await self.api.send("POST", f"{GROUP}/namespaces/{namespace}/hugetlbquotas", body)

    async def _wait_for_accounts(self) -> None:
        wanted = {f"ns-{number}" for number in range(self.quotas // FAMILY)} | {"native"}
        while True:
            listed = await self.api.send("GET", "/api/v1/serviceaccounts")
            if wanted <= {each["metadata"]["namespace"] for each in listed["items"]}:
                return
            await asyncio.sleep(0.5)

    async def _make_node(self, name: str) -> None:
        body: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        await self.api.send("POST", "/api/v1/nodes", body)
        status = {"status": {"nodeInfo": {**dict.fromkeys(NODE_INFO, ""), "bootID": "boot"}}}
        await self.api.send("PATCH", f"/api/v1/nodes/{name}/status", status)
        body = {
            "apiVersion": "hugetlb.dev/v1alpha1",
            "kind": "HugeTLBNode",
            "metadata": {"name": name},
        }
        await self.api.send("POST", REPORTS, body)
        self._reports[name] = {}

    async def make_pod(self, nodes: list[str], namespace: str = "") -> None:
        """One more, in a team of its own turn."""
        number = next(self._names)
        family, team = divmod(number % max(1, self.quotas), FAMILY)
        namespace = namespace or f"ns-{family}"
        made = await self.api.send(
            "POST",
            f"/api/v1/namespaces/{namespace}/pods",
            _pod(f"p-{number}", f"team-{max(1, team)}", nodes[number % len(nodes)]),
        )
        meta, node = made["metadata"], made["spec"]["nodeName"]
        self.pods.append(made)
        self._reports.get(node, {})[meta["uid"]] = {
            "uid": meta["uid"],
            "namespace": namespace,
            "name": meta["name"],
            "labels": meta["labels"],
            "live": True,
            "demand": {"hugepages-2Mi": "2Mi"},
            "charged": {"hugepages-2Mi": "2Mi"},
        }

    async def report(self, node: str, version: str = "1") -> None:
        """The report of ``node``, that has seen its pods up to ``version``."""
        told = {
            "bootID": "boot",
            "podsResourceVersion": version,
            "reportedAt": datetime.now(UTC).isoformat(),
            "pods": list(self._reports[node].values()),
        }
        await self.api.send("PATCH", f"{REPORTS}/{node}/status", {"status": told})

    async def delete(self, pod: Object) -> str:
        """Delete a pod; the resourceVersion of its end."""
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        gone = await self.api.send("DELETE", path)
        self._reports.get(pod["spec"]["nodeName"], {}).pop(meta["uid"], None)
        version: str = gone["metadata"]["resourceVersion"]
        return version


def _say(text: str) -> None:
    print(f"# {text}", file=sys.stderr, flush=True)


def _pod(name: str, team: str, node: str) -> Object:
    resources = {"hugepages-2Mi": "2Mi", "cpu": "1m", "memory": "1Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"team": team, "app": "database"}},
        "spec": {
            "containers": [container(resources)],
            "nodeName": node,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            # Nobody keeps these nodes alive.
            "tolerations": [{"operator": "Exists"}],
        },
    }


class Bench:
    """Measures one size after the other."""

    def __init__(
        self, plane: ControlPlane, programs: Programs, api: Api, arguments: argparse.Namespace
    ) -> None:
        self._plane = plane
        self._programs = programs
        self._api = api
        self._seconds: int = arguments.seconds
        self._ends: int = arguments.ends
        self.world = World(api)

    async def measure(self, pods: int, quotas: int, nodes: int) -> Figures:
        """All figures of one size."""
        await self.world.grow(pods, quotas, nodes)
        watcher = Watcher()
        watching = asyncio.create_task(self._api.watch(QUOTAS, watcher.tell))
        try:
            first = await self._first_count(watcher)
            _say(f"first count: {first}")
            controller, ready = await self._ready(watcher)
            _say(f"ready: {ready}")
            try:
                await self._quiet(watcher)
                rest = await self._rest(controller, watcher)
                _say(f"at rest: {rest}")
                heartbeats = await self._heartbeats(controller, watcher)
                falls = await self._falls(watcher)
                _say(f"falls: {falls}")
                memory = resident(controller.child.pid)
                churn = await self._churn(controller, watcher)
                _say(f"churn: {churn}")
            finally:
                await asyncio.to_thread(controller.stop)
            native = await self._native()
        finally:
            watching.cancel()
        return Figures(
            pods=pods,
            quotas=self.world.quotas,
            nodes=len(self.world.nodes),
            first_count=first,
            ready=ready,
            resident=memory[0],
            peak=memory[1],
            rest_cpu=rest[0],
            rest_writes=rest[1],
            heartbeat_cpu=heartbeats[0],
            heartbeat_writes=heartbeats[1],
            churn_cpu=churn[0],
            churn_most_writes=churn[1],
            fall_p50=statistics.median(falls),
            fall_most=max(falls),
            native_p50=statistics.median(native),
            native_most=max(native),
        )

    async def _start(self) -> Program:
        return await asyncio.to_thread(self._programs.start_controller, webhooks=False)

    async def _first_count(self, watcher: Watcher) -> Start | None:
        """None where all were counted at a smaller size."""
        await watcher.until(lambda: len(watcher.used) >= self.world.quotas)
        if len(watcher.counted) == self.world.quotas:
            return None
        controller, start = await self._start_until(
            watcher, lambda: len(watcher.counted) == self.world.quotas
        )
        try:
            await self._quiet(watcher)
        finally:
            await asyncio.to_thread(controller.stop)
        return start

    async def _start_until(
        self, watcher: Watcher, holds: Callable[[], bool]
    ) -> tuple[Program, Start]:
        """Start a controller and wait until it has brought that about."""
        started = time.monotonic()
        controller = await self._start()
        try:
            pulse = Pulse(self._api, controller)
            async with pulse.felt():
                took = await watcher.until(holds, controller) - started
            _, peak = resident(controller.child.pid)
        except BaseException:
            await asyncio.to_thread(controller.stop)
            raise
        return controller, Start(took, peak, pulse.stall, pulse.renewed)

    async def _quiet(self, watcher: Watcher) -> None:
        """Wait until nothing is written for a while."""
        with suppress(TimeoutError):
            while True:
                watcher.changed.clear()
                async with asyncio.timeout(8):
                    await watcher.changed.wait()

    async def _end_one(self, watcher: Watcher, *, started: bool = True) -> tuple[float, str, str]:
        """A pod ends; when its report was sent, its quota, and what that had used."""
        pod = self.world.pods.pop(0)
        meta = pod["metadata"]
        quota = f"{meta['namespace']}/{meta['labels']['team']}"
        before = watcher.used[quota]
        version = await self.world.delete(pod)
        if started:
            await asyncio.sleep(0.7)  # the end itself is counted by then
        sent = time.monotonic()
        await self.world.report(pod["spec"]["nodeName"], version)
        return sent, quota, before

    async def _ready(self, watcher: Watcher) -> tuple[Program, Start]:
        _, quota, before = await self._end_one(watcher, started=False)
        return await self._start_until(watcher, lambda: watcher.used[quota] != before)

    async def _rest(self, controller: Program, watcher: Watcher) -> tuple[float, int]:
        """CPU, and writes: those of quotas and of nodes' specs."""
        writes = [0]

        def tell(kind: str, _: Object) -> None:
            writes[0] += kind == "MODIFIED"

        watching = asyncio.create_task(self._api.watch(REPORTS, tell))
        await asyncio.sleep(1)
        watcher.writes.clear()
        share = await self._share(controller, asyncio.sleep(self._seconds))
        watching.cancel()
        return share, writes[0] + sum(watcher.writes.values())

    async def _heartbeats(self, controller: Program, watcher: Watcher) -> tuple[float, int]:
        watcher.writes.clear()
        share = await self._share(controller, self._beat())
        return share, sum(watcher.writes.values())

    async def _beat(self) -> None:
        version = (await self._api.send("GET", "/api/v1/pods?limit=1"))["metadata"]
        sent = len(self.world.nodes) * self._seconds // 60
        nodes = iter(self.world.nodes * 2)
        await _evenly(
            (self.world.report(next(nodes), version["resourceVersion"]) for _ in range(sent)),
            self._seconds,
        )

    async def _falls(self, watcher: Watcher) -> list[float]:
        took = []
        for _ in range(self._ends):
            sent, quota, before = await self._end_one(watcher)
            fell = await watcher.until(lambda q=quota, b=before: watcher.used[q] != b)  # type: ignore[misc]
            took.append(fell - sent)
        return took

    async def _churn(self, controller: Program, watcher: Watcher) -> tuple[float, float]:
        """CPU, and the writes a second of the quota that was written most."""
        here = ["without-agent"]
        with suppress(RuntimeError):
            node: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": here[0]}}
            await self._api.send("POST", "/api/v1/nodes", node)
        missing = max(0, 2000 - len(self.world.pods))
        await at_once(self.world.make_pod(here) for _ in range(missing + 20))
        await self._quiet(watcher)
        watcher.writes.clear()
        turn = self._turns(here)
        share = await self._share(controller, _evenly(turn, self._seconds))
        return share, max(watcher.writes.values(), default=0) / self._seconds

    def _turns(self, here: list[str]) -> Iterator[Coroutine[Any, Any, None]]:
        async def turn() -> None:
            # The newest are those on the node without an agent.
            gone = self.world.pods.pop(-20)
            await asyncio.gather(self.world.make_pod(here), self.world.delete(gone))

        return (turn() for _ in range(10 * self._seconds))

    async def _share(self, controller: Program, work: Coroutine[Any, Any, None]) -> float:
        """CPU in percent of a core while ``work`` goes on."""
        before, begun = cpu_seconds(controller.child.pid), time.monotonic()
        await work
        return 100 * (cpu_seconds(controller.child.pid) - before) / (time.monotonic() - begun)

    async def _native(self) -> list[float]:
        """From a delete to the fall of a ResourceQuota."""
        namespace = "native"
        path = f"/api/v1/namespaces/{namespace}/resourcequotas"
        if not (await self._api.send("GET", path))["items"]:
            quota: Object = {
                "apiVersion": "v1",
                "kind": "ResourceQuota",
                "metadata": {"name": "native"},
                "spec": {"hard": {"hugepages-2Mi": "1Ti"}},
            }
            await self._api.send("POST", path, quota)
            await asyncio.sleep(5)
        used, changed = [""], asyncio.Event()

        def tell(_: str, quota: Object) -> None:
            used[0] = (quota.get("status", {}).get("used") or {}).get("hugepages-2Mi", "")
            changed.set()

        watching = asyncio.create_task(self._api.watch(path, tell))
        took = []
        for _ in range(self._ends):
            await self.world.make_pod(["without-agent"], namespace)
            await asyncio.sleep(0.5)
            before, sent = used[0], time.monotonic()
            await self.world.delete(self.world.pods.pop())
            async with asyncio.timeout(60):
                while used[0] == before:
                    changed.clear()
                    await changed.wait()
            took.append(time.monotonic() - sent)
        watching.cancel()
        return took


async def _evenly(work: Iterator[Coroutine[Any, Any, None]], seconds: float) -> None:
    """All of ``work``, its parts begun at even distances over ``seconds``."""
    parts = list(work)
    begun = time.monotonic()
    tasks = []
    for number, part in enumerate(parts):
        await asyncio.sleep(max(0.0, begun + seconds * number / len(parts) - time.monotonic()))
        tasks.append(asyncio.create_task(part))
    await asyncio.gather(*tasks)
    await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))


def resident(pid: int) -> tuple[float, float]:
    """MiB now, and at most."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    now, most = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def sizes(arguments: argparse.Namespace) -> list[tuple[int, int, int]]:
    """The lists side by side, the last of a shorter one repeated."""
    lists = (arguments.pods, arguments.quotas, arguments.nodes)
    longest = max(map(len, lists))
    pods, quotas, nodes = ([*each, *each[-1:] * (longest - len(each))] for each in lists)
    return list(zip(pods, quotas, nodes, strict=True))


def table(figures: list[Figures]) -> str:
    """For people and for the docs."""
    lines = [
        "| pods, quotas, nodes | first count | ready | memory (peak) | at rest | heartbeats"
        " | churn | fall, native |",
        f"|{'---|' * 8}",
    ]
    for each in figures:
        first = "counted" if each.first_count is None else str(each.first_count)
        lines.append(
            f"| {each.pods:,}, {each.quotas:,}, {each.nodes:,} | {first} | {each.ready}"
            f" | {each.resident:.0f} ({each.peak:.0f}) MiB"
            f" | {each.rest_cpu:.1f} %, {each.rest_writes} writes"
            f" | {each.heartbeat_cpu:.1f} %, {each.heartbeat_writes} writes"
            f" | {each.churn_cpu:.1f} %, {each.churn_most_writes:.1f} writes/s of one quota"
            f" | {each.fall_p50:.2f} s (most {each.fall_most:.2f}),"
            f" {each.native_p50:.2f} s (most {each.native_most:.2f}) |"
        )
    return "\n".join(lines)


async def run(arguments: argparse.Namespace) -> list[Figures]:
    """Measure every size."""
    figures = []
    with ControlPlane() as plane:
        chart = charts.render(plane.assets / "helm")
        charts.install(plane, chart)
        plane.create_namespace("native")
        programs = Programs(plane, chart, source=arguments.source)
        try:
            async with Api.of(plane) as api:
                bench = Bench(plane, programs, api, arguments)
                for size in sizes(arguments):
                    figures.append(await bench.measure(*size))
                    print(figures[-1], file=sys.stderr, flush=True)
        finally:
            programs.stop()
    return figures


def main() -> None:
    """Measure, print the table, write the JSON."""

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pods", type=numbers, default=[1000, 10000, 50000])
    parser.add_argument("--quotas", type=numbers, default=[100, 10000])
    parser.add_argument("--nodes", type=numbers, default=[500, 5000])
    parser.add_argument("--seconds", type=int, default=20, help="that each share is measured for")
    parser.add_argument("--ends", type=int, default=20, help="pods that end, for the median")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--source", type=Path, help="another tree's folder operator, to compare")
    arguments = parser.parse_args()
    figures = asyncio.run(run(arguments))
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"figures": [asdict(each) for each in figures]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
