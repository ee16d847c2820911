"""Does what :mod:`rotation` says is to be done, one compare-and-swap after the other."""

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
    State,
    StoreAuthority,
    StoreServing,
    Trust,
    next_step,
)
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.resources import SECRETS, WEBHOOK_CONFIGURATIONS, Resource

#: A rotation takes seven; more in one go is a fault, and must not become a storm of writes.
MOST_STEPS: Final = 20

Json = dict[str, Any]

logger = logging.getLogger(__name__)


class Missing(Exception):
    """An object that the chart makes is not there; the sentence says which."""


@dataclass(frozen=True, slots=True)
class Names:
    """Where things are kept: Secrets in ``namespace``, and the webhook configuration.

    ``authority``: the CA's Secret; "" where somebody else makes certificates.
    """

    namespace: str
    webhooks: str
    serving: str
    authority: str


class Keeper:
    """Keeps the certificates fresh, and the API server told of them.

    :param policy: its hosts are taken from the webhook configuration.
    :param confirm: raises LeadershipLost where this controller leads no more.
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
        self._policy = replace(policy, own=bool(names.authority))
        self._confirm = confirm
        self._now = now
        self._told: Trust | None = None

    async def tend(self) -> float:
        """Do what there is to do; seconds until there may be more.

        :raises Missing: when an object is not there.
        :raises ApiError: when one can't be read or written; it may have been.
        """
        for _ in range(MOST_STEPS):
            rest = await self._step()
            if rest is not None:
                return max(0.0, (rest.until - self._now()).total_seconds())
        raise errors.ApiError(
            0, "Unsettled", f"The certificates did not come to rest in {MOST_STEPS} steps."
        )

    async def read_webhooks(self) -> Json:
        """The webhook configuration.

        :raises Missing: when it is not there.
        """
        return await self._read(WEBHOOK_CONFIGURATIONS, self._names.webhooks)

    def complete(self, configuration: Json) -> Json:
        """The same with what the API server was last told, where it is told of nothing now."""
        if self._told is None or stored.read_trust(configuration).path:
            return configuration
        return stored.write_trust(configuration, self._told, bundle=self._policy.own)

    async def _step(self) -> Rest | None:
        names = self._names
        configuration = await self.read_webhooks()
        serving = await self._read(SECRETS, names.serving)
        authority: Json = {}
        if names.authority:
            authority = await self._read(SECRETS, names.authority)
        state = State(
            stored.read_authority(authority),
            stored.read_serving(serving),
            stored.read_trust(configuration),
        )
        policy = replace(self._policy, hosts=hosts(configuration))
        step = next_step(state, policy, self._now())
        if isinstance(step, Rest):
            self._told = state.told
            return step
        await self._confirm()
        if isinstance(step, StoreAuthority):
            body = stored.write_authority(authority, step.authority)
            await self._write(SECRETS, names.authority, body, step.why)
        elif isinstance(step, StoreServing):
            body = stored.write_serving(serving, step.serving)
            await self._write(SECRETS, names.serving, body, step.why)
        else:
            body = stored.write_trust(configuration, step.trust, bundle=policy.own)
            await self._write(WEBHOOK_CONFIGURATIONS, names.webhooks, body, step.why)
        return None

    async def _read(self, resource: Resource, name: str) -> Json:
        namespace = self._names.namespace if resource.namespaced else None
        try:
            return await self._api.get(resource, name, namespace)
        except errors.NotFound as error:
            where = f"{namespace}/{name}" if namespace else name
            raise Missing(
                f"{resource} {where} is missing: upgrade or install the chart, which makes it."
            ) from error

    async def _write(self, resource: Resource, name: str, body: Json, why: str) -> None:
        namespace = self._names.namespace if resource.namespaced else None
        try:
            await self._api.replace(resource, name, body, namespace)
        except errors.Conflict:
            return  # decided anew on what is there now
        if why:
            logger.info("The webhooks' certificates: %s (%s %s).", why, resource.plural, name)


def hosts(configuration: Json) -> tuple[str, ...]:
    """The names by which the API server asks the webhooks' Services."""
    services = (each["clientConfig"].get("service") for each in configuration["webhooks"])
    found = dict.fromkeys(f"{it['name']}.{it['namespace']}.svc" for it in services if it)
    return tuple(found)
