"""The HTTP server for kubelet's liveness and readiness probes and for Prometheus."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from hugetlb_quota.kube.listening import listen

#: The Content-Type of the text format that every Prometheus reads.
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class NoProbePort(Exception):
    """The server can't listen on the port of the probes."""

    def __init__(self, bind: str, port: int, error: OSError) -> None:
        super().__init__(
            f"The probes can't be served on {bind} port {port} ({error.strerror or error});"
            " choose another with --health-port."
        )


@asynccontextmanager
async def serve_probes(
    bind: str,
    port: int,
    waiting_for: Callable[[], str],
    metrics: Callable[[], bytes] | None = None,
) -> AsyncIterator[None]:
    """Serve ``/healthz``, ``/readyz`` and ``/metrics`` over plain HTTP.

    :param bind: the address, as for :func:`listen`.
    :param waiting_for: returns what the program waits for; "" when the program is ready.
    :param metrics: returns the metrics in Prometheus' text format 0.0.4; None: no ``/metrics``.
    :raises NoProbePort: if the server can't listen on the port.
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
    if metrics is not None:
        render = metrics

        async def scrape(request: web.Request) -> web.Response:
            return web.Response(body=render(), headers={"Content-Type": _METRICS_TYPE})

        application.router.add_get("/metrics", scrape)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            for listening in listen(bind, port):
                await web.SockSite(runner, listening).start()
        except OSError as error:
            raise NoProbePort(bind, port, error) from error
        yield
    finally:
        await runner.cleanup()
