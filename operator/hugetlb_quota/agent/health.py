"""The agent's answers to kubelet's probes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web


@asynccontextmanager
async def serve_health(bind: str, port: int, waiting_for: Callable[[], str]) -> AsyncIterator[None]:
    """Serve ``/healthz`` and ``/readyz`` over plain HTTP.

    :param waiting_for: what is missing until the agent is ready; "" when nothing is.
    :raises OSError: when the port is taken.
    """

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        missing = waiting_for()
        if missing:
            return web.Response(status=503, text=f"waiting for {missing}\n")
        return web.Response(text="ok\n")

    application = web.Application(client_max_size=1024)
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, bind, port, shutdown_timeout=1.0).start()
        yield
    finally:
        await runner.cleanup()
