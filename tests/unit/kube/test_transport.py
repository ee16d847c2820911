"""The transports: the options that a kubeconfig or a pod's environment sets for requests."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import yaml
from aiohttp import web

from hugetlb_quota.kube.transport import ByKubeconfig, InPod
from tests.unit.http_server import serve

Json = dict[str, Any]
LIMIT = aiohttp.ClientTimeout(total=10)
#: An address where no server listens.
NOWHERE = "http://127.0.0.1:1"


class Server:
    """A server on a loopback port, which records its requests and their bodies."""

    def __init__(self) -> None:
        self.seen: list[tuple[web.Request, bytes]] = []
        self.response: Json = {}
        self.port = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request, await request.read()))
        return web.Response(**self.response)

    @property
    def targets(self) -> list[str]:
        """The first lines of the requests, which for a proxy have the whole URL."""
        return [f"{request.method} {request.raw_path}" for request, _ in self.seen]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    runner = await serve(server.handle)
    server.port = runner.addresses[0][1]
    yield server
    await runner.cleanup()


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


async def load(directory: Path, address: str, **cluster: Any) -> ByKubeconfig:
    """The transport of a kubeconfig for ``address``, with further fields of its cluster."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": address, **cluster}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return await ByKubeconfig.load(str(path), "tester/1")


async def get(transport: ByKubeconfig, path: str = "/version") -> int:
    """The status of the answer to one GET; closes the transport."""
    try:
        answer = await transport.send("GET", path, {}, None, LIMIT)
        answer.release()
        return answer.status
    finally:
        await transport.close()


async def test_a_body_has_the_content_type_of_its_method(server: Server, tmp_path: Path) -> None:
    transport = await load(tmp_path, server.address)
    requests: tuple[tuple[str, Json | None], ...] = (
        ("PUT", {"a": None}),
        ("PATCH", {"a": 1}),
        ("POST", {}),
        ("GET", None),
    )
    for method, body in requests:
        (await transport.send(method, "/x", {}, body, LIMIT)).release()
    await transport.close()
    assert [(each.headers.get("Content-Type"), body) for each, body in server.seen] == [
        ("application/json", b'{"a":null}'),
        ("application/merge-patch+json", b'{"a":1}'),
        ("application/json", b"{}"),
        (None, b""),
    ]


async def test_a_server_below_a_path_keeps_its_path(server: Server, tmp_path: Path) -> None:
    assert await get(await load(tmp_path, f"{server.address}/k8s/clusters/c-1/")) == 200
    assert server.targets == ["GET /k8s/clusters/c-1/version"]


async def test_a_redirect_is_not_followed_because_it_would_carry_the_token_away(
    server: Server, tmp_path: Path
) -> None:
    server.response = {"status": 302, "headers": {"Location": "/elsewhere"}}
    assert await get(await load(tmp_path, server.address)) == 302
    assert server.targets == ["GET /version"]


async def test_a_kubeconfig_names_its_proxy(server: Server, tmp_path: Path) -> None:
    assert await get(await load(tmp_path, NOWHERE, **{"proxy-url": server.address})) == 200
    assert server.targets == [f"GET {NOWHERE}/version"]


async def test_the_environment_names_a_proxy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    assert await get(await load(tmp_path, NOWHERE)) == 200
    assert server.targets == [f"GET {NOWHERE}/version"]


async def test_no_proxy_names_servers_that_need_no_proxy(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", NOWHERE)
    monkeypatch.setenv("no_proxy", "example.org,127.0.0.1")
    assert await get(await load(tmp_path, server.address)) == 200
    assert server.targets == ["GET /version"]


async def test_the_proxy_of_a_kubeconfig_comes_before_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", NOWHERE)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert await get(await load(tmp_path, NOWHERE, **{"proxy-url": server.address})) == 200


async def test_a_kubeconfig_names_the_server_in_the_certificate(tmp_path: Path) -> None:
    """A tunnel to the API server has another address than the certificate."""
    ca = trustme.CA()
    trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("api.example.org").configure_cert(trust)
    ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    server = Server()
    runner = await serve(server.handle, tls=trust)
    address = f"https://127.0.0.1:{runner.addresses[0][1]}"
    cluster = {"certificate-authority": str(tmp_path / "ca.crt")}
    named = await load(tmp_path, address, **cluster, **{"tls-server-name": "api.example.org"})
    assert await get(named) == 200
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await get(await load(tmp_path, address, **cluster))
    await runner.cleanup()


@pytest.mark.parametrize(
    ("host", "address"),
    [("10.0.0.1", "https://10.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")],
)
async def test_the_environment_of_a_pod_names_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, address: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("secret")
    transport = InPod("tester/1", tmp_path)
    assert transport.server == address
    await transport.close()


@pytest.mark.parametrize("missing", ["HOST", "PORT"])
async def test_a_process_without_the_environment_of_a_pod_is_not_in_a_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setenv(f"KUBERNETES_SERVICE_{missing}", "")
    with pytest.raises(ValueError, match="KUBERNETES_SERVICE_PORT are not set"):
        InPod("tester/1", tmp_path)
