"""Put admission together, and serve its webhooks over HTTPS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Final, Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME
from hugetlb_quota.admission.api import Api
from hugetlb_quota.admission.background import in_background
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.changes import ChangeNotes
from hugetlb_quota.admission.commit import Committer
from hugetlb_quota.admission.connections import Connections
from hugetlb_quota.admission.metrics import AdmissionMetrics
from hugetlb_quota.admission.pods import PodAdmission
from hugetlb_quota.admission.quotas import QuotaAdmission
from hugetlb_quota.admission.readiness import Readiness
from hugetlb_quota.admission.refusal_events import RefusalEvents
from hugetlb_quota.admission.webhooks import BODY_LIMIT, PathSecret, Webhooks
from hugetlb_quota.admission.witness import Witness
from hugetlb_quota.kube.listening import listen
from hugetlb_quota.kube.quotas import QuotaObject

#: How long requests may run after the connections are drained, in seconds.
SHUTDOWN_TIMEOUT: Final = 15.0


class Tls(Protocol):
    """The serving certificate.

    ``context``: the TLS context to listen with. ``ends``: when the certificate expires, in
    seconds since 1970; None if that can't be read.
    """

    context: ssl.SSLContext
    ends: float | None


class Admission:
    """All parts of the program but the connections."""

    def __init__(
        self,
        api: Api,
        path: PathSecret,
        changes: tuple[str, str],
        lifetime: timedelta,
        metrics: AdmissionMetrics,
        *,
        require_quota: bool,
    ) -> None:
        self._cache = QuotaCache(api)
        self._committer = Committer(api, self._cache, metrics.committed)
        metrics.writes = self._committer
        pods = PodAdmission(
            self._cache, self._committer, lifetime=lifetime, require_quota=require_quota
        )
        self._notes = ChangeNotes(api, changes, lifetime=lifetime)
        quotas = QuotaAdmission(api, self._committer, self._notes, lifetime=lifetime)
        self._witness = Witness(api, self._cache, lifetime)
        self._refusals = RefusalEvents(api, self._uid_of, socket.gethostname())
        self._webhooks = Webhooks(path, pods.decide, quotas.decide, metrics, self._refusals)
        self.readiness = Readiness(api, self._cache)

    def application(self, *middlewares: Middleware) -> web.Application:
        """The aiohttp application."""
        application = web.Application(client_max_size=BODY_LIMIT, middlewares=middlewares)
        application.add_routes([*self._webhooks.routes(), *self.readiness.routes()])
        return application

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch the quotas while the context lasts; at the end, finish all writes."""
        async with self._cache.running():
            try:
                async with in_background(
                    events_of_refusals=self._refusals.run(),
                    witness=self._witness.run(),
                    notes=self._notes.run(),
                ):
                    yield
            finally:
                await self._committer.close()
                await self._refusals.finish()

    def _uid_of(self, key: QuotaKey) -> str:
        quota = self._cache.get(key)
        return quota.uid if isinstance(quota, QuotaObject) else ""


@asynccontextmanager
async def serve(
    api: Api,
    certificate: Tls,
    path: PathSecret,
    bind: str,
    port: int,
    connections: Connections | None = None,
    *,
    changes: tuple[str, str],
    lifetime: timedelta = RESERVATION_LIFETIME,
    metrics: AdmissionMetrics | None = None,
    require_quota: bool = False,
) -> AsyncIterator[tuple[str, int]]:
    """Serve while the context lasts; the value is the first bound address.

    At the end the replica is no longer Ready, and goes on answering until all connections are
    closed (:meth:`Connections.drain`). Then running requests are answered, and the reservations
    of refused ones are taken back.

    :param bind: the address to listen on.
    :param changes: namespace and name of the ConfigMap of :class:`ChangeNotes`.
    :param lifetime: how long a create request may run after admission's answer.
    :param require_quota: whether to refuse a pod with a demand that no quota governs.
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
    async with AsyncExitStack() as cleanup:
        cleanup.push_async_callback(runner.cleanup)
        await cleanup.enter_async_context(in_background(connections=connections.sweep()))
        sockets = listen(bind, port)
        host, bound, *_ = sockets[0].getsockname()
        async with admission.running():
            async with AsyncExitStack() as accepting:
                for each in sockets:
                    accepted = connections.accepted(each, runner.server, certificate.context)
                    await accepting.enter_async_context(accepted)
                yield host, bound
                admission.readiness.end()
                await connections.drain()
            # The last requests need the watch of the quotas.
            await runner.cleanup()
