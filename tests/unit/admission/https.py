"""An HTTPS server of admission with an API server in memory, and clients for tests."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import trustme

from hugetlb_quota.admission.connections import Connections
from hugetlb_quota.admission.credentials import CertificateFiles
from hugetlb_quota.admission.metrics import AdmissionMetrics
from hugetlb_quota.admission.server import serve
from tests.unit.admission.fake_api import CHANGES, FakeApi, Fate, Json, namespace, pod, quota

#: The path of the webhook for pods.
PODS = "/secret/validate-pods?timeout=10s"
#: A whole request, and a part of a request.
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = b"POST /validate-pods HTTP/1.1\r\nHost: x\r\nContent-Le"


class Server:
    """The address of a running server, and requests to it.

    ``kept``: the connections that :meth:`connect` opened.
    """

    def __init__(
        self, address: str, api: FakeApi, ca: trustme.CA, certificate: CertificateFiles
    ) -> None:
        self.address = address
        self.api = api
        self.certificate = certificate
        self.trust = ssl.create_default_context()
        ca.configure_trust(self.trust)
        self.kept: list[asyncio.StreamWriter] = []

    async def post(self, path: str, body: Any) -> tuple[int, str]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with aiohttp.ClientSession() as session:
            request = session.post(self.address + path, data=data, ssl=self.trust)
            async with request as answer:
                return answer.status, await answer.text()

    async def review(self, path: str, body: Any) -> Json:
        status, text = await self.post(path, body)
        assert status == 200, text
        answered: Json = json.loads(text)["response"]
        return answered

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.address + path, ssl=self.trust) as answer,
        ):
            return answer.status, await answer.text()


class SlowApi(FakeApi):
    """Can be slow (``delay``, in seconds), or raise an unexpected error (``broken``)."""

    delay = 0.0
    broken = False

    async def turn(self, request: str) -> Fate:
        await asyncio.sleep(self.delay)
        if self.broken:
            raise RuntimeError("a bug")
        return await super().turn(request)


def api_with_leaf() -> SlowApi:
    """An API server with db/leaf of 128Mi."""
    api = SlowApi()
    api.put(namespace("db"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}))
    return api


def issue(ca: trustme.CA, directory: Path) -> tuple[Path, Path]:
    """Write a certificate as a rotation does: whole files, put in place by rename."""
    issued = ca.issue_cert("127.0.0.1")
    paths = directory / "tls.crt", directory / "tls.key"
    for path, blob in zip(paths, (issued.cert_chain_pems[0], issued.private_key_pem), strict=True):
        blob.write_to_path(path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return paths


class OneSecret:
    """The path secret is "secret"."""

    def matches(self, part: str) -> bool:
        return part == "secret"


@asynccontextmanager
async def serving(
    directory: Path,
    api: FakeApi,
    connections: Connections | None = None,
    metrics: AdmissionMetrics | None = None,
) -> AsyncIterator[Server]:
    """A server on a free port, with the path secret "secret" and a CA of its own."""
    ca = trustme.CA()
    certificate = CertificateFiles(*issue(ca, directory))
    secret = OneSecret()
    running = serve(
        api, certificate, secret, "127.0.0.1", 0, connections, changes=CHANGES, metrics=metrics
    )
    async with running as (host, port):
        yield Server(f"https://{host}:{port}", api, ca, certificate)


def review(raw: Json, **fields: Any) -> Json:
    request = {
        "uid": "request-1",
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "operation": "CREATE",
        "namespace": raw["metadata"]["namespace"],
        "name": raw["metadata"]["name"],
        "object": raw,
    }
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": request | fields,
    }


def small(uid: str) -> Json:
    return pod(uid, {"hugepages-2Mi": "2Mi"})


async def connect(server: Server, *, send: bytes = b"") -> asyncio.StreamReader:
    host, _, port = server.address.removeprefix("https://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=server.trust)
    writer.write(send)
    await writer.drain()
    server.kept.append(writer)
    return reader


async def is_closed(reader: asyncio.StreamReader) -> bool:
    with suppress(ConnectionResetError):
        return await reader.read() == b""
    return True


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)
