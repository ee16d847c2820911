"""Whether this replica is Ready: it can read the quotas, and does not end."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aiohttp import web

from hugetlb_quota.admission.api import Api
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS

#: How long the result of a check is used for further probes, in seconds.
CHECK_PERIOD: Final = 2.0
#: The time limit of the read in a check, in seconds.
CHECK_TIMEOUT: Final = 2.0


class Readiness:
    """Answers the probes of the webhooks' port."""

    def __init__(self, api: Api, cache: QuotaCache) -> None:
        self._api = api
        self._cache = cache
        self._lock = asyncio.Lock()
        self._checked_until = 0.0
        self._why_not = ""
        self._ending = False

    def routes(self) -> list[web.RouteDef]:
        """The routes for the aiohttp application."""
        return [web.get("/healthz", self._healthz), web.get("/readyz", self._readyz)]

    def end(self) -> None:
        """Be not Ready from now on, so that new connections go to other replicas."""
        self._ending = True

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._ending:
            return web.Response(status=503, text="This replica is ending; use another replica.\n")
        async with self._lock:
            if time.monotonic() >= self._checked_until:
                self._why_not = await self._check()
                self._checked_until = time.monotonic() + CHECK_PERIOD
        if self._why_not:
            return web.Response(status=503, text=f"{self._why_not}\n")
        return web.Response(text="ok\n")

    async def _check(self) -> str:
        """Why this replica is not Ready; "" if it is."""
        if self._cache.why_not_ready:
            return f"HugeTLBQuotas can't be watched: {self._cache.why_not_ready}"
        try:
            await self._api.list_page(HUGETLB_QUOTAS, limit=1, timeout=CHECK_TIMEOUT)
        except errors.ApiError as error:
            return f"HugeTLBQuotas can't be read: {error}"
        return ""
