"""Kill, pause and restart programs, in a random order that depends only on a seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.chaos.forwarder import Forwarder
from tests.kube.control_plane import ControlPlane
from tests.kube.process import Child
from tests.kube.programs import Program

NOTICED: Final = 1.0
"""A paused replica still gets connections for this time, in seconds."""
LEASE: Final = 22.0
"""After a pause of this length, in seconds, another controller certainly can lead."""
ROUND: Final = 60.0
"""The length of a round in a long run, in seconds: a new leader has time to lead, and to end the
reservations of creates that failed. Until then the quotas are full."""
UP_TIMEOUT: Final = 90.0
"""The timeout for a program to be ready on a busy machine, in seconds."""


@dataclass(frozen=True)
class Fault:
    """A fault of a program; `kind`: kill or pause; `after`, `lasts`: in seconds."""

    after: float
    target: str
    kind: str
    lasts: float

    def __str__(self) -> str:
        return f"{self.after:5.1f} s: {self.kind} {self.target} for {self.lasts:.1f} s"


def plan(seconds: float, seed: int, lifetime: float) -> list[Fault]:
    """Choose the faults within `seconds`: every kind for every target in each round.

    In each round, one pause of a replica, the API server or etcd is longer than `lifetime`, which
    is the life of a reservation plus the time for the response. Each round also kills or pauses the
    leader. With several rounds, a pause of the leader lasts until another controller leads.
    """
    chance = random.Random(f"{seed} faults")
    replicas = ("replica 0", "replica 1", "replica 2")
    planned = []
    rounds = rounds_of(seconds)
    for number in range(rounds):
        length = seconds / rounds
        targets = (*replicas, "kube-apiserver", "etcd")
        faults = [(target, kind) for target in targets for kind in ("kill", "pause")]
        chance.shuffle(faults)
        # The leader is first, because the next election takes longest.
        faults.insert(0, ("leader", chance.choice(("kill", "pause"))))
        long = chance.choice([each for each in faults[1:] if each[1] == "pause"])
        for place, (target, kind) in enumerate(faults):
            lasts = chance.uniform(0, 1.5)
            if kind == "pause":
                lasts = lifetime + 2 if (target, kind) == long else chance.uniform(0.2, 2.5)
                if target == "leader" and rounds > 1:
                    lasts = LEASE
            after = number * length + (place + chance.random()) * length / len(faults)
            planned.append(Fault(after, target, kind, lasts))
    return planned


def rounds_of(seconds: float) -> int:
    """The number of rounds in a run of `seconds`."""
    return max(1, round(seconds / ROUND))


class Faults:
    """Runs the faults, and restarts programs that have ended."""

    def __init__(
        self,
        plane: ControlPlane,
        replicas: list[Program],
        controllers: list[Program],
        forwarder: Forwarder,
        leader: Callable[[], str],
        say: Callable[[str], None],
    ) -> None:
        self._plane = plane
        self._replicas = {f"replica {place}": each for place, each in enumerate(replicas)}
        self._controllers = {each.identity: each for each in controllers}
        self._forwarder = forwarder
        self._leader = leader
        self._say = say
        self._busy = {
            name: asyncio.Lock()
            for name in (*self._replicas, *self._controllers, "kube-apiserver", "etcd")
        }
        self.done: list[Fault] = []

    async def run(self, faults: list[Fault]) -> None:
        """Run all faults at their times; return when all are over."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._inflict(fault))

    async def heal(self) -> None:
        """Restart programs that ended by themselves, as kubelet does, until cancelled."""
        while True:
            await asyncio.sleep(0.5)
            for name in self._busy:
                if not self._busy[name].locked():
                    async with self._busy[name]:
                        await self._raise(name)

    async def all_ready(self) -> None:
        """Wait until every program is ready, while `heal` restarts a leader that still ends.

        Raises TimeoutError.
        """
        async with asyncio.timeout(UP_TIMEOUT):
            for program in (*self._replicas.values(), *self._controllers.values()):
                while not await asyncio.to_thread(program.is_ready):
                    await asyncio.sleep(0.2)

    async def _inflict(self, fault: Fault) -> None:
        await asyncio.sleep(fault.after)
        name = fault.target
        if name == "leader":
            name = self._leader()
            if name not in self._controllers:
                return
        async with self._busy[name]:
            self._say(str(fault))
            if fault.kind == "kill":
                await asyncio.to_thread(self._child(name).kill9)
                await asyncio.sleep(fault.lasts)
                await self._raise(name)
            else:
                await self._pause(name, fault.lasts)
            self.done.append(fault)

    async def _pause(self, name: str, seconds: float) -> None:
        child = self._child(name)
        child.pause()
        try:
            if name in self._replicas and seconds > NOTICED:
                await asyncio.sleep(NOTICED)
                self._forwarder.leave_out(port_of(self._replicas[name]))
                seconds -= NOTICED
            await asyncio.sleep(seconds)
        finally:
            child.resume()
            if name in self._replicas:
                self._forwarder.take_in(port_of(self._replicas[name]))

    async def _raise(self, name: str) -> None:
        # A client that connects may for a moment have the free port as its own port: try again.
        for _ in range(50):
            if self._child(name).exit_status is None:
                return
            if name in ("kube-apiserver", "etcd"):
                await asyncio.to_thread(self._plane.start_again, name)
            else:
                program = self._replicas.get(name) or self._controllers[name]
                await asyncio.to_thread(program.start_again)
            await asyncio.sleep(0.4)

    def _child(self, name: str) -> Child:
        program = self._replicas.get(name) or self._controllers.get(name)
        return self._plane.child(name) if program is None else program.child


def port_of(program: Program) -> int:
    """The port of the program's server."""
    return int(program.address.rpartition(":")[2])
