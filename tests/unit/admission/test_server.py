"""The server with real TLS, and an API server in memory."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from hugetlb_quota.admission.connections import Connections
from hugetlb_quota.admission.credentials import CertificateFiles
from hugetlb_quota.admission.metrics import AdmissionMetrics
from hugetlb_quota.admission.server import serve
from hugetlb_quota.admission.webhooks import BODY_LIMIT
from hugetlb_quota.kube import errors
from tests.unit.admission.fake_api import CHANGES, FakeApi, Fate, Json, namespace, pod, quota


class Server:
    def __init__(self, address: str, api: FakeApi, ca: trustme.CA) -> None:
        self.address = address
        self.api = api
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


class Api(FakeApi):
    """Can be slow (``delay``, in seconds), or raise an unexpected error (``broken``)."""

    delay = 0.0
    broken = False

    async def turn(self, request: str) -> Fate:
        await asyncio.sleep(self.delay)
        if self.broken:
            raise RuntimeError("a bug")
        return await super().turn(request)


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


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    api = Api()
    api.put(namespace("db"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}))
    ca = trustme.CA()
    certificate = CertificateFiles(*issue(ca, tmp_path))
    async with serve(api, certificate, OneSecret(), "127.0.0.1", 0, changes=CHANGES) as (
        host,
        port,
    ):
        yield Server(f"https://{host}:{port}", api, ca)


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


PODS = "/secret/validate-pods?timeout=10s"


async def test_refusals_make_an_event_and_dry_runs_do_not(tmp_path: Path) -> None:
    api, ca = FakeApi(), trustme.CA()
    api.put(namespace("db"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "2Mi"}))
    certificate = CertificateFiles(*issue(ca, tmp_path))
    serving = serve(api, certificate, OneSecret(), "127.0.0.1", 0, changes=CHANGES)
    async with serving as (host, port):
        server = Server(f"https://{host}:{port}", api, ca)
        for fields in ({}, {}, {"dryRun": True}):
            assert not (await server.review(PODS, review(pod(), **fields)))["allowed"]
    assert api.event_counts == [("db/leaf", 2)]


async def test_metrics_count_decisions_by_cause_and_show_the_certificate(
    tmp_path: Path,
) -> None:
    api, ca, metrics = Api(), trustme.CA(), AdmissionMetrics()
    api.put(namespace("db"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "64Mi"}))
    certificate = CertificateFiles(*issue(ca, tmp_path))
    path = OneSecret()
    serving = serve(api, certificate, path, "127.0.0.1", 0, changes=CHANGES, metrics=metrics)
    async with serving as (host, port):
        server = Server(f"https://{host}:{port}", api, ca)
        await server.review(PODS, review(pod()))
        await server.review(PODS, review(pod("two", {"hugepages-2Mi": "1Gi"})))
        api.broken = True
        await server.review(PODS, review(pod("three")))
        rendered = metrics.render().decode()
    for cause in ("none", "rule", "bug"):
        row = f'hugetlb_quota_admission_decisions_total{{cause="{cause}",kind="pod"}} 1.0\n'
        assert row in rendered
    assert 'hugetlb_quota_admission_batch_size_bucket{le="1.0"}' in rendered
    assert "hugetlb_quota_admission_writes_total 1.0\n" in rendered
    assert certificate.ends is not None
    assert certificate.ends > 1.7e9
    assert "hugetlb_quota_certificate_expiry_timestamp_seconds" in rendered


async def test_a_decision_has_the_uid_of_its_request(server: Server) -> None:
    assert await server.review(PODS, review(pod())) == {"uid": "request-1", "allowed": True}
    refused = await server.review(PODS, review(pod("two", {"hugepages-2Mi": "1Gi"})))
    assert (refused["uid"], refused["allowed"], refused["status"]["code"]) == (
        "request-1",
        False,
        403,
    )


async def test_quotas_have_their_own_path(server: Server) -> None:
    resource = {"group": "hugetlb.dev", "version": "v1alpha1", "resource": "hugetlbquotas"}
    bad = quota("db/bad", {"hugepages-2Mi": "3Mi"})
    answer = await server.review("/secret/validate-quotas", review(bad, resource=resource))
    assert "use 2Mi or 4Mi" in answer["status"]["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"no json", "Invalid JSON"),
        ({"kind": "AdmissionReview"}, "apiVersion is not admission.k8s.io/v1"),
        (review(pod(), object=None), "request.object is missing"),
        (review(pod(), resource={"group": "apps", "resource": "deployments"}), "deployments.apps"),
        (review(pod(), subResource="binding"), "it is about pods/binding, and this path"),
    ],
)
async def test_a_malformed_review_is_a_bad_request(server: Server, body: Any, said: str) -> None:
    status, text = await server.post(PODS, body)
    assert status == 400
    assert said in text
    assert "Nothing was changed" in text
    assert server.api.writes == []


async def test_an_update_of_a_pods_status_is_answered(server: Server) -> None:
    before, after = pod(labels={"class": "none"}), pod(labels={"class": "gold"})
    update = review(after, oldObject=before, operation="UPDATE", subResource="status")
    assert (await server.review(PODS, update))["allowed"]


async def test_a_body_above_the_limit_is_refused(server: Server) -> None:
    status, text = await server.post(PODS, b" " * (BODY_LIMIT + 1))
    assert status == 413
    assert f"larger than {BODY_LIMIT} bytes" in text


async def test_a_body_with_two_large_objects_is_read(server: Server) -> None:
    raw = pod(annotations={"padding": "x" * (BODY_LIMIT - 4096)})
    assert (await server.review(PODS, review(raw)))["allowed"]


async def test_a_slow_decision_is_refused_before_the_api_servers_timeout(server: Server) -> None:
    assert isinstance(server.api, Api)
    server.api.delay = 5.0
    async with asyncio.timeout(5):
        answer = await server.review("/secret/validate-pods?timeout=1s", review(pod()))
    assert "within 0.5 s" in answer["status"]["message"]


async def test_an_unexpected_error_is_a_refusal(server: Server) -> None:
    assert isinstance(server.api, Api)
    server.api.broken = True
    answer = await server.review(PODS, review(pod()))
    assert not answer["allowed"]
    assert "RuntimeError" in answer["status"]["message"]


class Unreachable(FakeApi):
    async def turn(self, request: str) -> Fate:
        raise errors.ApiUnreachable("The API server can't be reached for GET /x: refused.")


async def test_without_the_api_server_it_refuses_and_is_not_ready(tmp_path: Path) -> None:
    ca = trustme.CA()
    certificate = CertificateFiles(*issue(ca, tmp_path))
    async with serve(Unreachable(), certificate, OneSecret(), "127.0.0.1", 0, changes=CHANGES) as (
        host,
        port,
    ):
        server = Server(f"https://{host}:{port}", Unreachable(), ca)
        answer = await server.review(PODS, review(pod()))
        assert "can't be reached" in answer["status"]["message"]
        assert (await server.get("/healthz"))[0] == 200
        status, text = await server.get("/readyz")
        assert (status, "can't be reached" in text) == (503, True)


async def test_it_is_ready_if_the_api_server_answers(server: Server) -> None:
    assert (await server.get("/readyz"))[0] == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_old_tls_is_refused(server: Server) -> None:
    server.trust.minimum_version = ssl.TLSVersion.TLSv1
    server.trust.maximum_version = ssl.TLSVersion.TLSv1_1
    server.trust.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(aiohttp.ClientConnectorError):
        await server.get("/healthz")


async def test_a_rotated_certificate_is_loaded_and_a_half_written_one_is_not(
    tmp_path: Path,
) -> None:
    old, new = trustme.CA(), trustme.CA()
    certificate = CertificateFiles(*issue(old, tmp_path))
    async with serve(FakeApi(), certificate, OneSecret(), "127.0.0.1", 0, changes=CHANGES) as (
        host,
        port,
    ):
        before = Server(f"https://{host}:{port}", FakeApi(), old)
        after = Server(f"https://{host}:{port}", FakeApi(), new)
        torn = new.issue_cert("127.0.0.1").cert_chain_pems[0]
        torn.write_to_path(tmp_path / "tls.crt")  # with the old key: half of a rotation
        certificate.refresh()
        assert (await before.get("/healthz"))[0] == 200
        issue(new, tmp_path)
        certificate.refresh()
        assert (await after.get("/healthz"))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await before.get("/healthz")


async def connect(server: Server, *, send: bytes = b"") -> asyncio.StreamReader:
    host, _, port = server.address.removeprefix("https://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=server.trust)
    writer.write(send)
    await writer.drain()
    server.kept.append(writer)
    return reader


@pytest.mark.parametrize(
    "path", ["/validate-pods", "/guess/validate-pods", "/s%C3%A9/validate-pods"]
)
async def test_a_request_without_the_path_secret_gets_404(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, text = await server.post(path, review(pod()))
    assert (status, text) == (404, "404: Not Found")
    assert server.api.writes == []
    assert "guess" not in caplog.text


HALF = b"POST /validate-pods HTTP/1.1\r\nHost: x\r\nContent-Le"
WHOLE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", HALF, WHOLE], ids=["nothing", "half of a head", "no second"])
async def test_an_idle_connection_is_closed(tmp_path: Path, sent: bytes) -> None:
    ca = trustme.CA()
    certificate = CertificateFiles(*issue(ca, tmp_path))
    bounds = Connections(first_request=0.2, idle=0.2)
    async with serve(
        FakeApi(), certificate, OneSecret(), "127.0.0.1", 0, bounds, changes=CHANGES
    ) as (
        host,
        port,
    ):
        server = Server(f"https://{host}:{port}", FakeApi(), ca)
        reader = await connect(server, send=sent)
        async with asyncio.timeout(10):
            with suppress(ConnectionResetError):
                answer = await reader.read()
                assert (b"200 OK" in answer) == (sent == WHOLE)
        assert len(bounds) == 0


def small(uid: str) -> Json:
    return pod(uid, {"hugepages-2Mi": "2Mi"})


async def is_closed(reader: asyncio.StreamReader) -> bool:
    with suppress(ConnectionResetError):
        return await reader.read() == b""
    return True


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def bounded(
    tmp_path: Path, bounds: Connections, delay: float = 0.05
) -> AsyncIterator[Server]:
    """A server with ``bounds`` that takes ``delay`` seconds for each request to the API server."""
    api, ca = Api(), trustme.CA()
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}))
    api.put(namespace("db"))
    certificate = CertificateFiles(*issue(ca, tmp_path))
    async with serve(api, certificate, OneSecret(), "127.0.0.1", 0, bounds, changes=CHANGES) as (
        host,
        port,
    ):
        api.delay = delay
        yield Server(f"https://{host}:{port}", api, ca)


async def test_a_connection_above_the_limit_waits_and_closes_no_other(tmp_path: Path) -> None:
    bounds = Connections(most=4, drain=0, spared=60)
    async with bounded(tmp_path, bounds) as server, asyncio.timeout(30):
        asking = [
            asyncio.create_task(server.review(PODS, review(small(f"p{number}"))))
            for number in range(20)
        ]
        while not all(task.done() for task in asking):
            assert len(bounds) <= 4
            await asyncio.sleep(0.005)
        assert all([(await task)["allowed"] for task in asking])


async def test_a_connection_above_the_limit_closes_a_silent_one(tmp_path: Path) -> None:
    bounds = Connections(most=4, drain=0, spared=0.05)
    async with bounded(tmp_path, bounds, delay=0.5) as server, asyncio.timeout(30):
        asking = asyncio.create_task(server.review(PODS, review(pod())))
        await until(lambda: any(each.busy for each in bounds._open.values()))
        silent = [await connect(server) for _ in range(12)]
        assert len(bounds) <= 4
        # The client that waits gets its answer.
        assert (await asking)["allowed"]
        assert await is_closed(silent[0])


async def test_a_connection_without_a_request_is_closed_before_one_with_a_request(
    tmp_path: Path,
) -> None:
    bounds = Connections(drain=0, spared=0)
    async with bounded(tmp_path, bounds) as server:
        reader = await connect(server, send=WHOLE)
        assert b"200 OK" in await reader.readline()
        (had_request,) = bounds._open.values()
        await until(lambda: bounds._silent() is had_request)
        await connect(server)
        await until(lambda: len(bounds) == 2)
        assert bounds._silent() not in (None, had_request)


async def test_a_connection_with_unread_data_is_not_silent(tmp_path: Path) -> None:
    bounds = Connections(drain=0, spared=0)
    async with bounded(tmp_path, bounds) as server:
        reader = await connect(server)
        await until(lambda: len(bounds))
        (kept,) = bounds._open.values()
        assert bounds._silent() is kept
        # From here to the next await, the data has come, and the server has not read the data.
        server.kept[0].write(WHOLE)
        assert bounds._silent() is None
        assert b"200 OK" in await reader.readline()


async def test_a_request_above_the_limit_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hugetlb_quota.admission.webhooks.MOST_REQUESTS", 2)
    bounds = Connections(drain=0)
    async with bounded(tmp_path, bounds, delay=0.5) as server, asyncio.timeout(30):
        asking = [
            asyncio.create_task(server.review(PODS, review(small(f"p{number}"))))
            for number in range(2)
        ]
        await until(lambda: sum(each.busy for each in bounds._open.values()) == 2)
        refused = (await server.review(PODS, review(small("one-more"))))["status"]
        assert not any(task.done() for task in asking)
        assert refused["code"] == 429
        assert refused["details"] == {"retryAfterSeconds": 1}
        assert "is deciding 2 other requests" in refused["message"]
        assert [(await task)["allowed"] for task in asking] == [True, True]
        assert (await server.review(PODS, review(small("later"))))["allowed"]


class Ending:
    """A server that can be ended, with its connections."""

    def __init__(self, server: Server, bounds: Connections, end: asyncio.Event) -> None:
        self.server = server
        self.bounds = bounds
        self.end = end

    async def begun(self) -> None:
        self.end.set()
        while not self.bounds.draining:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def ending(
    tmp_path: Path, **options: float
) -> AsyncIterator[tuple[Ending, asyncio.Task[None]]]:
    """A server in a task; the task is done when the server has ended."""
    ca, bounds, end = trustme.CA(), Connections(**options), asyncio.Event()  # type: ignore[arg-type]
    certificate = CertificateFiles(*issue(ca, tmp_path))
    started: asyncio.Future[Server] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        api = FakeApi()
        serving = serve(api, certificate, OneSecret(), "127.0.0.1", 0, bounds, changes=CHANGES)
        async with serving as (host, port):
            started.set_result(Server(f"https://{host}:{port}", api, ca))
            await end.wait()

    task = asyncio.create_task(run())
    try:
        yield Ending(await started, bounds, end), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_server_that_ends_goes_on_answering_and_closes_each_connection(
    tmp_path: Path,
) -> None:
    async with ending(tmp_path) as (it, task):
        url = f"{it.server.address}/secret/validate-pods"
        async with aiohttp.ClientSession() as session:

            async def ask() -> aiohttp.ClientResponse:
                async with session.post(url, json=review(pod()), ssl=it.server.trust) as answer:
                    assert (await answer.json())["response"]["allowed"]
                return answer

            assert (await ask()).headers.get("Connection") != "close"
            (kept,) = it.bounds._open
            await it.begun()
            assert (await it.server.get("/readyz"))[0] == 503
            assert not task.done()
            assert kept in it.bounds._open
            assert (await ask()).headers["Connection"] == "close"
            async with asyncio.timeout(10):
                await task


async def test_a_server_that_ends_leaves_idle_connections_to_their_clients(tmp_path: Path) -> None:
    async with ending(tmp_path) as (it, task):
        reader = await connect(it.server, send=WHOLE)
        assert b"200 OK" in await reader.readline()
        await it.begun()
        await asyncio.wait((task,), timeout=0.3)
        assert not task.done()
        assert len(it.bounds) == 1
        it.server.kept[0].close()
        async with asyncio.timeout(10):
            await task


async def test_a_server_ends_after_its_time_limit(tmp_path: Path) -> None:
    async with ending(tmp_path, drain=0.1) as (it, task):
        reader = await connect(it.server, send=WHOLE)
        assert b"200 OK" in await reader.readline()
        await it.begun()
        async with asyncio.timeout(10):
            await task


async def test_a_server_that_ends_closes_the_connection_after_a_404_too(tmp_path: Path) -> None:
    async with ending(tmp_path) as (it, _):
        await connect(it.server)
        await it.begun()
        reader = await connect(it.server, send=WHOLE.replace(b"healthz", b"none"))
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert b"404" in answer
        assert b"Connection: close" in answer
