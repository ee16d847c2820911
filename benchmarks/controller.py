"""Measure the controller: start, memory, work at rest and under churn, and delay.

    python -m benchmarks.controller [--pods 1000,10000,50000] [--quotas 100,10000]
        [--nodes 500,5000] [--seconds 20] [--ends 20] [--json FILE] [--source FOLDER]

The benchmark starts its own control plane, with the controller as in the chart and without
admission. The first size is the first number of each list, and so on; the last number of a shorter
list is repeated. From one size to the next, objects are only added. Pods are bound to Nodes
without a kubelet, and each Node has a HugeTLBNode that reports its pods. CPU is in percent of one
core.

- ``first count``: the time from the program's start until every new quota is counted.
- ``ready``: the time from a later start until a pod that ended meanwhile is uncounted.
- For both: the peak memory; ``stall``, the longest wait for an answer of /healthz, requested twenty
  times a second; ``renewed``, the longest time between two renewals of the Lease.
- ``rest``: nothing changes.
- ``heartbeats``: each node reports once a minute, and only the time changes.
- ``churn``: each second ten pods are created and ten are deleted, among at least 2,000 pods.
- ``fall``: the time from the report without a gone pod until the counter falls.
- ``native``: the time from a delete until the kube-controller-manager lowers a ResourceQuota's use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.controller_watch import Pulse, Watcher
from benchmarks.controller_world import QUOTAS, REPORTS, Api, World, at_once, say
from benchmarks.processes import cpu_seconds
from tests.kube import chart as charts
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program, Programs

#: The timeout for the fall of a ResourceQuota, in seconds.
NATIVE_TIMEOUT = 60.0


@dataclass(frozen=True)
class Start:
    """A start of the controller. ``took``: seconds until it has counted.

    ``peak`` is in MiB; ``stall`` and ``renewed`` are in seconds.
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
    """The measurements of one size, in seconds, MiB, percent of a core, writes per second."""

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
        """Measure all figures of one size."""
        await self.world.grow(pods, quotas, nodes)
        watcher = Watcher()
        watching = asyncio.create_task(self._api.watch(QUOTAS, watcher.notify))
        try:
            first = await self._first_count(watcher)
            say(f"first count: {first}")
            controller, ready = await self._ready(watcher)
            say(f"ready: {ready}")
            try:
                await self._quiet(watcher)
                rest = await self._rest(controller, watcher)
                say(f"at rest: {rest}")
                heartbeats = await self._heartbeats(controller, watcher)
                falls = await self._falls(watcher)
                say(f"falls: {falls}")
                memory = resident(controller.child.pid)
                churn = await self._churn(controller, watcher)
                say(f"churn: {churn}")
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
        """Measure the first count; None if all quotas were counted at a smaller size."""
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
        """Start a controller, and wait until ``holds()``."""
        started = time.monotonic()
        controller = await self._start()
        try:
            pulse = Pulse(self._api, controller)
            async with pulse.measured():
                took = await watcher.until(holds, controller) - started
            _, peak = resident(controller.child.pid)
        except BaseException:
            await asyncio.to_thread(controller.stop)
            raise
        return controller, Start(took, peak, pulse.stall, pulse.renewed)

    async def _quiet(self, watcher: Watcher) -> None:
        """Wait until no quota has changed for 8 seconds."""
        with suppress(TimeoutError):
            while True:
                watcher.changed.clear()
                async with asyncio.timeout(8):
                    await watcher.changed.wait()

    async def _end_one(self, watcher: Watcher, *, started: bool = True) -> tuple[float, str, str]:
        """End a pod and report the end; return the report's time, the quota, and its use before."""
        pod = self.world.pods.pop(0)
        meta = pod["metadata"]
        quota = f"{meta['namespace']}/{meta['labels']['team']}"
        before = watcher.used[quota]
        version = await self.world.delete(pod)
        if started:
            await asyncio.sleep(0.7)  # the controller counts the end within this time
        sent = time.monotonic()
        await self.world.report(pod["spec"]["nodeName"], version)
        return sent, quota, before

    async def _ready(self, watcher: Watcher) -> tuple[Program, Start]:
        _, quota, before = await self._end_one(watcher, started=False)
        return await self._start_until(watcher, lambda: watcher.used[quota] != before)

    async def _rest(self, controller: Program, watcher: Watcher) -> tuple[float, int]:
        """Measure the CPU, and the writes of quotas and of HugeTLBNodes."""
        writes = [0]

        def notify(kind: str, _: Object) -> None:
            writes[0] += kind == "MODIFIED"

        watching = asyncio.create_task(self._api.watch(REPORTS, notify))
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
        """Measure the CPU, and the writes per second of the most written quota."""
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
            # The newest pods are on the node without an agent.
            gone = self.world.pods.pop(-20)
            await asyncio.gather(self.world.make_pod(here), self.world.delete(gone))

        return (turn() for _ in range(10 * self._seconds))

    async def _share(self, controller: Program, work: Coroutine[Any, Any, None]) -> float:
        """Await ``work``; return the controller's CPU in percent of a core."""
        before, begun = cpu_seconds(controller.child.pid), time.monotonic()
        await work
        return 100 * (cpu_seconds(controller.child.pid) - before) / (time.monotonic() - begun)

    async def _native(self) -> list[float]:
        """Measure the time from a delete until a ResourceQuota falls.

        With many nodes and pods the kube-controller-manager may be too late: then the last time is
        NATIVE_TIMEOUT.
        """
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

        def notify(_: str, quota: Object) -> None:
            used[0] = (quota.get("status", {}).get("used") or {}).get("hugepages-2Mi", "")
            changed.set()

        watching = asyncio.create_task(self._api.watch(path, notify))
        took = []
        for _ in range(self._ends):
            await self.world.make_pod(["without-agent"], namespace)
            await asyncio.sleep(0.5)
            before, sent = used[0], time.monotonic()
            await self.world.delete(self.world.pods.pop())
            try:
                async with asyncio.timeout(NATIVE_TIMEOUT):
                    while used[0] == before:
                        changed.clear()
                        await changed.wait()
            except TimeoutError:
                took.append(NATIVE_TIMEOUT)
                break
            took.append(time.monotonic() - sent)
        watching.cancel()
        return took


async def _evenly(work: Iterator[Coroutine[Any, Any, None]], seconds: float) -> None:
    """Await all of ``work``; start its parts at even intervals over ``seconds``."""
    parts = list(work)
    begun = time.monotonic()
    tasks = []
    for number, part in enumerate(parts):
        await asyncio.sleep(max(0.0, begun + seconds * number / len(parts) - time.monotonic()))
        tasks.append(asyncio.create_task(part))
    await asyncio.gather(*tasks)
    await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))


def resident(pid: int) -> tuple[float, float]:
    """The resident memory now and at its peak, in MiB."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    now, most = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def sizes(arguments: argparse.Namespace) -> list[tuple[int, int, int]]:
    """The sizes: pods, quotas, nodes. The last number of a shorter list is repeated."""
    lists = (arguments.pods, arguments.quotas, arguments.nodes)
    longest = max(map(len, lists))
    pods, quotas, nodes = ([*each, *each[-1:] * (longest - len(each))] for each in lists)
    return list(zip(pods, quotas, nodes, strict=True))


def table(figures: list[Figures]) -> str:
    """The figures as a Markdown table."""
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
    parser.add_argument("--seconds", type=int, default=20, help="the duration of each measurement")
    parser.add_argument("--ends", type=int, default=20, help="the number of pods that end")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--source", type=Path, help="the folder operator of another source tree")
    arguments = parser.parse_args()
    figures = asyncio.run(run(arguments))
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"figures": [asdict(each) for each in figures]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
