"""Creators: clients that each create pods one after the other, without a pause."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from benchmarks.processes import cpu_seconds
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane

TIMEOUT = 60.0
"""The longest time of a create, in seconds; a longer create counts as refused."""


@dataclass(frozen=True)
class Creation:
    """The measurements of one run. Times are milliseconds, of the pods that were created.

    `api_cpu`: the CPU time of the API server for each created pod. `why`: the first refusal.
    """

    pods_per_second: float
    p50: float
    p99: float
    api_cpu: float
    refused: int
    why: str = ""


async def create(
    plane: ControlPlane, namespace: str, creators: int, pods: int, *, huge: bool = True
) -> Creation:
    """Create `pods` pods in `namespace`; `huge`: each pod requests a huge page."""
    url = f"{plane.server}/api/v1/namespaces/{namespace}/pods"
    numbers = iter(range(pods))
    took: list[float] = []
    refusals: list[str] = []
    connector = aiohttp.TCPConnector(limit=creators, ssl=plane.admin_tls())
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def creator() -> None:
            for number in numbers:
                started = time.monotonic()
                try:
                    async with session.post(url, json=_pod(number, huge=huge)) as answer:
                        text = await answer.text()
                except (aiohttp.ClientError, TimeoutError) as error:
                    refusals.append(repr(error))
                    continue
                if answer.status == 201:
                    took.append(time.monotonic() - started)
                else:
                    refusals.append(text)

        server = plane.child("kube-apiserver").pid
        before, started = cpu_seconds(server), time.monotonic()
        await asyncio.gather(*(creator() for _ in range(creators)))
        seconds, cpu = time.monotonic() - started, cpu_seconds(server) - before
    done = sorted(each * 1000 for each in took) or [0.0]
    return Creation(
        pods_per_second=len(took) / seconds,
        p50=statistics.median(done),
        p99=done[max(int(len(done) * 0.99) - 1, 0)],
        api_cpu=cpu * 1000 / max(len(took), 1),
        refused=len(refusals),
        why=refusals[0] if refusals else "",
    )


def container(resources: Mapping[str, str]) -> Object:
    """A container that requests ``resources``; the image does not exist."""
    return {
        "name": "main",
        "image": "none",
        "resources": {"requests": resources, "limits": resources},
    }


def _pod(number: int, *, huge: bool) -> Object:
    resources = {"cpu": "1m", "memory": "1Mi"}
    if huge:
        resources["hugepages-2Mi"] = "2Mi"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"p{number}"},
        "spec": {"containers": [container(resources)], "schedulerName": "nobody"},
    }
