"""Ten thousand random operations, the agent killed at random: at rest nothing is amiss.

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

from hugetlb_quota.node.charged_ranges import ChargedRanges
from hugetlb_quota.node.hugetlbfs import Superblock, scan
from tests.kernel.agent_process import ID, MIB, Agent, Api, Json, Pod, until
from tests.testnode import cgroup_tree, naming
from tests.tracking import PAGE, at
from tests.workloads import command

SEED = int(os.environ.get("STRESS_SEED") or random.randrange(2**32))
OPERATIONS = int(os.environ.get("STRESS_OPERATIONS") or 10_000)
#: Pods at the same time, and operations of each before it ends by itself.
PLACES, EACH = 4, 500


@dataclass
class Stress:
    """Pods that come and go, and an agent that is killed meanwhile."""

    agent: Agent
    api: Api
    directory: Path
    sockets: Path
    make: Callable[[str], Pod]
    operations: int = 0
    pods: int = 0
    kills: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        killer = asyncio.create_task(self._kill_now_and_then())
        try:
            async with asyncio.TaskGroup() as group:
                for place in range(PLACES):
                    group.create_task(self._occupy(place))
        finally:
            self.over.set()
            await killer

    async def _occupy(self, place: int) -> None:
        """Pods in one place, one after the other, until enough was done."""
        dice = random.Random(f"{SEED}-place-{place}")
        while self.operations < OPERATIONS:
            self.pods += 1
            name = f"pod-{self.pods}"
            spec = {"hard": {"hugepages-2Mi": "512Mi"}}
            await self.api.set("hugetlbquotas", name, "q", spec=spec)
            pod = self.make(name)
            await pod.start("48Mi", name)
            # Of a pod whose whole life no agent saw nobody here could know.
            await until(lambda name=name: self.was_listed(name))  # type: ignore[misc]
            procs = pod.cgroup / naming.container_name("systemd", ID) / "cgroup.procs"
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
            await asyncio.to_thread(pod.end)
            await process.wait()
            (self.sockets / name).unlink(missing_ok=True)
            self.operations += done
            await asyncio.sleep(dice.uniform(0.0, 0.3))
            await pod.delete()

    async def _kill_now_and_then(self) -> None:
        dice = random.Random(f"{SEED}-kills")
        while not self.over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), dice.uniform(0.2, 6.0))
            await self.agent.end(signal.SIGKILL)
            self.kills += 1
            await asyncio.sleep(dice.uniform(0.0, 1.0))
            await self.agent.start()
            if dice.random() < 0.5:
                # On a busy machine it may never come that far otherwise.
                await self.agent.ready()

    # What is there at rest, in MiB

    def was_listed(self, name: str) -> bool:
        """Whether the agent has told of it."""
        return any(
            pod["uid"] == name for status in self.api.reports for pod in status.get("pods", ())
        )

    def kernel_counts(self) -> int:
        """All that is left: no pod is there any more."""
        kubepods = self.agent.subtree / naming.kubepods("systemd")
        return int((kubepods / "hugetlb.2MB.rsvd.current").read_text()) // MIB

    def by_pod(self) -> Counter[str]:
        """What files are charged to each pod that is gone."""
        found = Counter[str]()
        for file in self._files():
            found[file["pod"].partition("/")[0]] += int(file["charged"].removesuffix("Mi"))
        return found

    def by_file(self) -> Counter[str]:
        """What is charged in each file."""
        found = Counter[str]()
        for file in self._files():
            found[file["path"]] += int(file["charged"].removesuffix("Mi"))
        return found

    def _files(self) -> list[Json]:
        return [f for f in self.api.status.get("files", ()) if f["mount"] == str(self.directory)]

    def by_quota(self) -> Counter[str]:
        return Counter(
            {quota.partition("/")[0]: amount for quota, amount in self.api.retained().items()}
        )

    def is_settled(self) -> bool:
        if self.api.listed():
            return False
        return (
            sum(self.by_quota().values()) == self.kernel_counts()
            and "" not in self.by_quota()
            and self.by_pod() == self.by_quota()
        )

    async def difference(self) -> str:
        """As the agent's metrics tell it, in bytes."""
        _, text = await self.agent.probe("/metrics")
        (row,) = (
            line
            for line in text.splitlines()
            if line.startswith('hugetlb_quota_difference_bytes{page_size="hugepages-2Mi"}')
        )
        return row.split()[-1]

    def picture(self) -> str:
        return (
            f"listed {self.api.listed()}\nkernel {self.kernel_counts()}\n"
            f"quotas {sum(self.by_quota().values())} {dict(self.by_quota())}\n"
            f"pods   {sum(self.by_pod().values())} {dict(self.by_pod())}\n"
            f"files  {dict(self.by_file())}\nexact {self.api.exact()}"
        )


async def charged_in(superblock: Superblock, cgroup: Path) -> Counter[str]:
    """MiB that the kernel has charged in each file; whoever asks must not be in a pod."""
    cgroup.mkdir(exist_ok=True)
    cgroup_tree.write(cgroup / "hugetlb.2MB.rsvd.max", "0")
    found = Counter[str]()
    async with ChargedRanges(cgroup) as ranges:
        for file in scan(superblock):
            runs = await ranges.of(superblock, file.path, file.inode, 64)
            if runs:
                found[file.path] = sum(last - first for first, last in runs) * PAGE // MIB
    return found


@pytest.mark.timeout(900)
async def test_at_rest_every_page_is_charged_to_somebody_and_every_file_is_right(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with capsys.disabled():
        print(f"\nSTRESS_SEED={SEED} STRESS_OPERATIONS={OPERATIONS}", flush=True)
    pages(160)
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    await agent.start()
    await agent.ready()
    stress = Stress(agent, api, hugetlbfs, sockets, pod)
    await stress.run()
    print(f"{stress.operations} operations of {stress.pods} pods, {stress.kills} kills")
    await agent.ready()
    superblock = at(hugetlbfs)
    try:
        await until(stress.is_settled, 60)
    except TimeoutError:
        pytest.fail(
            f"{stress.picture()}\nreally {await charged_in(superblock, agent.subtree / 'ask')}"
        )
    really = await charged_in(superblock, agent.subtree / "ask")
    assert stress.by_file() == really, stress.picture()
    assert await stress.difference() == "0.0"

    # What is removed then relieves whom it should, to the last byte.
    for file in hugetlbfs.iterdir():
        file.unlink()
    await until(lambda: stress.is_settled() and not stress.kernel_counts(), 60)
    assert api.retained() == {}
    print(stress.picture())
