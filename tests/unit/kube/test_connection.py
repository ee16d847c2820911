"""The connection to a server that misbehaves on purpose."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from hugetlb_quota.kube import errors, transport
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.events import Regarding, publish
from hugetlb_quota.kube.resources import EVENTS, HUGETLB_QUOTAS, NODES, PODS
from tests.unit.http_server import serve, write_kubeconfig

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """A server with one handler for all requests, which it records."""

    def __init__(self) -> None:
        self.seen: list[web.Request] = []
        self.bodies: list[Any] = []
        self.handler: Handler | None = None
        self.over = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        self.bodies.append(await request.read())
        assert self.handler is not None
        return await self.handler(request)

    def answers(self, status: int, body: Any) -> None:
        async def handler(_: web.Request) -> web.StreamResponse:
            text = body if isinstance(body, str) else json.dumps(body)
            return web.Response(status=status, text=text)

        self.handler = handler


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, int]]:
    server = Server()
    runner = await serve(server.handle)
    yield server, runner.addresses[0][1]
    server.over.set()
    await runner.cleanup()


@pytest.fixture
async def connected(
    server: tuple[Server, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Connection, Server]]:
    point_at(server[1], tmp_path, monkeypatch)
    async with Connection.open("hugetlb-quota-test") as connection:
        yield connection, server[0]


def point_at(port: int, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "kubeconfig"
    write_kubeconfig(path, port)
    monkeypatch.setenv("KUBECONFIG", str(path))


Connected = tuple[Connection, Server]


async def test_a_request_names_the_program_and_carries_the_token(connected: Connected) -> None:
    connection, server = connected
    server.answers(200, {"kind": "HugeTLBQuota"})
    assert await connection.get(HUGETLB_QUOTAS, "leaf", "db") == {"kind": "HugeTLBQuota"}
    (request,) = server.seen
    assert request.path == "/apis/hugetlb.dev/v1alpha1/namespaces/db/hugetlbquotas/leaf"
    assert request.headers["User-Agent"].startswith("hugetlb-quota-test/")
    assert request.headers["Authorization"] == "Bearer secret"


async def test_requests_share_a_connection(connected: Connected) -> None:
    connection, server = connected
    for status in (200, 404, 200):
        server.answers(status, {})
        await asyncio.gather(connection.get(NODES, "a"), return_exceptions=True)
    transports = [request.transport for request in server.seen]
    assert transports[0] is transports[1] is transports[2] is not None


async def test_a_page_of_a_list(connected: Connected) -> None:
    connection, server = connected
    server.answers(200, {"items": []})
    await connection.list_page(
        PODS, field_selector="spec.nodeName=a", limit=500, continuation="tok=en"
    )
    (request,) = server.seen
    assert request.path == "/api/v1/pods"
    assert dict(request.query) == {
        "fieldSelector": "spec.nodeName=a",
        "limit": "500",
        "continue": "tok=en",
    }


async def test_bodies_are_sent_unchanged(connected: Connected) -> None:
    connection, server = connected
    server.answers(200, {})
    body: dict[str, Any] = {"status": {"pods": {}, "empty": [], "null": None}}
    await connection.replace(HUGETLB_QUOTAS, "leaf", body, "db", subresource="status")
    assert json.loads(server.bodies[0]) == body
    assert server.seen[0].path.endswith("/hugetlbquotas/leaf/status")


async def test_an_error_has_the_words_of_the_server(connected: Connected) -> None:
    connection, server = connected
    server.answers(409, {"kind": "Status", "reason": "Conflict", "message": "the sentence"})
    with pytest.raises(errors.Conflict, match="the sentence"):
        await connection.get(NODES, "a")


async def test_a_proxys_error_page_is_an_api_error(connected: Connected) -> None:
    connection, server = connected
    server.answers(503, "<html>busy</html>")
    with pytest.raises(errors.ApiError, match="busy"):
        await connection.get(NODES, "a")
    server.answers(200, "<html>welcome</html>")
    with pytest.raises(errors.ApiUnreachable):
        await connection.get(NODES, "a")


async def test_a_silent_server_times_out(connected: Connected) -> None:
    connection, server = connected

    async def hang(_: web.Request) -> web.StreamResponse:
        await server.over.wait()
        return web.Response()

    server.handler = hang
    with pytest.raises(errors.ApiUnreachable, match=r"did not answer GET .* within 0\.2 s"):
        await connection.get(NODES, "a", timeout=0.2)


async def test_no_server_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(1, tmp_path, monkeypatch)
    async with Connection.open() as connection:
        with pytest.raises(errors.ApiUnreachable, match="can't be reached"):
            await connection.get(NODES, "a")


async def test_a_missing_configuration_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(NotConfigured, match=r"[^.]\. Set KUBECONFIG"):
        async with Connection.open():
            pass
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(NotConfigured, match=r"[^.]\. Set KUBECONFIG, or run in a pod"):
        async with Connection.open():
            pass


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_pod_uses_its_service_account(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(host).configure_cert(trust)
    ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("secret")
    server = Server()
    server.answers(200, {"kind": "Node"})
    runner = await serve(server.handle, host, trust)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(runner.addresses[0][1]))
    monkeypatch.setattr(transport, "ACCOUNT", tmp_path)
    body: dict[str, Any] = {"status": {"null": None}}
    async with Connection.open("hugetlb-quota-test") as connection:
        assert await connection.get(NODES, "a") == {"kind": "Node"}
        # Kubelet renews the token.
        (tmp_path / "token").write_text("renewed\n")
        await connection.list_page(PODS, field_selector="spec.nodeName=a", limit=5)
        connection._transport._read_again_at = 0.0  # type: ignore[attr-defined]
        await connection.replace(NODES, "a", body)
        client = await connection.client()
        assert client.configuration.host == connection.server
    await runner.cleanup()
    tokens = [request.headers["Authorization"] for request in server.seen]
    assert tokens == ["Bearer secret", "Bearer secret", "Bearer renewed"]
    assert server.seen[0].headers["User-Agent"].startswith("hugetlb-quota-test/")
    assert dict(server.seen[1].query) == {"fieldSelector": "spec.nodeName=a", "limit": "5"}
    assert json.loads(server.bodies[2]) == body


async def test_a_service_account_without_a_token_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(transport, "ACCOUNT", tmp_path)
    with pytest.raises(NotConfigured, match=f"The ServiceAccount in {tmp_path} can't be used"):
        async with Connection.open():
            pass


def streaming(*chunks: bytes, until: asyncio.Event | None = None) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
            await asyncio.sleep(0.01)
        if until is not None:
            await until.wait()
        return response

    return handler


async def test_events_are_complete_for_any_chunks(connected: Connected) -> None:
    connection, server = connected
    large = {"type": "ADDED", "object": {"padding": "x" * 5 * 1024**2}}
    stream = b"".join(json.dumps(each).encode() + b"\n" for each in ({"type": "A"}, large))
    server.handler = streaming(stream[:5], stream[5:20], stream[20:], b'{"type": "B"}\n')
    events = [event async for event in connection.watch(PODS, "7", field_selector="a=b")]
    assert events == [{"type": "A"}, large, {"type": "B"}]
    assert server.seen[0].query["allowWatchBookmarks"] == "true"
    assert server.seen[0].query["resourceVersion"] == "7"
    assert int(server.seen[0].query["timeoutSeconds"]) > 0


async def test_a_watch_that_is_too_old_is_gone(connected: Connected) -> None:
    connection, server = connected
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    server.handler = streaming(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
    with pytest.raises(errors.Gone, match="too old"):
        async for _ in connection.watch(PODS, "7"):
            pass


async def test_a_silent_watch_is_unreachable(connected: Connected) -> None:
    connection, server = connected
    server.handler = streaming(b'{"type": "A"}\n', until=server.over)
    watch = connection.watch(PODS, "7", silence=0.3)
    assert await anext(watch) == {"type": "A"}
    with pytest.raises(errors.ApiUnreachable, match=r"within 0\.3 s"):
        await asyncio.wait_for(anext(watch), 5)


async def test_an_event_that_is_refused_is_only_logged(connected: Connected) -> None:
    connection, server = connected
    server.answers(403, {"kind": "Status", "reason": "Forbidden", "message": "no"})
    quota = Regarding("hugetlb.dev/v1alpha1", "HugeTLBQuota", "db", "leaf", "u")
    await publish(
        connection,
        quota,
        kind="Warning",
        reason="Detached",
        note="x" * 5000,
        program="controller",
        instance="controller-0",
    )
    body = json.loads(server.bodies[0])
    assert server.seen[0].path == EVENTS.path("db")
    assert len(body["note"]) == 1024
    assert body["regarding"]["uid"] == "u"
