"""How many connections there may be, for how long one may say nothing, and how they end.

The HTTP server closes a connection that is idle after a request, but one that never sends
one, or half of its headers, it keeps for ever; and each takes a quarter of a MiB for TLS.

Nobody can close an idle connection without harm: a request may be on its way, and its client
can't know whether it was read. The API server does not send such a request again; the create
that it is about fails. So at the end every answer says ``Connection: close``, and an idle
connection is left to the API server to use or to close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
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
#: Seconds for which a program that ends goes on answering: after 90 the API server has closed
#: each connection that it did not use.
DRAIN_TIMEOUT: Final = 95.0
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
    :param drain: seconds that :meth:`drain` waits at most.
    """

    def __init__(
        self,
        most: int = CONNECTIONS,
        first_request: float = FIRST_REQUEST_TIMEOUT,
        idle: float = IDLE_TIMEOUT,
        drain: float = DRAIN_TIMEOUT,
    ) -> None:
        self._most = most
        self._first_request = first_request
        self._idle = idle
        self._drain = drain
        #: Whether the program ends: then each answer is the last of its connection.
        self.draining = False
        self._none_left = asyncio.Event()
        self._none_left.set()
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
            return await self._handle(request, handler)
        connection.busy += 1
        try:
            return await self._handle(request, handler)
        finally:
            connection.busy -= 1
            connection.until = asyncio.get_running_loop().time() + self._idle
            if connection.transport in self._open:
                self._open[connection.transport] = self._open.pop(connection.transport)

    async def _handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The answer; the last of its connection if the program ends by then."""
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
        """Go on answering until no connection is left, or the time for that is over."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain):
                await self._none_left.wait()

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
        self._none_left.clear()
        if len(self._open) > self._most:
            self._close(next(each for each in self._open.values() if not each.busy))

    def closed(self, connection: _Bounded) -> None:
        """One connection less."""
        if connection.transport is not None:
            self._forget(connection.transport)

    def _close(self, connection: _Bounded) -> None:
        assert connection.transport is not None
        self._forget(connection.transport)
        connection.transport.abort()

    def _forget(self, transport: asyncio.BaseTransport) -> None:
        self._open.pop(transport, None)
        if not self._open:
            self._none_left.set()
