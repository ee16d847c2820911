"""Ten thousand random operations, the agent killed at random: its reports are the kernel's word.

At rest, and right after each restart: then all pods are frozen, and every file and every pod must
be told as the kernel has it.

``STRESS_SEED`` repeats a run's dice, though not which process comes first;
``STRESS_OPERATIONS`` makes it shorter or longer.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from hugetlb_quota.node.charge_reader import ChargeReader
from tests import seeds
from tests.kernel.agent_process import ID, MIB, Agent, Api, Pod, until
from tests.testnode import cgroup_tree, naming
from tests.tracking import PAGE, SMALL, pages_of
from tests.workloads import command

SEED = seeds.seed("STRESS_SEED")
OPERATIONS = int(os.environ.get("STRESS_OPERATIONS") or 10_000)
#: Pods at the same time, and operations of each before it ends by itself.
PLACES, EACH = 4, 500


@dataclass
class Stress:
    """Pods that come and go, and an agent that is killed meanwhile."""

    agent: Agent
    api: Api
    reader: ChargeReader
    directory: Path
    sockets: Path
    make: Callable[[str], Pod]
    operations: int = 0
    pods: int = 0
    kills: int = 0
    compared: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    #: Who has it may make or end pods.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def kubepods(self) -> Path:
        return self.agent.subtree / naming.kubepods("systemd")

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kill_now_and_then())
            places = [group.create_task(self._occupy(place)) for place in range(PLACES)]
            await asyncio.wait(places)
            self.over.set()

    async def _occupy(self, place: int) -> None:
        """Pods in one place, one after the other, until enough was done."""
        dice = random.Random(f"{SEED}-place-{place}")
        while self.operations < OPERATIONS:
            self.pods += 1
            name = f"pod-{self.pods}"
            pod = self.make(name)
            async with self.turn:
                await pod.start("48Mi", name)
            # Of a pod whose whole life no agent saw nobody here could know the name.
            await until(lambda name=name: self.was_listed(name))  # type: ignore[misc]
            procs = pod.cgroup / naming.container_name("systemd", ID) / "cgroup.procs"
            async with self.turn:  # who enters a frozen cgroup stops there
                process = await asyncio.create_subprocess_exec(
                    *command("churn", f"--seed={SEED}-{place}-{name}", f"--inbox={name}"),
                    *(f"--directory={self.directory}", f"--sockets={self.sockets}"),
                    f"--operations={EACH}",
                    stdout=subprocess.PIPE,
                    preexec_fn=partial(cgroup_tree.write, procs, "0"),
                )
            assert process.stdout
            done = 0
            # Some end by themselves, some are killed in the midst of it.
            with suppress(TimeoutError):
                async with asyncio.timeout(dice.uniform(0.5, 6.0)):
                    async for line in process.stdout:
                        done = int(line)
            async with self.turn:
                await asyncio.to_thread(pod.end)
            await process.wait()
            (self.sockets / name).unlink(missing_ok=True)
            self.operations += done
            await asyncio.sleep(dice.uniform(0.0, 0.3))
            async with self.turn:
                await pod.delete()

    async def _kill_now_and_then(self) -> None:
        dice = random.Random(f"{SEED}-kills")
        while not self.over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), dice.uniform(0.2, 6.0))
            if dice.random() < 0.5:
                await self._restart(dice)
                continue
            async with self.turn:
                cgroup_tree.write(self.kubepods / "cgroup.freeze", "1")
                try:
                    await until(self._is_frozen)
                    await self._restart(dice)
                    await self.equals_the_kernel()
                finally:
                    cgroup_tree.write(self.kubepods / "cgroup.freeze", "0")

    async def _restart(self, dice: random.Random) -> None:
        await self.agent.end(signal.SIGKILL)
        self.kills += 1
        await asyncio.sleep(dice.uniform(0.0, 1.0))
        await self.agent.start()
        if dice.random() < 0.5:
            # On a busy machine it may never come that far otherwise.
            await self.agent.ready()

    def _is_frozen(self) -> bool:
        return "frozen 1" in (self.kubepods / "cgroup.events").read_text()

    # What is told, and what there is; in MiB

    def was_listed(self, name: str) -> bool:
        """Whether the agent has told of it."""
        return any(
            pod["uid"] == name for status in self.api.reports for pod in status.get("pods", ())
        )

    def files_told(self) -> Counter[tuple[str, str]]:
        """What is told of each file, by the pod that is charged for it."""
        found = Counter[tuple[str, str]]()
        for file in self.api.status.get("files", ()):
            if file["mount"] == str(self.directory):
                path = file["path"].removesuffix(" (deleted)")
                found[path, file["uid"]] += int(file["charged"].removesuffix("Mi"))
        return found

    async def files_charged(self) -> Counter[tuple[str, str]]:
        """What the kernel has, of the files on the tests' own hugetlbfs."""
        parents = frozenset({self.agent.subtree.stat().st_ino})
        device = self.directory.stat().st_dev
        found = Counter[tuple[str, str]]()
        for file in (await self.reader.read()).files:
            if file.superblock.device != device:
                continue
            owners = [(each.cgroup, each.end - each.start) for each in file.regions]
            for owner, pages in (*owners, *file.unreserved):
                found[file.path.lstrip("/"), owner.pod(parents) or ""] += pages * PAGE // MIB
        return found

    def live_counted(self) -> dict[str, int]:
        """What each pod's cgroup that is there counts."""
        paths = self.kubepods.glob("*burstable.slice/*-pod*.slice")
        counted = {
            path.name.rpartition("-pod")[2].removesuffix(".slice").replace("_", "-"): (
                pages_of(path)[0]
            )
            for path in paths
        }
        return {name: pages * PAGE // MIB for name, pages in counted.items() if pages}

    async def equals_the_kernel(self) -> None:
        """Wait until all that is told is as it is; nothing moves meanwhile."""
        files, live = await self.files_charged(), self.live_counted()
        total = pages_of(self.kubepods)[0] * PAGE // MIB

        def told() -> tuple[object, ...]:
            status = self.api.charged()
            named = all(each["name"] for each in self.api.status.get("pods", ()))
            there = {name: amount for name, amount in status.items() if name in live}
            return sum(status.values()), there, self.files_told(), named

        try:
            await until(lambda: told() == (total, live, files, True))
        except TimeoutError:
            assert told() == (total, live, files, True)
        self.compared += 1


@pytest.mark.timeout(900)
async def test_at_rest_and_after_each_restart_every_page_is_told_as_the_kernel_has_it(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
    tmp_path: Path,
    reader: ChargeReader,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with capsys.disabled():
        print(f"\nSTRESS_SEED={SEED} STRESS_OPERATIONS={OPERATIONS}", flush=True)
    pages(160)
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    await agent.start()
    await agent.ready()
    stress = Stress(agent, api, reader, hugetlbfs, sockets, pod)
    await stress.run()
    with capsys.disabled():
        print(
            f"{stress.operations} operations of {stress.pods} pods, {stress.kills} kills,"
            f" compared {stress.compared} times"
        )
    await agent.ready()
    await stress.equals_the_kernel()
    await until(lambda: api.listed() == [])

    # What is removed then relieves whom it should, to the last byte.
    for file in hugetlbfs.iterdir():
        file.unlink()
    await stress.equals_the_kernel()
    await until(lambda: api.status["pods"] == [])
    assert pages_of(stress.kubepods, SMALL)[0] == 0
