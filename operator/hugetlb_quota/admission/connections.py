"""How many connections there may be, and for how long one may say nothing.

The HTTP server closes a connection that is idle after a request, but one that never sends
one, or half of its headers, it keeps for ever; and each takes a quarter of a MiB for TLS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler

#: Connections at the same time: the API server has one for each request that it asks about.
CONNECTIONS: Final = 512
#: Seconds for the TLS handshake.
HANDSHAKE_TIMEOUT: Final = 5.0
#: Seconds for the first request, headers and body.
FIRST_REQUEST_TIMEOUT: Final = 10.0
#: Seconds without a request after the last answer: the API server itself closes connections
#: after 90 (golang.org net/http, ``IdleConnTimeout``), and must be the first to do so.
IDLE_TIMEOUT: Final = 120.0
#: Seconds between looks.
PERIOD: Final = 1.0


class _Bounded(asyncio.Protocol):
    """One connection: hands everything on to ``inner``, and knows when it last did something."""

    def __init__(self, connections: Connections, inner: RequestHandler) -> None:
        self._connections = connections
        self._inner = inner
        self.transport: asyncio.Transport | None = None
        self.busy = 0
        self.until = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asked for its class: uvloop's transports are of none of asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(transport)
        self._connections.opened(self)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        self._inner.eof_received()
        return None

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.closed(self)
        self._inner.connection_lost(error)


class Connections:
    """All connections of one server.

    :param most: how many there may be. For one more, the one goes that has been idle
        longest; where none is idle, the new one.
    """

    def __init__(
        self,
        most: int = CONNECTIONS,
        first_request: float = FIRST_REQUEST_TIMEOUT,
        idle: float = IDLE_TIMEOUT,
    ) -> None:
        self._most = most
        self._first_request = first_request
        self._idle = idle
        #: By transport, in the order in which they became idle.
        self._open: dict[asyncio.BaseTransport, _Bounded] = {}

    def __len__(self) -> int:
        return len(self._open)

    def bound(self, make: Callable[[], RequestHandler]) -> Callable[[], asyncio.Protocol]:
        """A protocol factory whose connections are bounded."""
        return lambda: _Bounded(self, make())

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Counts a connection as busy while a request of it is answered."""
        connection = self._open.get(request.transport) if request.transport else None
        if connection is None:
            return await handler(request)
        connection.busy += 1
        try:
            return await handler(request)
        finally:
            connection.busy -= 1
            connection.until = asyncio.get_running_loop().time() + self._idle
            if connection.transport in self._open:
                self._open[connection.transport] = self._open.pop(connection.transport)

    async def sweep(self, period: float = PERIOD) -> None:
        """Close what has said nothing for too long, every ``period`` seconds, for ever."""
        while True:
            await asyncio.sleep(period)
            now = asyncio.get_running_loop().time()
            for connection in list(self._open.values()):
                if not connection.busy and connection.until <= now:
                    self._close(connection)

    def opened(self, connection: _Bounded) -> None:
        """One more connection."""
        assert connection.transport is not None
        connection.until = asyncio.get_running_loop().time() + self._first_request
        self._open[connection.transport] = connection
        if len(self._open) > self._most:
            self._close(next(each for each in self._open.values() if not each.busy))

    def closed(self, connection: _Bounded) -> None:
        """One connection less."""
        if connection.transport is not None:
            self._open.pop(connection.transport, None)

    def _close(self, connection: _Bounded) -> None:
        assert connection.transport is not None
        self._open.pop(connection.transport, None)
        connection.transport.abort()
