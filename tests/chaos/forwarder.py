"""Acts as a Service: forwards connections to a list of ports, round robin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

CONNECT_TIMEOUT = 1.0
"""In seconds."""


class Forwarder:
    """Forwards TCP connections from `address` and `port` to `ports` of 127.0.0.1, round robin.

    `port`: 0 for a free port, which `port` names inside `running`.
    `taken`: the number of connections of each port.
    """

    def __init__(self, ports: Sequence[int], address: str = "127.0.0.1", port: int = 0) -> None:
        self._ports = list(ports)
        self._address = address
        self.port = port
        self.taken = dict.fromkeys(ports, 0)
        self._tasks: set[asyncio.Task[None]] = set()

    def leave_out(self, port: int) -> None:
        """Send no new connections to `port`; existing connections stay."""
        with suppress(ValueError):
            self._ports.remove(port)

    def take_in(self, port: int) -> None:
        """Send connections to `port` again."""
        self.leave_out(port)
        self.taken.setdefault(port, 0)
        self._ports.append(port)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Forward connections inside the context."""
        server = await asyncio.start_server(self._start, self._address, self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for _ in range(len(self._ports)):
                port = self._ports.pop(0)
                self._ports.append(port)
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        answers, questions = await asyncio.open_connection("127.0.0.1", port)
                except (OSError, TimeoutError):
                    continue
                self.taken[port] += 1
                await asyncio.gather(pipe(reader, questions), pipe(answers, writer))
                return
        finally:
            writer.close()


async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy bytes until either end closes."""
    with suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()
