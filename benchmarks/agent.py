"""What the agent costs: at rest with many pods and files, and from a pod's end to its report.

    python -m benchmarks.agent [--pods N] [--files N] [--seconds N]

``CPU`` is of the agent and of its reader, in percent of a core; ``MiB`` resident. The files
are empty, on a hugetlbfs of their own: the kernel's list walks them as any other.
Needs root, cgroup2 with hugetlb, huge pages, and `make reader`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.kernel.agent_process import Agent, Api, Pod, bind, make_cgroup, until
from tests.testnode import cgroup_tree, naming
from tests.testnode.hugepages import reserved_pages
from tests.tracking import PAGE, hugetlbfs

_TICKS = os.sysconf("SC_CLK_TCK")
_ENDS = 10


def cpu_seconds(pid: int) -> float:
    """Of the process and of its child, the reader."""
    return (
        sum(
            sum(map(int, Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[11:13]))
            for each in (pid, *children(pid))
        )
        / _TICKS
    )


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def measure(agent: Agent, api: Api, point: Path, options: argparse.Namespace) -> None:
    await agent.start()
    await agent.ready()
    assert agent.process
    pid = agent.process.pid
    for number in range(options.pods):
        make_cgroup(agent, f"idle-{number}")
        await bind(api, f"idle-{number}")
    await until(lambda: len(api.listed()) == options.pods)
    for number in range(options.files):
        (point / f"file-{number}").touch()
    await asyncio.sleep(5)
    before, begun = cpu_seconds(pid), time.monotonic()
    await asyncio.sleep(options.seconds)
    share = (cpu_seconds(pid) - before) / (time.monotonic() - begun)
    memory = [resident_mib(each) for each in (pid, *children(pid))]
    print(
        f"at rest, {options.pods} pods, {options.files} files: {share:.2%} CPU,"
        f" {' + '.join(f'{each:.0f}' for each in memory)} MiB"
    )
    took = []
    for number in range(_ENDS):
        pod = Pod(agent, f"ends-{number}")
        await pod.start()
        await pod.maps("2Mi", f"--file={point / pod.uid}")
        await until(lambda pod=pod: api.charged().get(pod.uid) == 2)  # type: ignore[misc]
        await asyncio.sleep(0.5)
        begun = time.monotonic()
        pod.end()
        await pod.delete()
        await until(lambda pod=pod: api.left().get(pod.uid) == 2)  # type: ignore[misc]
        took.append(time.monotonic() - begun)
    print(
        f"from a pod's end to its report: {statistics.median(took):.3f} s, at most {max(took):.3f}"
    )


async def run(options: argparse.Namespace) -> None:
    root = cgroup_tree.cgroup2_mount()
    subtree = root / f"hq-benchmark-{os.getpid()}"
    with ExitStack() as stack:
        cgroup_tree.make(root, subtree)
        stack.callback(cgroup_tree.remove, subtree)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(reserved_pages(PAGE, _ENDS))
        point = stack.enter_context(hugetlbfs(directory / "huge")).path
        for qos in ("Guaranteed", "Burstable"):
            cgroup_tree.make(subtree, subtree / naming.qos_level("systemd", qos))
        api = Api(directory / "kubeconfig")
        await api.start()
        agent = Agent(api, subtree, directory / "agent.log")
        try:
            await measure(agent, api, point, options)
        finally:
            await agent.end(signal.SIGKILL)
            await api.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else "")
    parser.add_argument("--pods", type=int, default=100)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
