"""Simulated nodes: a scheduler binds pods to the nodes; nodes are lost, boot and come back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from tests.chaos.client import Answer, Client
from tests.chaos.faults import rounds_of
from tests.chaos.machine import Machine
from tests.chaos.node_programs import Agent, Kubelet, path_of
from tests.chaos.observer import Ledger, Pod

NAMES: Final = ("chaos-n1", "chaos-n2", "chaos-n3")
BOUND: Final = 0.8
"""The share of pods that get a node."""
KINDS: Final = ("partition", "silent agent", "reboot", "out of service")
LONG: Final = 20.0
"""Seconds of a long partition or silence."""
NODES: Final = "/api/v1/nodes"
REQUIRED_INFO: Final = (
    *("machineID", "systemUUID", "kernelVersion", "osImage", "containerRuntimeVersion"),
    *("kubeletVersion", "kubeProxyVersion", "operatingSystem", "architecture"),
)
TAINT: Final = {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}


@dataclass(frozen=True)
class NodeFault:
    """A fault of a node; `kind`: of KINDS; `after`, `lasts`: in seconds."""

    after: float
    node: str
    kind: str
    lasts: float

    def __str__(self) -> str:
        return f"{self.after:5.1f} s: {self.kind}, {self.node}, for {self.lasts:.1f} s"


def plan(seconds: float, seed: int) -> list[NodeFault]:
    """Choose the faults of nodes within `seconds`: every kind in each round.

    With several rounds, half of the partitions and silences are long.
    """
    chance = random.Random(f"{seed} nodes")
    rounds = rounds_of(seconds)
    length = seconds / rounds
    planned = []
    for number in range(rounds):
        kinds = list(KINDS)
        chance.shuffle(kinds)
        for place, kind in enumerate(kinds):
            lasts = chance.uniform(0.5, 4)
            if rounds > 1 and kind in KINDS[:2] and chance.random() < 0.5:
                lasts = LONG
            after = number * length + (place + chance.random()) * length / len(kinds)
            planned.append(NodeFault(after, chance.choice(NAMES), kind, lasts))
    return planned


class Node:
    """A Node of the API, with its machine, its kubelet and its agent."""

    def __init__(
        self, name: str, ledger: Ledger, client: Client, seed: int, seen: Counter[str]
    ) -> None:
        self.machine = Machine(name, ledger, random.Random(f"{seed} {name}"), seen)
        self._kubelet = Kubelet(self.machine, ledger, client)
        self._agent = Agent(self.machine, ledger, client)
        self._ledger = ledger
        self._client = client

    async def start(self) -> None:
        """Make the Node, boot, and report for the first time."""
        metadata = {"name": self.machine.name}
        body = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        while (await self._client.send("POST", NODES, body)).status not in (201, 409):
            await asyncio.sleep(0.2)
        await self._boot()
        while not await self._agent.report():
            await asyncio.sleep(0.2)

    async def run(self) -> None:
        """Run kubelet and agent until the task is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kubelet.run())
            group.create_task(self._agent.run())

    async def suffer(self, fault: NodeFault) -> None:
        """Let `fault` happen, and repair the node."""
        if fault.kind == "partition":
            self._kubelet.connected = self._agent.connected = False
            await self._patch("/status", {"status": ready("Unknown")})
            await asyncio.sleep(fault.lasts)
            await self._patch("/status", {"status": ready("True")})
            self._kubelet.connected = self._agent.connected = True
        elif fault.kind == "silent agent":
            self._agent.running = False
            await asyncio.sleep(fault.lasts)
            self._agent.running = True
        else:
            self.machine.power_off()
            if fault.kind == "out of service":
                await self._patch("", {"spec": {"taints": [TAINT]}})
            await asyncio.sleep(fault.lasts)
            if fault.kind == "out of service":
                await self._patch("", {"spec": {"taints": None}})
            await self._boot()
        self.machine.seen[fault.kind] += 1

    async def _boot(self) -> None:
        """Start the machine; kubelet writes the boot ID before it starts a pod."""
        self.machine.boot += 1
        info = {**dict.fromkeys(REQUIRED_INFO, ""), "bootID": self.machine.boot_id}
        answer = await self._patch("/status", {"status": {"nodeInfo": info, **ready("True")}})
        while self._ledger.revision < int(answer.metadata["resourceVersion"]):
            await asyncio.sleep(0.05)
        self.machine.power_on()

    async def _patch(self, subresource: str, change: dict[str, Any]) -> Answer:
        """Send the change again and again, until the API server has changed the Node."""
        while True:
            path = f"{NODES}/{self.machine.name}{subresource}"
            answer = await self._client.send("PATCH", path, change)
            if answer.done:
                return answer
            await asyncio.sleep(0.2)


class Nodes:
    """All simulated nodes, and a scheduler that binds some pods. `seen` counts what happened."""

    def __init__(
        self, ledger: Ledger, client: Client, seed: int, say: Callable[[str], None]
    ) -> None:
        self.seen: Counter[str] = Counter()
        self._ledger = ledger
        self._client = client
        self._seed = seed
        self._say = say
        self._nodes = {name: Node(name, ledger, client, seed, self.seen) for name in NAMES}
        self._busy = {name: asyncio.Lock() for name in NAMES}

    async def start(self) -> None:
        """Make all nodes, and wait for the first report of each."""
        await asyncio.gather(*(node.start() for node in self._nodes.values()))

    async def run(self) -> None:
        """Run all kubelets and agents until the task is cancelled."""
        async with asyncio.TaskGroup() as group:
            for node in self._nodes.values():
                group.create_task(node.run())

    async def suffer(self, faults: list[NodeFault]) -> None:
        """Let all faults happen at their times; return when all nodes are repaired."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._suffer(fault))

    def quiet(self) -> None:
        """From now on, pods and files change only after a request to the API."""
        for node in self._nodes.values():
            node.machine.quiet = True

    async def schedule(self) -> None:
        """Bind some of the pods, as a scheduler, until the task is cancelled."""
        chance = random.Random(f"{self._seed} scheduler")
        while True:
            await asyncio.sleep(chance.uniform(0.05, 0.3))
            waiting = [
                pod
                for pod in self._ledger.pods.values()
                if not (pod.node or pod.finished or pod.leaving)
                and random.Random(f"{self._seed} {pod.name}").random() < BOUND
            ]
            await asyncio.gather(*(self._bind(pod, chance.choice(NAMES)) for pod in waiting))

    async def _bind(self, pod: Pod, node: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        answer = await self._client.send("POST", f"{path_of(pod)}/binding", body)
        self.seen["bound"] += answer.done

    async def _suffer(self, fault: NodeFault) -> None:
        await asyncio.sleep(fault.after)
        async with self._busy[fault.node]:
            self._say(str(fault))
            await self._nodes[fault.node].suffer(fault)


def ready(status: str) -> dict[str, Any]:
    """The conditions of a Node's status."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {"type": "Ready", "status": status, "reason": "Chaos", "message": ""}
    return {"conditions": [{**condition, "lastHeartbeatTime": now, "lastTransitionTime": now}]}
