"""Measure and profile one count of the controller, without an API server.

    python -m benchmarks.recount [--pods N] [--quotas N] [--nodes N] [--times N] [--profile WHAT]

The benchmark prints the CPU time of counts of a Recounter with synthetic objects: the first count,
which writes every quota; a count without a change; and a count after each kind of change.
``--profile`` profiles one of these counts.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from hugetlb_quota.api.quota import FINALIZER
from hugetlb_quota.controller.recounter import Recounter
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.resources import (
    HUGETLB_NODES,
    HUGETLB_QUOTAS,
    NAMESPACES,
    NODES,
    PODS,
    Resource,
)

Json = dict[str, Any]
FAMILY = 10


class Store:
    """The objects of a fake API server, and their watches."""

    def __init__(self) -> None:
        self.version = 1000
        self.objects: dict[Resource, dict[tuple[str, str], Json]] = {
            kind: {} for kind in (PODS, HUGETLB_QUOTAS, HUGETLB_NODES, NODES, NAMESPACES)
        }
        self._watches: dict[Resource, list[asyncio.Queue[Json]]] = {}
        self.writes = 0

    def put(self, kind: Resource, raw: Json, event: str = "MODIFIED") -> None:
        """Store an object, and send the event to all watches."""
        self.version += 1
        meta = raw["metadata"]
        raw = {**raw, "metadata": {**meta, "resourceVersion": str(self.version)}}
        key = (meta.get("namespace", ""), meta["name"])
        if event == "DELETED":
            self.objects[kind].pop(key, None)
        else:
            self.objects[kind][key] = raw
        for queue in self._watches.get(kind, ()):
            queue.put_nowait({"type": event, "object": raw})

    async def list_page(self, resource: Resource, *_: Any, **__: Any) -> Json:
        items = list(self.objects[resource].values())
        return {"metadata": {"resourceVersion": str(self.version)}, "items": items}

    async def watch(self, resource: Resource, *_: Any, **__: Any) -> AsyncIterator[Json]:
        queue: asyncio.Queue[Json] = asyncio.Queue()
        self._watches.setdefault(resource, []).append(queue)
        while True:
            yield await queue.get()

    async def get(self, resource: Resource, name: str, namespace: str = "", **_: Any) -> Json:
        return self.objects[resource][namespace or "", name]

    async def replace(
        self, resource: Resource, name: str, body: Json, namespace: str = "", **_: Any
    ) -> Json:
        self.writes += 1
        old = self.objects[resource][namespace or "", name]
        self.put(resource, {**old, "status": body["status"]} if "status" in body else body)
        return self.objects[resource][namespace or "", name]

    async def create(self, resource: Resource, body: Json, *_: Any, **__: Any) -> Json:
        return body


def pod(number: int, quotas: int, nodes: int) -> Json:
    """The pod ``number``."""
    family, team = divmod(number % quotas, FAMILY)
    resources = {"requests": {"hugepages-2Mi": "2Mi"}}
    return {
        "metadata": {
            "namespace": f"ns-{family}",
            "name": f"p-{number}",
            "uid": f"6e3f1f0a-0000-4000-8000-{number:012d}",
            "labels": {"team": f"team-{max(1, team)}", "app": "database"},
        },
        "spec": {
            "nodeName": f"node-{number % nodes}",
            "containers": [{"name": "main", "image": "none", "resources": resources}],
        },
        "status": {"phase": "Running"},
    }


def report(node: int, pods: list[Json], seen: int, beat: int = 0) -> Json:
    """A node's report."""
    entries = [
        {
            "uid": each["metadata"]["uid"],
            "namespace": each["metadata"]["namespace"],
            "name": each["metadata"]["name"],
            "labels": each["metadata"]["labels"],
            "live": True,
            "charged": {"hugepages-2Mi": "2Mi"},
            "demand": {"hugepages-2Mi": "2Mi"},
        }
        for each in pods
    ]
    status = {
        "bootID": "boot",
        "podsResourceVersion": str(seen),
        "reportedAt": f"2030-01-01T00:{beat // 60:02d}:{beat % 60:02d}Z",
        "pods": entries,
    }
    return {"metadata": {"name": f"node-{node}"}, "spec": {}, "status": status}


def quota(number: int) -> Json:
    """The quota ``number``: the first of each family is the root of the others."""
    family, team = divmod(number, FAMILY)
    name = f"team-{team}" if team else "root"
    spec: Json = {
        "hard": {"hugepages-2Mi": "1Ti"},
        "podSelector": {"matchLabels": {"team": name}},
    }
    if team:
        spec["parentRef"] = {"namespace": f"ns-{family}", "name": "root"}
    meta = {
        "namespace": f"ns-{family}",
        "name": name,
        "uid": f"q-{number}",
        "generation": 1,
        "finalizers": [FINALIZER],
    }
    return {"metadata": meta, "spec": spec}


class Bench:
    """A Recounter and its objects."""

    def __init__(self, pods: int, quotas: int, nodes: int) -> None:
        self.sizes = (pods, quotas, nodes)
        self.store = Store()
        for number in range(quotas // FAMILY):
            self.store.put(NAMESPACES, {"metadata": {"name": f"ns-{number}", "labels": {}}})
        for number in range(quotas):
            self.store.put(HUGETLB_QUOTAS, quota(number))
        self.on: list[list[Json]] = [[] for _ in range(nodes)]
        for number in range(pods):
            made = pod(number, quotas, nodes)
            self.store.put(PODS, made)
            self.on[number % nodes].append(made)
        for number in range(nodes):
            self.store.put(
                NODES,
                {
                    "metadata": {"name": f"node-{number}"},
                    "status": {"nodeInfo": {"bootID": "boot"}},
                },
            )
            self.store.put(HUGETLB_NODES, report(number, self.on[number], 1))
        self.next = pods
        self.recounter = Recounter(cast(Connection, self.store), "bench", self._term)

    async def _term(self) -> int:
        return 1

    async def begin(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Start the informers, and wait until all have listed."""
        informers = self.recounter._informers.all
        tasks = [group.create_task(each.run()) for each in informers]
        for each in informers:
            await each.synced.wait()
        await self.recounter._term.is_held()
        return tasks

    def create_pod(self) -> None:
        _, quotas, nodes = self.sizes
        self.store.put(PODS, pod(self.next, quotas, nodes), "ADDED")
        self.next += 1

    def heartbeat(self) -> None:
        self.store.put(HUGETLB_NODES, report(0, self.on[0], 1, self.store.version % 3600))

    def advance_report(self) -> None:
        self.store.put(HUGETLB_NODES, report(0, self.on[0], self.store.version))

    def change_selector(self) -> None:
        changed = quota(1)
        changed["metadata"]["generation"] = self.store.version
        changed["spec"]["podSelector"]["matchLabels"]["app"] = str(self.store.version)
        self.store.put(HUGETLB_QUOTAS, changed)

    def nothing(self) -> None:
        """Change nothing."""


async def measure(arguments: argparse.Namespace) -> None:
    """Print the figures."""
    made = time.process_time()
    bench = Bench(arguments.pods, arguments.quotas, arguments.nodes)
    print(f"{'made':<28}{time.process_time() - made:9.3f} s")
    kinds: dict[str, Callable[[], None]] = {
        "no change": bench.nothing,
        "a heartbeat": bench.heartbeat,
        "a report that advanced": bench.advance_report,
        "a new pod": bench.create_pod,
        "a changed selector": bench.change_selector,
    }
    async with asyncio.TaskGroup() as group:
        begun = time.process_time()
        tasks = await bench.begin(group)
        print(f"{'informers':<28}{time.process_time() - begun:9.3f} s")
        await count("first", bench, 1, bench.nothing, arguments.profile)
        await count("second", bench, 1, bench.nothing, arguments.profile)
        for name, change in kinds.items():
            await count(name, bench, arguments.times, change, arguments.profile)
        for task in tasks:
            task.cancel()


async def count(
    name: str, bench: Bench, times: int, change: Callable[[], None], profiled: str
) -> None:
    """Change and count ``times`` times; print the median, and the writes of the last count."""
    took, profile = [], cProfile.Profile()
    for _ in range(times):
        change()
        await asyncio.sleep(0.05)
        bench.store.writes = 0
        if name == profiled:
            profile.enable()
        begun = time.process_time()
        await bench.recounter._recount()
        took.append(time.process_time() - begun)
        profile.disable()
    print(f"{name:<28}{statistics.median(took):9.4f} s  {bench.store.writes} writes", flush=True)
    if name == profiled:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
    await asyncio.sleep(1)


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pods", type=int, default=50_000)
    parser.add_argument("--quotas", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=5_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--profile", default="", help="the name of the printed line to profile")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
