"""How many connections there may be, for how long one may say nothing, and how they end.

The HTTP server closes a connection that is idle after a request, but one that never sends
one, or half of its headers, it keeps for ever; and each takes about 120 KiB with its request.

Nobody can close a connection without harm: a request may be on its way, and its client
can't know whether it was read. The API server does not send such a request again; the create
that it is about fails. So at the end every answer says ``Connection: close``, and an idle
connection is left to the API server to use or to close. And where there are as many as there
may be, the next is not accepted: it waits in the kernel until one has ended, or has said
nothing for so long that nothing can be on its way.
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

#: Connections at the same time, handshakes among them. The API server has one for each request
#: that it asks about, 600 unless ``--max-requests-inflight`` and its sibling say otherwise, and
#: beside them those that it has dialled and not needed.
CONNECTIONS: Final = 1024
#: Seconds for the TLS handshake.
HANDSHAKE_TIMEOUT: Final = 5.0
#: Seconds for the first request, headers and body.
FIRST_REQUEST_TIMEOUT: Final = 10.0
#: Seconds without a request after the last answer: the API server itself closes connections
#: after 90 (golang.org net/http, ``IdleConnTimeout``), and must be the first to do so.
IDLE_TIMEOUT: Final = 120.0
#: Seconds of silence after which a connection may go for one that waits.
SPARED: Final = 1.0
#: Seconds for which a program that ends goes on answering: after 90 the API server has closed
#: each connection that it did not use.
DRAIN_TIMEOUT: Final = 95.0
#: Seconds between looks, of the sweep and of who waits for a place.
PERIOD: Final = 1.0
_LOOK: Final = 0.1

logger = logging.getLogger(__name__)


class _Bounded(asyncio.Protocol):
    """One connection: hands everything on to ``inner``, and knows when it last did something."""

    def __init__(self, connections: Connections, inner: RequestHandler) -> None:
        self._connections = connections
        self._inner = inner
        self.transport: asyncio.Transport | None = None
        self.busy = 0
        self.asked = False
        self.heard = self.until = asyncio.get_running_loop().time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not asked for its class: uvloop's transports are of none of asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(transport)
        self._connections.opened(self)

    def data_received(self, data: bytes) -> None:
        self.heard = asyncio.get_running_loop().time()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        self._inner.eof_received()
        return None

    def is_spoken_to(self) -> bool:
        """Whether something has come that a busy program did not read yet."""
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

    :param most: how many there may be. For one more, one goes that has been silent for
        ``spared`` seconds: one that never asked before any other, and the longest silent first.
        Where there is none, the new one waits.
    :param drain: seconds that :meth:`drain` waits at most.
    """

    def __init__(
        self,
        most: int = CONNECTIONS,
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
        #: Whether the program ends: then each answer is the last of its connection.
        self.draining = False
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._open: dict[asyncio.BaseTransport, _Bounded] = {}
        self._opening: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def accepted(
        self, listening: socket.socket, make: Callable[[], RequestHandler], context: ssl.SSLContext
    ) -> AsyncIterator[None]:
        """Accept while the context lasts; those that are open then stay."""
        task = asyncio.create_task(self._accept(listening, make, context), name="accepting")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            listening.close()

    async def _accept(
        self, listening: socket.socket, make: Callable[[], RequestHandler], context: ssl.SSLContext
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._room()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                logger.error("No connection can be accepted; trying again: %s", error)
                await asyncio.sleep(PERIOD)
                continue
            task = asyncio.create_task(self._shake_hands(accepted, make, context))
            self._opening.add(task)
            task.add_done_callback(self._opened_or_not)

    async def _room(self) -> None:
        """Wait until there is a place for one more."""
        while len(self._open) + len(self._opening) >= self._most:
            if (silent := self._silent()) is not None:
                self._close(silent)
                continue
            self._freed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._freed.wait()

    def _silent(self) -> _Bounded | None:
        """The one to go for another, if any may."""
        before = asyncio.get_running_loop().time() - self._spared
        silent = [it for it in self._open.values() if not it.busy and it.heard <= before]
        silent.sort(key=lambda each: (each.asked, each.heard))
        return next((each for each in silent if not each.is_spoken_to()), None)

    async def _shake_hands(
        self, accepted: socket.socket, make: Callable[[], RequestHandler], context: ssl.SSLContext
    ) -> None:
        # Who fails in it, or goes meanwhile, is of no interest.
        with suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Bounded(self, make()),
                accepted,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
            )

    def _opened_or_not(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self._freed.set()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Counts a connection as busy while a request of it is answered."""
        connection = self._open.get(request.transport) if request.transport else None
        if connection is None:
            return await self._handle(request, handler)
        connection.busy += 1
        connection.asked = True
        try:
            return await self._handle(request, handler)
        finally:
            connection.busy -= 1
            connection.heard = asyncio.get_running_loop().time()
            connection.until = connection.heard + self._idle

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
        connection.heard = asyncio.get_running_loop().time()
        connection.until = connection.heard + self._first_request
        self._open[connection.transport] = connection
        self._none_left.clear()

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
        self._freed.set()
        if not self._open:
            self._none_left.set()
