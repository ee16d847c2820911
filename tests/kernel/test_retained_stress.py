"""Ten thousand random operations while the agent is killed at random: reports equal the kernel.

The test compares at rest, and right after each restart while all pods are frozen. Then the report
must have every file and every pod as the kernel has them.

``STRESS_SEED`` repeats the random choices of a run, but not the order in which processes run.
``STRESS_OPERATIONS`` is the number of operations.
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
#: The number of pods at the same time, and of operations before a pod ends by itself.
PLACES, EACH = 4, 500


@dataclass
class Stress:
    """Pods that come and go, and an agent that is killed again and again."""

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
    #: A task holds this lock while it starts or ends a pod.
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
        """Run one pod after the other, until all operations are done."""
        dice = random.Random(f"{SEED}-place-{place}")
        while self.operations < OPERATIONS:
            self.pods += 1
            name = f"pod-{self.pods}"
            pod = self.make(name)
            async with self.turn:
                await pod.start("48Mi", name)
            # If no agent sees the pod, no report has its name.
            await until(lambda name=name: self.was_listed(name))  # type: ignore[misc]
            procs = pod.cgroup / naming.container_name("systemd", ID) / "cgroup.procs"
            async with self.turn:  # a process that enters a frozen cgroup stops
                process = await asyncio.create_subprocess_exec(
                    *command("churn", f"--seed={SEED}-{place}-{name}", f"--inbox={name}"),
                    *(f"--directory={self.directory}", f"--sockets={self.sockets}"),
                    f"--operations={EACH}",
                    stdout=subprocess.PIPE,
                    preexec_fn=partial(cgroup_tree.write, procs, "0"),
                )
            assert process.stdout
            done = 0
            # Some processes end by themselves. The test kills the others at work.
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
            # Without this wait the agent may never become ready on a busy machine.
            await self.agent.ready()

    def _is_frozen(self) -> bool:
        return "frozen 1" in (self.kubepods / "cgroup.events").read_text()

    # The charges in the report and in the kernel, in MiB.

    def was_listed(self, name: str) -> bool:
        """Return whether a report has listed the pod."""
        return any(
            pod["uid"] == name for status in self.api.reports for pod in status.get("pods", ())
        )

    def files_reported(self) -> Counter[tuple[str, str]]:
        """Return the reported charge of each file, by path and UID."""
        found = Counter[tuple[str, str]]()
        for file in self.api.status.get("files", ()):
            if file["mount"] == str(self.directory):
                path = file["path"].removesuffix(" (deleted)")
                found[path, file["uid"]] += int(file["charged"].removesuffix("Mi"))
        return found

    async def files_charged(self) -> Counter[tuple[str, str]]:
        """Return the kernel's charge of each file on the test's hugetlbfs, by path and UID."""
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
        """Return the counter of each pod's cgroup that exists."""
        paths = self.kubepods.glob("*burstable.slice/*-pod*.slice")
        counted = {
            path.name.rpartition("-pod")[2].removesuffix(".slice").replace("_", "-"): (
                pages_of(path)[0]
            )
            for path in paths
        }
        return {name: pages * PAGE // MIB for name, pages in counted.items() if pages}

    async def equals_the_kernel(self) -> None:
        """Wait until the report equals the kernel, while no charge changes."""
        files, live = await self.files_charged(), self.live_counted()
        total = pages_of(self.kubepods)[0] * PAGE // MIB

        def reported() -> tuple[object, ...]:
            status = self.api.charged()
            named = all(each["name"] for each in self.api.status.get("pods", ()))
            existing = {name: amount for name, amount in status.items() if name in live}
            return sum(status.values()), existing, self.files_reported(), named

        try:
            await until(lambda: reported() == (total, live, files, True))
        except TimeoutError:
            assert reported() == (total, live, files, True)
        self.compared += 1


@pytest.mark.timeout(900)
async def test_reports_equal_the_kernel_at_rest_and_after_each_restart(
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

    # After the files are removed, no pod is charged.
    for file in hugetlbfs.iterdir():
        file.unlink()
    await stress.equals_the_kernel()
    await until(lambda: api.status["pods"] == [])
    assert pages_of(stress.kubepods, SMALL)[0] == 0
