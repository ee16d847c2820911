"""Bound the number of connections and their idle time, and close them without lost requests.

aiohttp closes a connection that is idle after a request. But aiohttp keeps a connection for ever
if the client never sends a request, or sends only half of the headers. A connection with its
request takes about 120 KiB.

A server that closes a connection may lose a request that is on its way. The API server does not
send such a request again, and the create that the request is about fails. Two rules follow:

- When the program ends, every answer has the header ``Connection: close``. An idle connection
  stays open until the API server uses or closes the connection.
- When there are as many connections as allowed, no further connection is accepted: it waits in
  the kernel until a connection ends, or has been silent for so long that no request can be on its
  way.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, cast

from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler

from hugetlb_quota.admission.background import in_background

#: The largest number of connections, with those in the TLS handshake. An API server has one
#: connection for each request that it handles: 600 by default (``--max-requests-inflight`` and
#: ``--max-mutating-requests-inflight``). It also has connections that it opened and does not use.
MOST_CONNECTIONS: Final = 1024
#: The time limit of the TLS handshake, in seconds.
HANDSHAKE_TIMEOUT: Final = 5.0
#: The time limit of the first request, with headers and body, in seconds.
FIRST_REQUEST_TIMEOUT: Final = 10.0
#: How long a connection may be idle after an answer, in seconds. The API server closes idle
#: connections after 90 s (golang.org net/http, ``IdleConnTimeout``), and must do so first.
IDLE_TIMEOUT: Final = 120.0
#: After this silence, in seconds, a connection may be closed for a new connection.
SPARED: Final = 1.0
#: How long a program that ends goes on answering, in seconds. After 90 s the API server has closed
#: every connection that it did not use.
DRAIN_TIMEOUT: Final = 95.0
#: The period in which idle connections are closed, and the wait after a failed accept; in seconds.
PERIOD: Final = 1.0
#: The period in which a waiting connection looks for a silent one to close, in seconds.
_LOOK: Final = 0.1

logger = logging.getLogger(__name__)


class _Connection(asyncio.Protocol):
    """One connection: passes everything on to ``inner``, and notes when something happened.

    ``busy``: the number of requests that are being answered. ``had_request``: whether a whole
    request came. ``active_at``: when data last came or an answer ended. ``until``: when the
    connection is closed if it is idle. Both times are by the event loop's clock.
    """

    def __init__(self, connections: Connections, inner: RequestHandler) -> None:
        self._connections = connections
        self._inner = inner
        self.transport: asyncio.Transport | None = None
        self.busy = 0
        self.had_request = False
        self.active_at = self.until = asyncio.get_running_loop().time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # No isinstance: the transports of uvloop are not subclasses of those of asyncio.
        self.transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(transport)
        self._connections.opened(self)

    def data_received(self, data: bytes) -> None:
        self.active_at = asyncio.get_running_loop().time()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        self._inner.eof_received()
        return None

    def has_unread_data(self) -> bool:
        """Whether data came that a busy program has not read yet."""
        assert self.transport is not None
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.closed(self)
        self._inner.connection_lost(error)


class Connections:
    """All connections of one server.

    :param most: the largest number of connections. For one more, a connection is closed that was
        silent for ``spared`` seconds: first a connection that never had a request, and then the
        one with the longest silence. If there is none, the new connection waits.
    :param first_request: the time limit of the first request, in seconds.
    :param idle: how long a connection may be idle after an answer, in seconds.
    :param drain: how long :meth:`drain` waits at most, in seconds.
    """

    def __init__(
        self,
        most: int = MOST_CONNECTIONS,
        first_request: float = FIRST_REQUEST_TIMEOUT,
        idle: float = IDLE_TIMEOUT,
        drain: float = DRAIN_TIMEOUT,
        spared: float = SPARED,
    ) -> None:
        self._most = most
        self._first_request = first_request
        self._idle = idle
        self._drain = drain
        self._spared = spared
        #: Whether the program ends; then each answer closes its connection.
        self.draining = False
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self._open: dict[asyncio.BaseTransport, _Connection] = {}
        self._handshakes: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def accepted(
        self, listening: socket.socket, make: Callable[[], RequestHandler], context: ssl.SSLContext
    ) -> AsyncIterator[None]:
        """Accept connections while the context lasts; at the end, open connections stay open.

        :param make: makes the aiohttp protocol of a new connection.
        """
        try:
            async with in_background(accepting=self._accept(listening, make, context)):
                yield
        finally:
            listening.close()

    async def _accept(
        self, listening: socket.socket, make: Callable[[], RequestHandler], context: ssl.SSLContext
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wait_for_room()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                logger.error("A connection could not be accepted; trying again: %s", error)
                await asyncio.sleep(PERIOD)
                continue
            task = asyncio.create_task(self._shake_hands(accepted, make, context))
            self._handshakes.add(task)
            task.add_done_callback(self._handshake_ended)

    async def _wait_for_room(self) -> None:
        """Wait until one more connection may be accepted."""
        while len(self._open) + len(self._handshakes) >= self._most:
            if (silent := self._silent()) is not None:
                self._close(silent)
                continue
            self._freed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._freed.wait()

    def _silent(self) -> _Connection | None:
        """The connection to close for a new one; None if there is none."""
        before = asyncio.get_running_loop().time() - self._spared
        silent = [
            each for each in self._open.values() if not each.busy and each.active_at <= before
        ]
        silent.sort(key=lambda each: (each.had_request, each.active_at))
        return next((each for each in silent if not each.has_unread_data()), None)

    async def _shake_hands(
        self, accepted: socket.socket, make: Callable[[], RequestHandler], context: ssl.SSLContext
    ) -> None:
        # A client that fails the handshake, or closes the connection meanwhile, is no error here.
        with suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Connection(self, make()),
                accepted,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
            )

    def _handshake_ended(self, task: asyncio.Task[None]) -> None:
        self._handshakes.discard(task)
        self._freed.set()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count the connection as busy while its request is answered."""
        connection = self._open.get(request.transport) if request.transport else None
        if connection is None:
            return await self._handle(request, handler)
        connection.busy += 1
        connection.had_request = True
        try:
            return await self._handle(request, handler)
        finally:
            connection.busy -= 1
            connection.active_at = asyncio.get_running_loop().time()
            connection.until = connection.active_at + self._idle

    async def _handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The answer; if the program ends by then, the answer closes the connection."""
        try:
            answer = await handler(request)
        except web.HTTPException as error:
            if self.draining:
                error.force_close()
            raise
        if self.draining:
            answer.force_close()
        return answer

    async def drain(self) -> None:
        """Go on answering until no connection is open, or the time limit is over."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain):
                await self._all_closed.wait()

    async def sweep(self, period: float = PERIOD) -> None:
        """Close idle connections every ``period`` seconds; runs until cancelled."""
        while True:
            await asyncio.sleep(period)
            now = asyncio.get_running_loop().time()
            for connection in list(self._open.values()):
                if not connection.busy and connection.until <= now:
                    self._close(connection)

    def opened(self, connection: _Connection) -> None:
        """Add a connection after its handshake."""
        assert connection.transport is not None
        connection.active_at = asyncio.get_running_loop().time()
        connection.until = connection.active_at + self._first_request
        self._open[connection.transport] = connection
        self._all_closed.clear()

    def closed(self, connection: _Connection) -> None:
        """Remove a closed connection."""
        if connection.transport is not None:
            self._remove(connection.transport)

    def _close(self, connection: _Connection) -> None:
        assert connection.transport is not None
        self._remove(connection.transport)
        connection.transport.abort()

    def _remove(self, transport: asyncio.BaseTransport) -> None:
        self._open.pop(transport, None)
        self._freed.set()
        if not self._open:
            self._all_closed.set()
