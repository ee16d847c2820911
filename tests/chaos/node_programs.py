"""The programs of a simulated node: a kubelet, and an agent with reports that may be late.

Both read the pods from the observer's ledger, which misses no change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from tests.chaos.client import Client
from tests.chaos.machine import Machine
from tests.chaos.observer import FINISHED, PAGES, Ledger, Pod

HUGETLB_NODES: Final = "/apis/hugetlb.dev/v1alpha1/hugetlbnodes"


class Kubelet:
    """Starts, ends and deletes the pods of its node."""

    def __init__(self, machine: Machine, ledger: Ledger, client: Client) -> None:
        self.connected = True
        """Whether requests reach the API server."""
        self._machine = machine
        self._ledger = ledger
        self._client = client

    async def run(self) -> None:
        """Look at all pods again and again, until the task is cancelled."""
        machine = self._machine
        while True:
            await asyncio.sleep(machine.chance.uniform(0.05, 0.3))
            if machine.powered and self.connected:
                pods = self._ledger.bound_to(machine.name)
                await asyncio.gather(*(self._sync(pod) for pod in pods))
            if machine.powered and self.connected:
                for pod in list(self._ledger.gone.values()):
                    if pod.uid in machine.running:
                        machine.end(pod)
            if machine.powered:
                machine.truncate()

    async def _sync(self, pod: Pod) -> None:
        """Start, end or delete a pod if that is due: first on the machine, then in the API."""
        machine = self._machine
        # The tasks of all pods start together, and the ledger may change before this task runs.
        if not machine.powered or self._ledger.pods.get((pod.namespace, pod.name)) != pod:
            return
        is_over = pod.finished or pod.leaving
        if pod.uid in machine.running:
            if not (is_over or machine.is_over(pod)):
                return
            machine.end(pod)
        elif pod.uid not in machine.ended:
            if not is_over:
                machine.start(pod)
                await self._set_phase(pod, "Pending", "Running")
                return
            machine.end(pod)
        if pod.leaving:
            body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
            await self._client.send("DELETE", path_of(pod), body)
        elif not pod.finished:
            await self._set_phase(pod, pod.phase, machine.chance.choice(FINISHED))

    async def _set_phase(self, pod: Pod, before: str, phase: str) -> None:
        change = [
            {"op": "test", "path": "/metadata/uid", "value": pod.uid},
            {"op": "test", "path": "/status/phase", "value": before},
            {"op": "replace", "path": "/status/phase", "value": phase},
        ]
        await self._client.send("PATCH", f"{path_of(pod)}/status", change)


class Agent:
    """Writes the HugeTLBNode of its node."""

    def __init__(self, machine: Machine, ledger: Ledger, client: Client) -> None:
        self.connected = True
        """Whether requests reach the API server."""
        self.running = True
        self._machine = machine
        self._ledger = ledger
        self._client = client
        self._seen: dict[str, Pod] = {}
        """Every pod that the agent has ever seen, by UID."""
        self._object: dict[str, Any] | None = None
        """The metadata of the HugeTLBNode, after a write that succeeded."""

    async def run(self) -> None:
        """Report again and again, until the task is cancelled."""
        while True:
            await asyncio.sleep(self._machine.chance.uniform(0.1, 1))
            if self._goes_on(self._machine.boot):
                await self.report()

    async def report(self) -> bool:
        """Read the node and write a report, maybe late; return whether the write succeeded.

        Read in the order of the real agent: first the pods of the API, then cgroups and charges.
        """
        machine, boot, seen_up_to = self._machine, self._machine.boot, self._ledger.revision
        pods = {pod.uid: pod for pod in self._ledger.bound_to(machine.name)}
        await self._be_late()
        if not self._goes_on(boot):
            return False
        # The ledger has the last labels of a pod that is gone.
        self._seen |= {pod.uid: pod for pod in machine.pods()} | pods
        machine.settle()
        status = {
            "bootID": machine.boot_id,
            "podsResourceVersion": str(seen_up_to),
            "reportedAt": datetime.now(UTC).isoformat(),
            "pods": [*self._entries(pods)],
            "files": [*self._files()],
        }
        await self._be_late()
        return self._goes_on(boot) and await self._write(status)

    def _goes_on(self, boot: int) -> bool:
        """Whether the node is still in ``boot``, with an agent that reaches the API server."""
        machine = self._machine
        return machine.powered and machine.boot == boot and self.connected and self.running

    async def _be_late(self) -> None:
        await asyncio.sleep(self._machine.chance.choice((0, 0, 0.2, 1.5)))

    def _entries(self, pods: dict[str, Pod]) -> Iterable[dict[str, Any]]:
        for uid, pod in self._seen.items():
            may_start = uid in pods and not pods[uid].finished
            live, charged = self._machine.has_cgroup(uid) or may_start, self._machine.charged(pod)
            if live or charged:
                yield {
                    "uid": uid,
                    "namespace": pod.namespace,
                    "name": pod.name,
                    "labels": {"team": pod.team},
                    "live": live,
                    "demand": {PAGES: str(pod.pages)},
                    "charged": {PAGES: str(charged)},
                }

    def _files(self) -> Iterable[dict[str, Any]]:
        for uid, left in self._machine.left.items():
            if left:
                yield {
                    "path": self._seen[uid].name,
                    "mount": "/dev/hugepages",
                    "pageSize": PAGES,
                    "charged": str(left),
                    "uid": uid,
                    "since": datetime.now(UTC).isoformat(),
                }

    async def _write(self, status: dict[str, Any]) -> bool:
        """Write the status by compare-and-swap: a late write never replaces a later write."""
        name = self._machine.name
        if self._object is None:
            found = await self._client.send("GET", f"{HUGETLB_NODES}/{name}")
            if found.status == 404:
                found = await self._client.send("POST", HUGETLB_NODES, self._body({}, {}))
            if not found.done:
                return False
            self._object = found.metadata
        body = self._body(self._object, status)
        written = await self._client.send("PUT", f"{HUGETLB_NODES}/{name}/status", body)
        self._object = written.metadata if written.done else None
        self._machine.seen["reports"] += written.done
        return written.done

    def _body(self, metadata: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
        kept = {each: metadata[each] for each in ("uid", "resourceVersion") if each in metadata}
        return {
            "apiVersion": "hugetlb.dev/v1alpha1",
            "kind": "HugeTLBNode",
            "metadata": {"name": self._machine.name, **kept},
            "status": status,
        }


def path_of(pod: Pod) -> str:
    """The pod's path in the API."""
    return f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
