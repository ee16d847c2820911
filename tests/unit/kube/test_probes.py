"""The probes' server with and without metrics."""

from __future__ import annotations

import aiohttp
import pytest

from hugetlb_quota.kube.probes import serve_probes
from tests.kube.process import free_ports


async def get(port: int, path: str) -> tuple[int, str, bytes]:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session,
        session.get(f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status, answer.headers["Content-Type"], await answer.read()


async def test_metrics_are_rendered_at_every_scrape_even_before_the_program_is_ready() -> None:
    (port,) = free_ports(1)
    scrapes = iter((b"a 1\n", b"a 2\n"))
    async with serve_probes("127.0.0.1", port, lambda: "pods", lambda: next(scrapes)):
        kind = "text/plain; version=0.0.4; charset=utf-8"
        assert await get(port, "/metrics") == (200, kind, b"a 1\n")
        assert await get(port, "/metrics") == (200, kind, b"a 2\n")
        assert (await get(port, "/readyz"))[0] == 503


@pytest.mark.parametrize(("path", "status"), [("/metrics", 404), ("/healthz", 200)])
async def test_a_program_without_metrics_serves_only_the_probes(path: str, status: int) -> None:
    (port,) = free_ports(1)
    async with serve_probes("127.0.0.1", port, lambda: ""):
        assert (await get(port, path))[0] == status
