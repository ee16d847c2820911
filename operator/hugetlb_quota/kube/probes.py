"""The probes that kubelet asks a program for: alive, and ready."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def serve_probes(
    address: str, port: int, ready: Callable[[], str | None]
) -> AsyncIterator[None]:
    """Answer GET /healthz and /readyz over plain HTTP while the context lasts.

    :param ready: None when ready, else a sentence that says what is awaited.
    :raises OSError: when the port can't be had.
    """

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        awaited = ready()
        return web.Response(text=f"{awaited or 'ok'}\n", status=200 if awaited is None else 503)

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port).start()
        yield
    finally:
        await runner.cleanup()
