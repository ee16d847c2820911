"""The HTTPS server that the API server asks; every answer in time, every doubt a refusal."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Final, Protocol

import orjson
from aiohttp import web
from aiohttp.typedefs import Middleware

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME
from hugetlb_quota.admission import request_sentences
from hugetlb_quota.admission.api import Api
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.changes import ChangeNotes
from hugetlb_quota.admission.commit import Committer
from hugetlb_quota.admission.connections import Connections
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.metrics import AdmissionMetrics
from hugetlb_quota.admission.pods import PodAdmission
from hugetlb_quota.admission.quotas import QuotaAdmission
from hugetlb_quota.admission.refusal_events import RefusalEvents
from hugetlb_quota.admission.review import (
    AdmissionRequest,
    Decision,
    MalformedReview,
    deny,
    parse,
)
from hugetlb_quota.admission.witness import Witness
from hugetlb_quota.api import GROUP
from hugetlb_quota.api.quota import KIND, PLURAL
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.listening import listen
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS
from hugetlb_quota.kube.serving import VALIDATE_PODS, VALIDATE_QUOTAS
from hugetlb_quota.program import about

#: The largest request body, in bytes: an UPDATE carries the object twice, and etcd holds
#: none above 1.5 MiB (``--max-request-bytes``).
BODY_LIMIT: Final = 3 * 1024**2
#: Requests that are decided at the same time; more are told at once to try again. A few
#: connections are left for that: see :data:`CONNECTIONS`.
REQUESTS: Final = 960
#: How long an answer about readiness holds, and how long it may take, in seconds.
READY_PERIOD: Final = 2.0
READY_TIMEOUT: Final = 2.0
#: How long running requests may go on after SIGTERM, in seconds.
SHUTDOWN_TIMEOUT: Final = 15.0

Decide = Callable[[AdmissionRequest, Deadline], Awaitable[Decision]]
#: Group, plural and subresource, each "" where there is none.
_Resource = tuple[str, str, str]

logger = logging.getLogger(__name__)


class Tls(Protocol):
    """Has the context to listen with."""

    context: ssl.SSLContext
    #: When its certificate ends, in seconds since 1970; None where that can't be read.
    ends: float | None


class Paths(Protocol):
    """Knows what the paths of the webhooks begin with; only the API server is told it."""

    def matches(self, told: str) -> bool:
        """Whether ``told`` is that."""
        ...


class Admission:
    """The routes and what stands behind them."""

    def __init__(
        self,
        api: Api,
        path: Paths,
        changes: tuple[str, str],
        lifetime: timedelta,
        metrics: AdmissionMetrics,
        *,
        require_quota: bool,
    ) -> None:
        self._metrics = metrics
        self._api = api
        self._path = path
        self._cache = QuotaCache(api)
        self._committer = Committer(api, self._cache, metrics.committed)
        metrics.writes = self._committer
        self._pods = PodAdmission(
            self._cache, self._committer, lifetime=lifetime, require_quota=require_quota
        )
        notes = ChangeNotes(api, changes, lifetime=lifetime)
        self._quotas = QuotaAdmission(api, self._committer, notes, lifetime=lifetime)
        self._witness = Witness(api, self._cache, lifetime)
        self._refusals = RefusalEvents(api, self._uid_of, socket.gethostname())
        self._ready_lock = asyncio.Lock()
        self._ready_until = 0.0
        self._not_ready = ""
        self._ending = False
        self._deciding = 0

    def application(self, *middlewares: Middleware) -> web.Application:
        """The aiohttp application."""
        application = web.Application(client_max_size=BODY_LIMIT, middlewares=middlewares)
        application.add_routes(
            [
                web.post(f"/{{secret}}/{VALIDATE_PODS}", self._validate_pods),
                web.post(f"/{{secret}}/{VALIDATE_QUOTAS}", self._validate_quotas),
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
            ]
        )
        return application

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the quotas; at the end wait until nothing is being taken back any more."""
        async with self._cache.running():
            tasks = (
                asyncio.create_task(self._refusals.run(), name="events of refusals"),
                asyncio.create_task(self._witness.run(), name="witness"),
            )
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._committer.close()
                await self._refusals.finish()

    def end(self) -> None:
        """Be Ready no more, so that no new connection comes here; go on answering."""
        self._ending = True

    def _uid_of(self, key: QuotaKey) -> str:
        known = self._cache.get(key)
        return known.uid if isinstance(known, QuotaObject) else ""

    async def _validate_pods(self, request: web.Request) -> web.Response:
        # The status too: its writer may change the labels with it.
        asked_about = {("", "pods", ""), ("", "pods", "status")}
        return await self._answer(request, asked_about, "pod", self._pods.decide)

    async def _validate_quotas(self, request: web.Request) -> web.Response:
        return await self._answer(request, {(GROUP, PLURAL, "")}, KIND, self._quotas.decide)

    async def _answer(
        self, request: web.Request, resources: set[_Resource], noun: str, decide: Decide
    ) -> web.Response:
        if not self._path.matches(request.match_info["secret"]):
            # As for any path that is none; and nowhere is it told what was tried.
            return web.Response(status=404, text="404: Not Found")
        began = time.perf_counter()
        deadline = Deadline.of_request(request.query.get("timeout"))
        try:
            async with asyncio.timeout_at(deadline.at):
                body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return web.Response(
                status=413,
                text=f"The request body is larger than {BODY_LIMIT} bytes, more than two objects"
                " of the largest size that Kubernetes stores. Nothing was changed.\n",
            )
        except TimeoutError:
            return web.Response(
                status=408, text="The request body did not come in time. Nothing was changed.\n"
            )
        try:
            asked = parse(body)
            subject = (asked.resource.group, asked.resource.resource, asked.sub_resource)
            if subject not in resources:
                answered = ", ".join(sorted(map(_resource_name, resources)))
                raise MalformedReview(
                    f"it is about {_resource_name(subject)}, and this path is asked about"
                    f" {answered} only."
                )
            what = f"{noun} {asked.namespace}/{asked.name}".rstrip("/")
            decision = await self._decided(decide, asked, what, deadline)
        except MalformedReview as error:
            return web.Response(status=400, text=f"{error}\n")
        kind = "pod" if noun == "pod" else "quota"
        self._metrics.decided(kind, decision, time.perf_counter() - began)
        if not decision.allowed:
            logger.info(
                "%s of %s: %s",
                *(asked.operation, asked.user_info.username, decision.message),
                extra=about(
                    kind=noun,
                    namespace=asked.namespace,
                    name=asked.name,
                    uid=asked.uid,
                    quotas=", ".join(map(str, decision.by)),
                ),
            )
            if not asked.dry_run:
                self._refusals.note(decision.by, decision.message)
        return web.Response(
            body=orjson.dumps(decision.review(asked.uid)), content_type="application/json"
        )

    async def _decided(
        self, decide: Decide, asked: AdmissionRequest, what: str, deadline: Deadline
    ) -> Decision:
        """The decision, or the refusal that stands for none."""
        if self._deciding >= REQUESTS:
            message = request_sentences.too_many_requests(what, REQUESTS)
            return deny(message, retry_after=1, cause="overloaded")
        self._deciding += 1
        try:
            async with asyncio.timeout_at(deadline.at):
                return await decide(asked, deadline)
        except MalformedReview:
            raise
        except TimeoutError:
            return deny(request_sentences.time_short(what, deadline.seconds), cause="timeout")
        except errors.ApiError as error:
            return deny(request_sentences.unreachable(what, error), cause="unreachable")
        except Exception as error:
            logger.exception("%s of %s could not be decided", asked.operation, what)
            return deny(request_sentences.unexpected(what, error), cause="bug")
        finally:
            self._deciding -= 1

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._ending:
            return web.Response(status=503, text="Ending: other replicas serve.\n")
        async with self._ready_lock:
            if time.monotonic() >= self._ready_until:
                self._not_ready = await self._why_not_ready()
                self._ready_until = time.monotonic() + READY_PERIOD
        if self._not_ready:
            return web.Response(status=503, text=f"{self._not_ready}\n")
        return web.Response(text="ok\n")

    async def _why_not_ready(self) -> str:
        if self._cache.why_not_ready:
            return f"HugeTLBQuotas can't be followed: {self._cache.why_not_ready}"
        try:
            await self._api.list_page(HUGETLB_QUOTAS, limit=1, timeout=READY_TIMEOUT)
        except errors.ApiError as error:
            return f"HugeTLBQuotas can't be read: {error}"
        return ""


def _resource_name(resource: _Resource) -> str:
    group, plural, subresource = resource
    return f"{plural}{'/' if subresource else ''}{subresource}{'.' if group else ''}{group}"


@asynccontextmanager
async def serve(
    api: Api,
    certificate: Tls,
    path: Paths,
    bind: str,
    port: int,
    connections: Connections | None = None,
    *,
    changes: tuple[str, str],
    lifetime: timedelta = RESERVATION_LIFETIME,
    metrics: AdmissionMetrics | None = None,
    require_quota: bool = False,
) -> AsyncIterator[tuple[str, int]]:
    """Serve until the context ends; gives the first address that was bound.

    :param changes: namespace and name of the ConfigMap of :class:`ChangeNotes`.
    :param lifetime: how long a create may be under way after admission.
    :param require_quota: refuse pods with huge pages that no quota governs.

    At the end it is Ready no more, and serves on until the connections are drained, as
    :meth:`Connections.drain` has it. Running requests are answered, and what they took is
    taken back if they were refused.
    """
    metrics = metrics or AdmissionMetrics()
    metrics.certificate_ends = lambda: certificate.ends
    admission = Admission(api, path, changes, lifetime, metrics, require_quota=require_quota)
    connections = Connections() if connections is None else connections
    runner = web.AppRunner(
        admission.application(connections.middleware),
        access_log=None,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    await runner.setup()
    assert runner.server is not None
    sweeping = asyncio.create_task(connections.sweep(), name="connections")
    try:
        sockets = listen(bind, port)
        host, bound, *_ = sockets[0].getsockname()
        async with admission.running():
            async with AsyncExitStack() as stack:
                for each in sockets:
                    accepting = connections.accepted(each, runner.server, certificate.context)
                    await stack.enter_async_context(accepting)
                yield host, bound
                admission.end()
                await connections.drain()
            # Whoever asked already is answered while the quotas are followed.
            await runner.cleanup()
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)
        await runner.cleanup()
