"""A small HTTP server for tests of clients, and a kubeconfig that names it."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import yaml
from aiohttp import web


async def serve(
    handle: Callable[[web.Request], Awaitable[web.StreamResponse]],
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> web.AppRunner:
    """Answer every request with ``handle``. The caller ends the server with ``cleanup()``.

    The server's port is ``addresses[0][1]`` of the result.
    """
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, host, 0, ssl_context=tls).start()
    return runner


def write_kubeconfig(path: Path, port: int) -> None:
    """Write a kubeconfig for a server on a loopback port, with the token "secret"."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config))
