"""Measure the cost and the speed of the agent; each figure has a baseline of the same run.

    python -m benchmarks.agent [--pods N] [--files N] [--seconds N] [--json FILE]

The agent runs as in a pod, with a ServiceAccount, against a fake API server. The columns are: the
figure without an agent, or the baseline that the row names; the figure with the agent; the aim. The
files are empty, on a hugetlbfs of the benchmark: the kernel's list walks them like other files. The
benchmark asserts nothing. Needs root, cgroup2 with hugetlb, 32 huge pages, and `make reader`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.in_pod import PodAgent, secure_api
from benchmarks.opens import quantiles
from benchmarks.processes import cpu_seconds
from tests.kernel.agent_process import Api, Pod, bind, make_cgroup, until
from tests.testnode import cgroup_tree, naming
from tests.testnode.hugepages import reserved_pages
from tests.tracking import PAGE, hugetlbfs

_PAGES = 32
_LIMIT = 8 << 20
#: The seconds to wait after new pods or files, until the agent is at rest again.
_SETTLE = 5.0


@dataclass
class Row:
    """One figure. The texts are for people; ``values`` are the measurements."""

    name: str
    baseline: str
    figure: str
    aim: str
    values: dict[str, Any]


@dataclass
class Table:
    """The rows until now."""

    rows: list[Row] = field(default_factory=list)

    def add(self, name: str, baseline: str, figure: str, aim: str, **values: Any) -> None:
        """Print a row, and remember it."""
        self.rows.append(Row(name, baseline, figure, aim, values))
        sys.stdout.write(f"{name:<50}{baseline:>28}{figure:>28}  {aim}\n")
        sys.stdout.flush()


@dataclass
class Node:
    """The agent, its API server, and a hugetlbfs."""

    agent: PodAgent
    api: Api
    point: Path
    options: argparse.Namespace
    table: Table

    def processes(self) -> list[int]:
        """The process IDs of the agent and its reader."""
        assert self.agent.process
        pid = self.agent.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def cgroup(self, uid: str) -> Path:
        """The cgroup of a pod."""
        return self.agent.subtree / naming.pod_level("systemd", "Burstable", uid)


async def run_in(cgroup: Path, *arguments: object) -> Any:
    """Run a program of :mod:`benchmarks.opens` in a pod's container; return its result."""
    async with running_in(cgroup, *arguments) as process:
        assert process.stdout
        return json.loads(await process.stdout.readline())


@asynccontextmanager
async def running_in(cgroup: Path, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the program in a pod's container until the context ends."""
    (container,) = (each for each in cgroup.iterdir() if each.is_dir())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.opens", *map(str, arguments)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: cgroup_tree.write(container / "cgroup.procs", "0"),
    )
    try:
        yield process
    finally:
        assert process.stdin
        process.stdin.close()
        await process.communicate()


async def programs(node: Node) -> dict[str, dict[str, float]]:
    """Run the programs in two pods; return their results by situation."""
    options, first, second = node.options, node.cgroup("first"), node.cgroup("second")
    file = node.point / "opened"
    results = {"rest": await run_in(first, "open", file, options.opens)}
    async with running_in(second, "openers", file, options.openers) as crowd:
        assert crowd.stdout
        await crowd.stdout.readline()
        await asyncio.sleep(1)
        results["crowd"] = await run_in(first, "open", file, options.opens)
    results["churn"] = await run_in(first, "churn", node.point / "churn", options.rounds)
    return results


def add_programs(node: Node, without: dict[str, Any], with_: dict[str, Any]) -> None:
    """Add the rows of the programs."""
    names = {
        "rest": "open(2), agent at rest",
        "crowd": f"open(2), {node.options.openers:,} openers",
    }
    for key, name in names.items():
        before, now = (
            "{p50:.1f} / {p99:.1f} / {max:.0f} us".format(**each[key]) for each in (without, with_)
        )
        node.table.add(
            f"{name}: p50 / p99 / max",
            before,
            now,
            "the same",
            without=without[key],
            agent=with_[key],
        )
    before, now = (f"{each['churn']['refused']:.0f}" for each in (without, with_))
    name = f"map, unlink, map: refused of {node.options.rounds:,}"
    node.table.add(name, before, now, "0", without=without["churn"], agent=with_["churn"])


def memory(pid: int) -> tuple[float, float]:
    """The RSS and PSS of a process, in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kib["Rss"] / 1024, kib["Pss"] / 1024


async def at_rest(node: Node) -> None:
    """Measure CPU and memory at rest, with many pods and files."""
    options, pids = node.options, node.processes()
    before, begun = [cpu_seconds(pid) for pid in pids], time.monotonic()
    await asyncio.sleep(options.seconds)
    passed = time.monotonic() - begun
    shares = [(cpu_seconds(pid) - spent) / passed for pid, spent in zip(pids, before, strict=True)]
    name = f"CPU at rest, {options.pods:,} pods, {options.files:,} files"
    figure = f"{shares[0]:.2%} + {shares[1]:.2%}"
    node.table.add(name, "none", figure, "0.30 % of a core", agent=shares[0], reader=shares[1])
    bare = subprocess.Popen(
        [sys.executable, "-c", "import asyncio; input()"], stdin=subprocess.PIPE
    )
    await asyncio.sleep(1)
    empty, (agent, reader) = memory(bare.pid), (memory(pid) for pid in pids)
    bare.communicate(b"\n")
    for number, kind in enumerate(("resident", "proportional (PSS)")):
        node.table.add(
            f"memory, {kind}: agent + reader",
            f"{empty[number]:.1f} MiB (bare asyncio)",
            f"{agent[number]:.1f} + {reader[number]:.1f} MiB",
            "64 MiB together",
            agent=agent[number],
            reader=reader[number],
            bare=empty[number],
        )


async def ends(node: Node, name: str) -> list[float]:
    """The milliseconds from a pod's end until the report lists the file of the gone pod."""
    took = []
    for number in range(node.options.ends):
        pod = Pod(node.agent, f"{name}-{number}")
        await pod.start()
        await pod.maps("2Mi", f"--file={node.point / pod.uid}")
        await until(lambda pod=pod: node.api.charged().get(pod.uid) == 2)  # type: ignore[misc]
        await asyncio.sleep(0.5)
        begun = time.monotonic()
        pod.end()
        await pod.delete()
        await until(lambda pod=pod: node.api.left().get(pod.uid) == 2)  # type: ignore[misc]
        took.append((time.monotonic() - begun) * 1e3)
        (node.point / pod.uid).unlink()
    return took


async def limits(node: Node, name: str, pause: float) -> None:
    """Measure the time from the mkdir of pods' cgroups to their limits."""
    uids = [f"{name}-{number}" for number in range(node.options.burst)]
    others = len(node.api.listed())
    for uid in uids:
        await bind(node.api, uid)
    await until(lambda: len(node.api.listed()) == others + len(uids))
    await asyncio.sleep(_SETTLE)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.limits", str(_LIMIT), str(pause)),
        *(node.cgroup(uid) for uid in uids),
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    made, limited = ([1e3 * each for each in times] for times in json.loads(output))
    before, now = (
        "{p50:.2f} / {p99:.2f} / {max:.2f} ms".format(**quantiles(each)) for each in (made, limited)
    )
    node.table.add(
        f"mkdir alone, and from it to the limit: {name}",
        before,
        now,
        "p99 of 5 ms",
        mkdir=quantiles(made),
        limit=quantiles(limited),
    )
    for uid in uids:
        await node.api.delete("pods", "ns", uid)
        node.cgroup(uid).rmdir()
    await until(lambda: len(node.api.listed()) == others)


async def idle_pods(node: Node, first: int, last: int) -> None:
    """Make pods that do nothing."""
    for number in range(first, last):
        await bind(node.api, f"idle-{number}")
        make_cgroup(node.agent, f"idle-{number}")
    await until(lambda: len(node.api.listed()) == last + 2)


async def measure(node: Node) -> None:
    """Measure all rows."""
    options = node.options
    (node.point / "opened").touch()
    for uid in ("first", "second"):
        pod = make_cgroup(node.agent, uid)
        cgroup_tree.write(pod / "hugetlb.2MB.rsvd.max", str(_LIMIT))
    without = await programs(node)
    await node.agent.start()
    await node.agent.ready()
    for uid in ("first", "second"):
        await bind(node.api, uid)
    await until(lambda: len(node.api.listed()) == 2)
    add_programs(node, without, await programs(node))
    few = quantiles(await ends(node, "few"))
    await idle_pods(node, 0, options.pods)
    for number in range(options.files):
        (node.point / f"file-{number}").touch()
    await asyncio.sleep(_SETTLE)
    await at_rest(node)
    many = quantiles(await ends(node, "many"))
    node.table.add(
        "a pod's end to its file's report: p50 / max",
        f"{few['p50']:.0f} / {few['max']:.0f} ms (no files)",
        f"{many['p50']:.0f} / {many['max']:.0f} ms",
        "300 ms",
        without_files=few,
        with_files=many,
    )
    for file in node.point.glob("file-*"):
        file.unlink()
    await idle_pods(node, options.pods, options.many_pods)
    for name, pause in (("singly", 0.02), ("in a burst", 0.0)):
        await limits(node, name.replace(" ", "-"), pause)


async def run(options: argparse.Namespace) -> Table:
    """Make the cgroups, the hugetlbfs and the API server, and measure."""
    root = cgroup_tree.cgroup2_mount()
    subtree = root / f"hq-benchmark-{os.getpid()}"
    table = Table()
    with ExitStack() as stack:
        cgroup_tree.make(root, subtree)
        stack.callback(cgroup_tree.remove, subtree)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(reserved_pages(PAGE, _PAGES))
        point = stack.enter_context(hugetlbfs(directory / "huge")).path
        for qos in ("Guaranteed", "Burstable"):
            cgroup_tree.make(subtree, subtree / naming.qos_level("systemd", qos))
        api, account = secure_api(directory)
        await api.start()
        agent = PodAgent(api, subtree, directory / "agent.log", account)
        table.add("", "without, or baseline", "with the agent", "aim")
        try:
            await measure(Node(agent, api, point, options, table))
        finally:
            if agent.process:
                await agent.end(signal.SIGKILL)
            await api.stop()
            for file in point.iterdir():
                file.unlink()
    return table


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.agent",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pods", type=int, default=100, help="at rest (default 100)")
    parser.add_argument("--many-pods", type=int, default=500, help="for limits (default 500)")
    parser.add_argument("--files", type=int, default=100_000, help="default 100000")
    parser.add_argument("--seconds", type=float, default=60.0, help="at rest (default 60)")
    parser.add_argument("--opens", type=int, default=20_000, help="default 20000")
    parser.add_argument("--openers", type=int, default=2_000, help="default 2000")
    parser.add_argument(
        "--rounds", type=int, default=10_000, help="of map, unlink, map (default 10000)"
    )
    parser.add_argument("--ends", type=int, default=10, help="pods that end (default 10)")
    parser.add_argument("--burst", type=int, default=200, help="pods made at once (default 200)")
    parser.add_argument("--json", type=Path, help="also write all values to this file")
    options = parser.parse_args()
    table = asyncio.run(run(options))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in table.rows[1:]], indent=1))


if __name__ == "__main__":
    main()
