"""Measure pods created per second, and compare with a native ResourceQuota on the same pods.

``python -m benchmarks.admission [--rounds N] [--minutes N] [--quick] [--json FILE]`` starts its own
control plane, with the operator as in the chart. Each figure has a new namespace, and a baseline of
the same round. Machines are noisy, so compare only figures of one run. The result is the median,
minimum and maximum of all rounds.

nftables, in a network namespace of this benchmark, balances the replicas; this needs root. As with
the chart's Service, an API server stays with one replica (sessionAffinity). "in turn": each
connection goes to the next replica, as with several API servers. The pods name a scheduler that
does not exist, so that only admission is measured. "refused" counts all pods that were not created.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path

from benchmarks import admission_tables
from benchmarks.pods import Creation, create
from benchmarks.processes import cpu_seconds
from benchmarks.report import Machine
from benchmarks.watchers import watching
from tests.kube import chart as charts
from tests.kube.api import Api, Object
from tests.kube.build import kubernetes_version
from tests.kube.cluster import Cluster
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
#: The port of the first way to balance; the other ways have the next ports.
FIRST_PORT = 9443
PODS = 400
#: The chart's defaults: two replicas, and an API server stays with one of them.
SHIPPED = (2, False)
#: The duration of the measurement of the API server at rest, in seconds.
REST = 5.0
_INSIDE = "ADMISSION_BENCHMARK_INSIDE"


@dataclass(frozen=True)
class Options:
    """The range of the measurements. `ways`: the number of replicas, and whether in turn.

    The benchmark measures the chart's way with all chains, and the other ways with a chain of 3.
    """

    creators: tuple[int, ...] = (1, 8, 32, 128, 512)
    chains: tuple[int, ...] = (1, 3, 6)
    ways: tuple[tuple[int, bool], ...] = ((1, False), (2, False), (3, False), (2, True), (3, True))
    nodes: tuple[int, ...] = (5, 5000)
    pods: int = PODS
    rounds: int = 3
    minutes: float = 9.0


QUICK = Options((1, 4), (1, 2), ((1, False), (2, True)), (1, 3), pods=20, rounds=1)


def main() -> None:
    """Measure, print the tables, write the JSON."""
    arguments = _arguments()
    options = _options(arguments)
    if _INSIDE not in os.environ:
        _enter_network_namespace()
    began = time.monotonic()
    rounds: list[list[admission_tables.Figure]] = []
    longest = 0.0
    while len(rounds) < options.rounds:
        started = time.monotonic()
        if rounds and started + longest > began + options.minutes * 60:
            break
        rounds.append(_measure(options))
        longest = max(longest, time.monotonic() - started)
    rounds[-1] += _measure_watched(options)
    print(admission_tables.markdown(rounds))
    if arguments.json:
        document = {
            "kubernetes": kubernetes_version(),
            "machine": Machine.this().to_json(),
            "options": asdict(options),
            "rounds": [[asdict(figure) for figure in each] for each in rounds],
            "charts": [chart.to_json() for chart in admission_tables.charts(rounds)],
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(number) for number in text.split(","))

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a short run of everything")
    parser.add_argument("--pods", type=int, help="the least number of pods for each figure")
    parser.add_argument("--rounds", type=int, help="the number of rounds")
    parser.add_argument("--minutes", type=float, help="start no round that would end later")
    parser.add_argument("--creators", type=numbers, help="such as 1,8,32")
    parser.add_argument("--chains", type=numbers, help="such as 1,3,6")
    parser.add_argument("--replicas", type=numbers, help="such as 1,2, with sessionAffinity")
    parser.add_argument("--turns", type=numbers, help="such as 2,3, called in turn")
    parser.add_argument("--nodes", type=numbers, help="such as 5,5000, which watch like agents")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _options(arguments: argparse.Namespace) -> Options:
    base = QUICK if arguments.quick else Options()
    given = {
        field.name: value
        for field in fields(Options)
        if (value := getattr(arguments, field.name, None)) is not None
    }
    if arguments.replicas or arguments.turns:
        affine = [(number, False) for number in arguments.replicas or ()]
        given["ways"] = (*affine, *((number, True) for number in arguments.turns or ()))
    return Options(**{**vars(base), **given})


def _enter_network_namespace() -> None:
    """Run this program again in a new network namespace, with its own nftables."""
    if shutil.which("nft") is None or os.geteuid() != 0:
        sys.exit("The replicas' balancer needs root and nft (Debian: apt-get install nftables).")
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    os.environ[_INSIDE] = "1"
    os.execvp("unshare", [*command, sys.executable, "-m", "benchmarks.admission", *sys.argv[1:]])


class _Round:
    """A control plane, first without the operator, then with the operator."""

    def __init__(self, options: Options, plane: ControlPlane) -> None:
        self._options = options
        self._plane = plane
        self._namespaces = count()
        self.figures: list[admission_tables.Figure] = []

    def measure_native(self) -> None:
        """Measure without the operator: pods under a ResourceQuota, and pods without a limit."""
        for creators in self._options.creators:
            where = self._namespace()
            _make_resource_quota(self._plane.api, where)
            self._take("native", creators, where)
        self.measure_plain("plain, no operator")

    def measure_plain(self, subject: str) -> None:
        """Measure pods without huge pages."""
        for creators in self._options.creators[:3]:
            self._take(subject, creators, self._namespace(), huge=False)

    def measure_operator(self, cluster: Cluster) -> None:
        """Measure with the operator: pods under HugeTLBQuotas."""
        options = self._options
        self.measure_plain("plain, operator")
        programs = [cluster.admission]
        while len(programs) < max(replicas for replicas, _ in options.ways):
            programs.append(cluster.programs.start_admission())
        for program in programs:
            program.wait_ready()
        _balance(programs, options.ways)
        for port, way in enumerate(options.ways, FIRST_PORT):
            charts.register_webhooks(self._plane, cluster.chart, f"https://127.0.0.1:{port}")
            for length in _lengths(options, way):
                for creators in options.creators:
                    self._take(f"chain of {length}", creators, self._chain(length), way=way)

    async def measure_watched(self) -> None:
        """Measure the cost of an admission for the API server while nodes watch."""
        server = self._plane.child("kube-apiserver").pid
        creators = self._options.creators[min(2, len(self._options.creators) - 1)]
        for nodes in self._options.nodes:
            async with watching(self._plane, nodes) as watches:
                before, began = cpu_seconds(server), time.monotonic()
                await asyncio.sleep(REST if self._options.pods == PODS else 0.5)
                rest = (cpu_seconds(server) - before) / (time.monotonic() - began)
                for _ in range(self._options.rounds):
                    where = await asyncio.to_thread(self._chain, 3)
                    done = await create(self._plane, where, creators, self._pods(creators))
                    self._add("watched", creators, done, nodes=nodes, watches=watches, rest=rest)

    def _take(
        self,
        subject: str,
        creators: int,
        where: str,
        *,
        way: tuple[int, bool] = (0, False),
        huge: bool = True,
    ) -> None:
        done = asyncio.run(create(self._plane, where, creators, self._pods(creators), huge=huge))
        self._add(subject, creators, done, replicas=way[0], turns=way[1])

    def _add(self, subject: str, creators: int, done: Creation, **more: float) -> None:
        figure = admission_tables.Figure(subject, creators, done, **more)  # type: ignore[arg-type]
        print(figure, file=sys.stderr, flush=True)
        self.figures.append(figure)

    def _pods(self, creators: int) -> int:
        # A single creator is slow, so create fewer pods. Many creators create at least two each.
        least = max(self._options.pods, 2 * creators)
        return min(least, 100 * creators)

    def _namespace(self) -> str:
        where = f"figure-{next(self._namespaces)}"
        self._plane.create_namespace(where)
        return where

    def _chain(self, length: int) -> str:
        where = self._namespace()
        _make_chain(self._plane.api, where, length)
        return where


def _measure(options: Options) -> list[admission_tables.Figure]:
    with ControlPlane() as plane:
        taken = _Round(options, plane)
        taken.measure_native()
        with Cluster(control_plane=plane) as cluster:
            taken.measure_operator(cluster)
        return taken.figures


def _measure_watched(options: Options) -> list[admission_tables.Figure]:
    with ControlPlane() as plane, Cluster(control_plane=plane):
        taken = _Round(options, plane)
        asyncio.run(taken.measure_watched())
        return taken.figures


def _lengths(options: Options, way: tuple[int, bool]) -> tuple[int, ...]:
    """The lengths of chains to measure in this way."""
    if way == SHIPPED or SHIPPED not in options.ways:
        return options.chains
    return tuple(length for length in options.chains if length == 3) or options.chains


def _balance(programs: Sequence[Program], ways: Sequence[tuple[int, bool]]) -> None:
    """Give each way a port that leads to its replicas, like a Service."""
    rules = []
    for port, (replicas, turns) in enumerate(ways, FIRST_PORT):
        ports = [program.address.rpartition(":")[2] for program in programs[:replicas]]
        places = ", ".join(f"{place} : {each}" for place, each in enumerate(ports))
        choice = "numgen inc" if turns else "jhash ip saddr"
        to = ports[0] if replicas == 1 else f"{choice} mod {replicas} map {{ {places} }}"
        rules.append(f"ip daddr 127.0.0.1 tcp dport {port} redirect to :{to}")
    lines = ["table ip bench {", "chain out {", "type nat hook output priority -100;"]
    table = "\n".join((*lines, *rules, "}", "}", ""))
    subprocess.run(["nft", "flush", "ruleset"], check=True, timeout=10)
    subprocess.run(["nft", "-f", "-"], input=table, text=True, check=True, timeout=10)


def _make_resource_quota(api: Api, namespace: str) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"namespace": namespace, "name": "native"},
        "spec": {"hard": {"hugepages-2Mi": "1Ti"}},
    }
    api.create("v1/resourcequotas", body)
    eventually(
        lambda: (
            api.get("v1/resourcequotas", "native", namespace=namespace)
            .get("status", {})
            .get("hard")
        )
    )


def _make_chain(api: Api, namespace: str, length: int) -> None:
    for level in range(length):
        spec: Object = {"hard": {"hugepages-2Mi": "1Ti"}}
        if level:
            spec["parentRef"] = {"namespace": namespace, "name": f"q{level - 1}"}
        # Only the last quota selects pods; the other quotas are its ancestors.
        if level < length - 1:
            spec["podSelector"] = {"matchLabels": {"none": "at-all"}}
        body = {
            "apiVersion": "hugetlb.dev/v1alpha1",
            "kind": "HugeTLBQuota",
            "metadata": {"namespace": namespace, "name": f"q{level}"},
            "spec": spec,
        }
        api.create(QUOTAS, body)
    eventually(
        lambda: all(
            each.get("status", {}).get("observedGeneration")
            for each in api.list(QUOTAS, namespace=namespace)
        )
    )


if __name__ == "__main__":
    main()
