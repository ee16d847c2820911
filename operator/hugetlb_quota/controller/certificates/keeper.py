"""Make the writes that :mod:`rotation` decides, one compare-and-swap after another."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from hugetlb_quota.controller.certificates import stored
from hugetlb_quota.controller.certificates.rotation import (
    Policy,
    Rest,
    StoreAuthorities,
    StoreServing,
    next_step,
)
from hugetlb_quota.controller.certificates.state import State, Trust
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.resources import SECRETS, WEBHOOK_CONFIGURATIONS, Resource

#: The largest number of steps without a pause. A rotation takes seven steps; after a bug the keeper
#: must not write without end.
MOST_STEPS: Final = 20

Json = dict[str, Any]

logger = logging.getLogger(__name__)


class Missing(Exception):
    """An object of the chart is missing; the message names the object."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the objects: Secrets in ``namespace``, and the webhook configuration.

    ``authority``: the Secret of the CA; "" if another tool makes the certificates.
    """

    namespace: str
    webhooks: str
    serving: str
    authority: str


class Keeper:
    """Renews the certificates, and keeps CAs and path in the webhook configuration.

    :param policy: its ``hosts`` and ``makes_certificates`` are replaced: they come from the webhook
        configuration and from ``names``.
    :param confirm: called before each write; raises LeadershipLost if this controller does not
        lead any more.
    """

    def __init__(
        self,
        api: ObjectApi,
        names: Names,
        policy: Policy,
        confirm: Callable[[], Awaitable[object]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._names = names
        self._policy = replace(policy, makes_certificates=bool(names.authority))
        self._confirm = confirm
        self._now = now
        #: The last CAs and path of the webhook configuration with nothing left to write.
        self._last_trust: Trust | None = None

    async def update(self) -> float:
        """Make all writes that are due.

        :returns: the time until the next write may be due, in seconds.
        :raises Missing: if an object does not exist.
        :raises ApiError: if a read or a write failed; the server may have done the write.
        """
        for _ in range(MOST_STEPS):
            rest = await self._step()
            if rest is not None:
                return max(0.0, (rest.until - self._now()).total_seconds())
        raise errors.ApiError(
            0, "Unfinished", f"The certificates still need a write after {MOST_STEPS} steps."
        )

    async def read_webhooks(self) -> Json:
        """The webhook configuration.

        :raises Missing: if the webhook configuration does not exist.
        :raises ApiError: if the read failed.
        """
        return await self._read(WEBHOOK_CONFIGURATIONS, self._names.webhooks)

    def complete(self, configuration: Json) -> Json:
        """The configuration with the last CAs and path, if its path is missing."""
        if self._last_trust is None or stored.read_trust(configuration).path:
            return configuration
        bundle = self._policy.makes_certificates
        return stored.write_trust(configuration, self._last_trust, bundle=bundle)

    async def _step(self) -> Rest | None:
        """Read everything and make one write; the Rest if there is nothing to write."""
        names = self._names
        configuration = await self.read_webhooks()
        serving = await self._read(SECRETS, names.serving)
        authority: Json = {}
        if names.authority:
            authority = await self._read(SECRETS, names.authority)
        state = State(
            stored.read_authorities(authority),
            stored.read_serving(serving),
            stored.read_trust(configuration),
        )
        policy = replace(self._policy, hosts=hosts(configuration))
        step = next_step(state, policy, self._now())
        if isinstance(step, Rest):
            self._last_trust = state.configured
            return step
        await self._confirm()
        if isinstance(step, StoreAuthorities):
            body = stored.write_authorities(authority, step.authorities)
            await self._write(SECRETS, names.authority, body, step.why)
        elif isinstance(step, StoreServing):
            body = stored.write_serving(serving, step.serving)
            await self._write(SECRETS, names.serving, body, step.why)
        else:
            body = stored.write_trust(configuration, step.trust, bundle=policy.makes_certificates)
            await self._write(WEBHOOK_CONFIGURATIONS, names.webhooks, body, step.why)
        return None

    async def _read(self, resource: Resource, name: str) -> Json:
        namespace = self._names.namespace if resource.namespaced else None
        try:
            return await self._api.get(resource, name, namespace)
        except errors.NotFound as error:
            where = f"{namespace}/{name}" if namespace else name
            raise Missing(
                f"{resource} {where} is missing: install or upgrade the chart, which creates it."
            ) from error

    async def _write(self, resource: Resource, name: str, body: Json, why: str) -> None:
        namespace = self._names.namespace if resource.namespaced else None
        try:
            await self._api.replace(resource, name, body, namespace)
        except errors.Conflict:
            return  # the next step is decided on the newer version
        if why:
            logger.info("The webhooks' certificates: %s (%s %s).", why, resource.plural, name)


def hosts(configuration: Json) -> tuple[str, ...]:
    """The host names of the webhooks' Services, as the API server checks them."""
    services = (each["clientConfig"].get("service") for each in configuration["webhooks"])
    found = dict.fromkeys(f"{it['name']}.{it['namespace']}.svc" for it in services if it)
    return tuple(found)
