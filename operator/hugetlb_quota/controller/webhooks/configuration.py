"""The leader's work on the webhook configuration: certificates, paths and rules.

The leader watches the configuration and the Secrets, so it corrects at once what others overwrite.
It also checks everything every ten seconds.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, Protocol

from hugetlb_quota.backoff import Backoff
from hugetlb_quota.controller.certificates.keeper import Keeper, Missing, Names
from hugetlb_quota.controller.webhooks.rules import WebhookRules
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.informer import Informer, Source
from hugetlb_quota.kube.resources import SECRETS, WEBHOOK_CONFIGURATIONS

#: The longest time between two checks, in seconds.
PERIOD: Final = 10.0
#: The shortest time between two checks, in seconds.
_SHORTEST: Final = 0.1
#: The first wait after a failed check, in seconds; PERIOD is the longest.
_FIRST_BACKOFF: Final = 0.5

Json = dict[str, Any]

logger = logging.getLogger(__name__)


class Api(ObjectApi, Source, Protocol):
    """The part of a Connection that :class:`Webhooks` needs."""


class Webhooks:
    """Keeps the webhook configuration correct until cancelled."""

    def __init__(self, api: Api, names: Names, keeper: Keeper, rules: WebhookRules) -> None:
        self._keeper = keeper
        self._rules = rules
        self._wake = asyncio.Event()
        self._last_failure = ""
        self._configurations = Informer[Json](
            api,
            WEBHOOK_CONFIGURATIONS,
            lambda raw: raw,
            field_selector=f"metadata.name={names.webhooks}",
            name=f"{WEBHOOK_CONFIGURATIONS.plural} {names.webhooks}",
        )
        self._informers: list[Informer[Any]] = [
            self._configurations,
            *(
                Informer(
                    api,
                    SECRETS,
                    _resource_version,
                    namespace=names.namespace,
                    field_selector=f"metadata.name={name}",
                    name=f"{SECRETS.plural} {name}",
                )
                for name in (names.serving, names.authority)
                if name
            ),
        ]
        for informer in self._informers:
            informer.on_change(lambda *_: self.wake())

    def wake(self) -> None:
        """Check soon: something changed, such as whether a quota exists."""
        self._wake.set()

    async def run(self) -> None:
        """Check at every change and every ten seconds; runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            for informer in self._informers:
                group.create_task(informer.run())
            backoff = Backoff(_FIRST_BACKOFF, PERIOD)
            while True:
                self._wake.clear()
                pause = await self._check()
                if pause is None:
                    pause = backoff.next()
                else:
                    backoff.reset()
                try:
                    async with asyncio.timeout(min(pause, PERIOD)):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                await asyncio.sleep(_SHORTEST)

    async def _check(self) -> float | None:
        """Write what is missing.

        :returns: the time until the next check is needed, in seconds; None after a failure.
        """
        try:
            # First and in one write, because pods are admitted unchecked until then. The watched
            # version saves a read, and the keeper knows the CAs and the path that are missing too.
            for configuration in self._configurations.store.values():
                await self._rules.restore(self._keeper.complete(configuration))
            pause = await self._keeper.update()
            pause = min(pause, await self._rules.update(await self._keeper.read_webhooks()))
        except (errors.ApiError, Missing) as error:
            if str(error) != self._last_failure:
                logger.warning("The check of the webhooks failed; trying again: %s", error)
            self._last_failure = str(error)
            return None
        self._last_failure = ""
        return pause


def _resource_version(raw: Json) -> str:
    return str(raw["metadata"]["resourceVersion"])
