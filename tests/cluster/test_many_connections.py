"""Every client in the cluster can connect; admission stays within its memory limit."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hugetlb_quota.process import allow_open_files
from hugetlb_quota.quantity import parse
from tests.kube.cluster import Cluster
from tests.kube.programs import Program

HALF_A_HEAD = b"POST /validate-pods HTTP/1.1\r\nHost: x\r\nContent-Le"
CONNECTIONS = 1500
"""More than admission has at the same time."""
AT_ONCE = 100
TRIES = 30


@pytest.fixture
def replica(cluster: Cluster) -> Iterator[Program]:
    """A replica that the API server does not call."""
    program = cluster.programs.start_admission()
    program.wait_ready()
    yield program
    program.stop()


def limit(cluster: Cluster) -> int:
    """The memory limit of admission's container, in bytes."""
    (found,) = (
        container["resources"]["limits"]["memory"]
        for deployment in cluster.chart.of_kind("Deployment")
        for container in deployment["spec"]["template"]["spec"]["containers"]
        if container["name"] == "admission"
    )
    return parse(found)


def peak(program: Program) -> int:
    """The peak memory of the program, in bytes."""
    status = Path(f"/proc/{program.child.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


async def test_half_sent_heads_take_less_memory_than_the_containers_limit(
    cluster: Cluster, replica: Program
) -> None:
    allow_open_files(CONNECTIONS + 200)
    host, _, port = replica.address.removeprefix("https://").partition(":")
    trust = ssl._create_unverified_context()
    gate = asyncio.Semaphore(AT_ONCE)
    kept: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def connect() -> None:
        # A connection that waits too long for a place fails in its handshake.
        for _ in range(TRIES):
            with suppress(OSError):
                async with gate:
                    reader, writer = await asyncio.open_connection(host, int(port), ssl=trust)
                writer.write(HALF_A_HEAD)
                kept.append((reader, writer))
                return
        raise AssertionError(f"no connection in {TRIES} tries")

    async def is_closed(reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            while await reader.read(1000):
                pass

    await asyncio.gather(*(connect() for _ in range(CONNECTIONS)))
    assert await asyncio.to_thread(replica.is_ready)
    assert peak(replica) < limit(cluster)
    # Admission closes every connection at last.
    async with asyncio.timeout(120):
        await asyncio.gather(*(is_closed(reader) for reader, _ in kept))
    for _, writer in kept:
        writer.close()
    assert replica.child.exit_status is None
