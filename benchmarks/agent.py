"""What the agent takes: CPU time and memory, at rest and with many files.

``python -m benchmarks.agent``: the agent as a process of its own, against a stand-in for the
API server that runs in this one, on real cgroups and a hugetlbfs of its own. Rows:

- *started*: until it is ready, with whatever files other programs have.
- *idle*: PODS pods with a sleeping process each, IDLE files that nobody touches; CPU time over
  SECONDS.
- *files made by a pod*: FILES of them, of one page and sparse, opened and closed one after the
  other; until all are followed and the agent is at rest again.
- *killed and started*: until it is ready with all these files, remembered from before.
- *one process maps a file for each page*: PAGES of them, as DPDK lays out its memory; until the
  agent is at rest.
- *its pod ends*: until a report has these pages in ``retained``.
- *started anew*: the same files, and nothing remembered.

``seconds`` are of wall time; ``CPU s`` those of the agent and of its responder; ``MiB``
resident afterwards, of the agent and of its responder. Needs root, cgroup2 with hugetlb and
PAGES huge pages of 2 MiB, which it takes and gives back. Nothing is asserted: compare with the
figures in docs, on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.openers import cpu_seconds, resident_kib
from tests.kernel.agent_process import Agent, Api, Pod, until
from tests.testnode import cgroup_tree, naming, volumes
from tests.testnode.hugepages import reserved_pages

PAGE = 2 << 20
#: Nothing measured here takes so long, in seconds.
LONGEST = 600.0
#: A second in which the agent takes less CPU time is one at rest.
REST = 0.05


class Bench:
    """A node for one agent: a cgroup subtree, a hugetlbfs, a stand-in API."""

    def __init__(self, agent: Agent, point: Path, idle_files: int) -> None:
        self.agent, self.point, self.idle_files = agent, point, idle_files
        self.pods: list[Pod] = []
        self._sleepers: list[subprocess.Popen[bytes]] = []

    async def row(self, name: str, work: Callable[[], Awaitable[float]]) -> None:
        """Do ``work``, which tells how many seconds of it count; print what it took."""
        before = self._cpu()
        seconds = await work()
        # Of a process that was started meanwhile, all of it counts.
        same = before.keys() & self._cpu().keys()
        took = {
            pid: used - (before[pid] if pid in same else 0.0) for pid, used in self._cpu().items()
        }
        resident = {pid: resident_kib(pid) / 1024 for pid in self._processes()}
        print(f"{name:<58}{seconds:>9.2f}{_both(took):>16}{_both(resident):>16}", flush=True)

    async def start(self) -> float:
        """Seconds until the agent is ready."""
        began = time.monotonic()
        await self.agent.start()
        async with asyncio.timeout(LONGEST):
            while (await self.agent.probe("/readyz"))[0] != 200:
                assert self.agent.process
                assert self.agent.process.returncode is None, self.agent.log.read_text()
                await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def restart(self, *, forget: bool = False) -> float:
        """As :meth:`start`, after a SIGKILL."""
        await self.agent.end(signal.SIGKILL)
        if forget:
            shutil.rmtree(self.agent.state)
        return await self.start()

    async def idle(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def make_pods(self, count: int, first: int = 0) -> None:
        """Pods that each have a sleeping process."""
        for number in range(first, first + count):
            pod = Pod(self.agent, f"bench-{number}")
            self.pods.append(pod)
            await pod.start()
            procs = pod.cgroup / naming.container_name("systemd", "1f" * 32) / "cgroup.procs"
            sleeper = subprocess.Popen(["sleep", "infinity"])
            self._sleepers.append(sleeper)
            cgroup_tree.write(procs, str(sleeper.pid))

    async def make_files(self, files: int) -> float:
        """A pod makes sparse files; until each is followed."""
        began = time.monotonic()
        folder = str(self.point / "made")
        statements = f"""
os.mkdir({folder!r})
for number in range({files}):
    fd = create(f"{folder}/{{number}}")
    os.ftruncate(fd, PAGE)
    os.close(fd)
"""
        await asyncio.to_thread(self.pods[0].actor().do, statements)
        print(f"{'  (until the pod had made them)':<58}{time.monotonic() - began:>9.2f}")
        async with asyncio.timeout(LONGEST):
            while await self.followed() < self.idle_files + files:
                await asyncio.sleep(0.1)
        print(f"{'  (until all were followed)':<58}{time.monotonic() - began:>9.2f}")
        return await self.rest(began)

    async def map_files(self, pages: int) -> float:
        """A process makes a file for each page, and maps and touches it."""
        began = time.monotonic()
        folder = str(self.point / "mapped")
        statements = f"""
os.mkdir({folder!r})
for number in range({pages}):
    fd = create(f"{folder}/{{number}}")
    touch(map_pages(1, SHARED, fd), 0)
    os.close(fd)
"""
        await asyncio.to_thread(self.pods[-1].actor().do, statements)
        print(f"{'  (until it had mapped them)':<58}{time.monotonic() - began:>9.2f}")
        return await self.rest(began)

    async def end_pod(self, pages: int) -> float:
        """End the pod that has these pages; until its quota is told so."""
        began = time.monotonic()
        pod = self.pods.pop()
        pod.end()
        await pod.delete()
        await until(
            lambda: pod.api.retained().get("ns/q", 0) == pages * PAGE >> 20, seconds=LONGEST
        )
        return time.monotonic() - began

    async def rest(self, began: float) -> float:
        """Seconds from ``began`` to the last second in which the agent was busy."""
        async with asyncio.timeout(LONGEST):
            while True:
                before, at = sum(self._cpu().values()), time.monotonic()
                await asyncio.sleep(1.0)
                if sum(self._cpu().values()) - before < REST:
                    return at - began

    async def followed(self) -> int:
        """Files that the agent follows, as it tells Prometheus."""
        _, text = await self.agent.probe("/metrics")
        rows = (line.split() for line in text.splitlines())
        return next((int(float(row[1])) for row in rows if row[0] == "hugetlb_quota_files"), 0)

    def end(self) -> None:
        """All that was started and made here."""
        for pod in self.pods:
            if pod.cgroup.exists():
                pod.end()
        for sleeper in self._sleepers:
            sleeper.kill()
            sleeper.wait()

    def _processes(self) -> list[int]:
        """The agent, and then those of its responder."""
        process = self.agent.process
        if process is None:
            return []
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return [process.pid, *map(int, children.split())]

    def _cpu(self) -> dict[int, float]:
        return {pid: cpu_seconds(pid) for pid in self._processes()}


def _both(amounts: dict[int, float]) -> str:
    """The agent's, and its responder's."""
    own, *others = amounts.values()
    return f"{own:.2f} + {sum(others):.2f}"


async def measure(options: argparse.Namespace, folder: Path) -> None:
    """Print the table."""
    async with AsyncExitStack() as stack:
        root = cgroup_tree.cgroup2_mount()
        subtree = root / f"hq-bench-{os.getpid()}-{secrets.token_hex(4)}"
        cgroup_tree.make(root, subtree)
        stack.callback(cgroup_tree.remove, subtree)
        for qos in ("Guaranteed", "Burstable"):
            cgroup_tree.make(subtree, subtree / naming.qos_level("systemd", qos))
        point = folder / "huge"
        point.mkdir()
        volumes.mount("hugetlbfs", point, "pagesize=2M")
        stack.callback(volumes.unmount_below, point)
        stack.enter_context(reserved_pages(PAGE, options.pages))
        stack.callback(empty, point)
        api = Api(folder / "kubeconfig")
        await api.start()
        stack.push_async_callback(api.stop)
        await api.set("hugetlbquotas", "ns", "q", spec={"hard": {"hugepages-2Mi": "1Ti"}})
        agent = Agent(api, subtree, folder / "agent.log")
        bench = Bench(agent, point, options.idle)
        stack.callback(bench.end)
        stack.push_async_callback(agent.end, signal.SIGKILL)

        print(f"{'':<58}{'seconds':>9}{'CPU s':>16}{'MiB':>16}")
        await bench.row("started", bench.start)
        await bench.make_pods(options.pods)
        await asyncio.to_thread(make_idle, point / "idle", options.idle)
        await bench.rest(0.0)
        await bench.row(
            f"idle: {options.pods} pods, {options.idle:,} files",
            lambda: bench.idle(options.seconds),
        )
        await bench.row(
            f"{options.files:,} files made by a pod", lambda: bench.make_files(options.files)
        )
        total = options.idle + options.files
        await bench.row(
            f"idle: {options.pods} pods, {total:,} files", lambda: bench.idle(options.seconds)
        )
        await bench.row(f"killed and started with {total:,} files", bench.restart)
        large = Pod(agent, "bench-large")
        await large.start(f"{options.pages * PAGE >> 20}Mi")
        # As kubelet does for what it asks.
        cgroup_tree.write_limits(large.cgroup, {PAGE: options.pages * PAGE})
        bench.pods.append(large)
        await bench.row(
            f"one process maps {options.pages:,} files of one page",
            lambda: bench.map_files(options.pages),
        )
        await bench.row("its pod ends", lambda: bench.end_pod(options.pages))
        await bench.row("started anew, nothing remembered", lambda: bench.restart(forget=True))


def make_idle(folder: Path, files: int) -> None:
    """Sparse files of one page, of no pod."""
    folder.mkdir()
    for number in range(files):
        file = os.open(folder / str(number), os.O_RDWR | os.O_CREAT)
        os.ftruncate(file, PAGE)
        os.close(file)


def empty(point: Path) -> None:
    """Remove all files, and so give their pages back."""
    for directory in point.iterdir():
        shutil.rmtree(directory)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.agent",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pods", type=int, default=100, help="that sleep (default 100)")
    parser.add_argument("--idle", type=int, default=10_000, help="idle files (default 10,000)")
    parser.add_argument("--files", type=int, default=100_000, help="made (default 100,000)")
    parser.add_argument("--pages", type=int, default=1_000, help="mapped (default 1,000: 2 GiB)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of rest (default 30)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(options, Path(folder)))


if __name__ == "__main__":
    main()
