"""Pods created per second, beside what a native ResourceQuota costs on the same pods.

``python -m benchmarks.admission [--pods N] [--rounds N] [--creators 1,8,32,128]
[--chains 1,3,6] [--replicas 1,2] [--turns] [--json FILE]``: on a control plane of its own, with
the operator as the chart ships it. Each figure is of a namespace of its own, and the native
baseline comes from the same run: compare figures of one run only, for machines are noisy.
Several replicas stand behind nftables in a network namespace of this benchmark, which needs
root. As with the chart's Service, an API server stays with one of them (sessionAffinity);
with ``--turns`` each connection goes to the next, as several API servers' would. The pods
name a scheduler that does not exist, so that admission alone is measured. Refused are those
that did not come through.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import yaml

from tests.kube import chart as charts
from tests.kube.api import Api, Object
from tests.kube.cluster import Cluster
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
#: Where the webhooks are called when several replicas are asked in turn.
BALANCED = 9443
_INSIDE = "ADMISSION_BENCHMARK_INSIDE"


@dataclass(frozen=True)
class Figure:
    """One measurement; times in milliseconds."""

    subject: str
    replicas: int
    creators: int
    pods_per_second: float
    p50: float
    p99: float
    refused: int


def main() -> None:
    """Measure, print the table, write the JSON."""
    arguments = _arguments()
    if max(arguments.replicas) > 1 and _INSIDE not in os.environ:
        _enter_network_namespace()
    rounds = [_measure(arguments) for _ in range(arguments.rounds)]
    figures = [_median([each[place] for each in rounds]) for place in range(len(rounds[0]))]
    print(_table(figures))
    if arguments.json:
        document = {"pods": arguments.pods, "rounds": [[asdict(f) for f in r] for r in rounds]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def _measure(arguments: argparse.Namespace) -> list[Figure]:
    figures: list[Figure] = []
    with ControlPlane() as plane:
        for creators in arguments.creators:
            where = f"native-{creators}"
            plane.create_namespace(where)
            _make_resource_quota(plane.api, where)
            took = asyncio.run(_create(plane, where, creators, arguments.pods))
            figures.append(_figure("native", 0, creators, took))
        with Cluster(control_plane=plane) as cluster:
            programs: list[Program] = [cluster.admission]
            for replicas in arguments.replicas:
                while len(programs) < replicas:
                    programs.append(cluster.programs.start_admission())
                    programs[-1].wait_ready()
                _balance(cluster, programs[:replicas], turns=arguments.turns)
                for length in arguments.chains:
                    for creators in arguments.creators:
                        where = f"chain-{length}-{replicas}-{creators}"
                        plane.create_namespace(where)
                        _make_chain(plane.api, where, length)
                        took = asyncio.run(_create(plane, where, creators, arguments.pods))
                        figures.append(_figure(f"chain of {length}", replicas, creators, took))
    return figures


def _arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=400, help="for each figure")
    parser.add_argument("--rounds", type=int, default=1, help="whose medians are told")
    parser.add_argument("--creators", type=numbers, default=[1, 8, 32, 128])
    parser.add_argument("--chains", type=numbers, default=[1, 3, 6])
    parser.add_argument("--replicas", type=numbers, default=[1, 2])
    parser.add_argument(
        "--turns", action="store_true", help="replicas take turns, instead of sessionAffinity"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _enter_network_namespace() -> None:
    """Run again where nftables are this benchmark's own."""
    if shutil.which("nft") is None or os.geteuid() != 0:
        sys.exit("Several replicas need root and nft; choose --replicas 1.")
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    os.environ[_INSIDE] = "1"
    os.execvp("unshare", [*command, sys.executable, "-m", "benchmarks.admission", *sys.argv[1:]])


def _balance(cluster: Cluster, programs: list[Program], *, turns: bool) -> None:
    """Point the webhooks at ``programs``, as a Service of them would."""
    address = programs[0].address
    if len(programs) > 1:
        ports = [program.address.rpartition(":")[2] for program in programs]
        places = ", ".join(f"{place} : {port}" for place, port in enumerate(ports))
        choice = "numgen inc" if turns else "jhash ip saddr"
        rules = f"""
            table ip bench {{
                chain out {{
                    type nat hook output priority -100;
                    ip daddr 127.0.0.1 tcp dport {BALANCED} redirect to :{choice} mod \
                        {len(ports)} map {{ {places} }}
                }}
            }}"""
        subprocess.run(["nft", "flush", "ruleset"], check=True, timeout=10)
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True, timeout=10)
        address = f"https://127.0.0.1:{BALANCED}"
    charts.register_webhooks(cluster.control_plane, cluster.chart, address)


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
        # Only the last selects pods; the others are charged as its ancestors.
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


async def _create(
    plane: ControlPlane, namespace: str, creators: int, pods: int
) -> list[float | None]:
    """Seconds that each create took, None for one that was refused; the whole time at the end."""
    pods = min(pods, 100 * creators)
    context = ssl.create_default_context(cafile=str(plane.ca_file))
    (user,) = yaml.safe_load(plane.admin_kubeconfig.read_text())["users"]
    context.load_cert_chain(user["user"]["client-certificate"], user["user"]["client-key"])
    url = f"{plane.server}/api/v1/namespaces/{namespace}/pods"
    numbers = iter(range(pods))
    took: list[float | None] = []
    connector = aiohttp.TCPConnector(limit=creators, ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def creator() -> None:
            for number in numbers:
                started = time.monotonic()
                async with session.post(url, json=_pod(number)) as answer:
                    await answer.read()
                took.append(time.monotonic() - started if answer.status == 201 else None)

        started = time.monotonic()
        await asyncio.gather(*(creator() for _ in range(creators)))
        took.append(time.monotonic() - started)
    return took


def _pod(number: int) -> Object:
    resources = {"hugepages-2Mi": "2Mi", "cpu": "1m", "memory": "1Mi"}
    container = {
        "name": "main",
        "image": "none",
        "resources": {"requests": resources, "limits": resources},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"p{number}"},
        "spec": {"containers": [container], "schedulerName": "nobody"},
    }


def _figure(subject: str, replicas: int, creators: int, took: list[float | None]) -> Figure:
    *each, seconds = took
    assert seconds is not None
    done = sorted(one * 1000 for one in each if one is not None)
    figure = Figure(
        subject,
        replicas,
        creators,
        round(len(done) / seconds, 1),
        round(statistics.median(done), 1) if done else 0.0,
        round(done[int(len(done) * 0.99) - 1], 1) if done else 0.0,
        len(each) - len(done),
    )
    print(figure, file=sys.stderr, flush=True)
    return figure


def _median(figures: list[Figure]) -> Figure:
    def middle(name: str) -> float:
        return float(statistics.median(getattr(figure, name) for figure in figures))

    first = figures[0]
    return Figure(
        *(first.subject, first.replicas, first.creators),
        *(middle("pods_per_second"), middle("p50"), middle("p99")),
        refused=sum(figure.refused for figure in figures),
    )


def _table(figures: list[Figure]) -> str:
    columns = list(dict.fromkeys((each.subject, each.replicas) for each in figures))
    titles = [f"{name}, {n} repl." if n else name for name, n in columns]
    lines = [
        f"| creators | {' | '.join(titles)} |",
        f"|{'---|' * (len(columns) + 1)}",
    ]
    for creators in dict.fromkeys(each.creators for each in figures):
        cells = [
            f"{each.pods_per_second:g}, {each.p50:g} ms, {each.p99:g} ms"
            + (f", {each.refused} refused" if each.refused else "")
            for column in columns
            for each in figures
            if (each.subject, each.replicas) == column and each.creators == creators
        ]
        lines.append(f"| {creators} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
