"""Nodes that only watch: each holds the two watches of an agent, and discards the events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import quote, urlsplit

from tests.kube.control_plane import ControlPlane

PATHS = (
    ("/api/v1/pods", "spec.nodeName"),
    ("/apis/hugetlb.dev/v1alpha1/hugetlbnodes", "metadata.name"),
)
AT_ONCE = 32
OPENING = 90.0
"""The time to open all watches, in seconds. Then the other watches are given up."""


@asynccontextmanager
async def watching(plane: ControlPlane, nodes: int) -> AsyncIterator[int]:
    """Hold the watches of `nodes` nodes; yield the number of open watches.

    Each watch has its own TLS connection, as in an agent.
    """
    context = plane.admin_tls()
    address = urlsplit(plane.server)
    limit = asyncio.Semaphore(AT_ONCE)
    writers: list[asyncio.StreamWriter] = []
    readers: list[asyncio.Task[None]] = []

    async def hold(number: int, path: str, field: str) -> None:
        async with limit:
            reader, writer = await asyncio.open_connection(
                address.hostname, address.port, ssl=context, limit=2**14
            )
            selector = quote(f"{field}=node-{number}")
            query = f"watch=true&allowWatchBookmarks=true&fieldSelector={selector}"
            writer.write(f"GET {path}?{query} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
            status = await reader.readline()
            if b" 200 " not in status:
                writer.close()
                raise OSError(f"{path}: {status.decode().strip()}")
            writers.append(writer)
            readers.append(asyncio.create_task(_discard(reader)))

    opening = [
        asyncio.create_task(hold(number, path, field))
        for number in range(nodes)
        for path, field in PATHS
    ]
    try:
        done, late = await asyncio.wait(opening, timeout=OPENING)
        for task in late:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        failed = [task.exception() for task in done if task.exception()]
        if failed:
            print(f"{len(failed)} watches could not be opened: {failed[0]}")
        yield len(writers)
    finally:
        for task in readers:
            task.cancel()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*readers, return_exceptions=True)


async def _discard(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await reader.read(2**14):
            pass
