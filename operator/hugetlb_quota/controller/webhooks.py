"""The leader's part in the webhooks: their certificates, their paths, and whether they are asked.

Each object is followed, so that what somebody else writes over is put right at once, and looked
at now and then all the same.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, Protocol

from hugetlb_quota.backoff import Backoff
from hugetlb_quota.controller.asking import Asking
from hugetlb_quota.controller.certificates.keeper import Keeper, Missing, Names
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.informer import Informer, Source
from hugetlb_quota.kube.resources import SECRETS, WEBHOOK_CONFIGURATIONS

#: Seconds between looks when nothing is told.
PERIOD: Final = 10.0
#: Seconds between looks at the least.
_SHORTEST: Final = 0.1

Json = dict[str, Any]

logger = logging.getLogger(__name__)


class Api(ObjectApi, Source, Protocol):
    """The part of a Connection that this needs."""


class Webhooks:
    """Looks after the webhook configuration and what belongs to it, for ever."""

    def __init__(self, api: Api, names: Names, keeper: Keeper, asking: Asking) -> None:
        self._keeper = keeper
        self._asking = asking
        self._wake = asyncio.Event()
        self._trouble = ""
        self._configuration = Informer[Json](
            api,
            WEBHOOK_CONFIGURATIONS,
            lambda raw: raw,
            field_selector=f"metadata.name={names.webhooks}",
            name=f"{WEBHOOK_CONFIGURATIONS.plural} {names.webhooks}",
        )
        self._informers: list[Informer[Any]] = [
            self._configuration,
            *(
                Informer(
                    api,
                    SECRETS,
                    _version,
                    namespace=names.namespace,
                    field_selector=f"metadata.name={name}",
                    name=f"{SECRETS.plural} {name}",
                )
                for name in (names.serving, names.authority)
                if name
            ),
        ]
        for informer in self._informers:
            informer.on_change(lambda *_: self._wake.set())

    def look(self) -> None:
        """Look soon: quotas came or went."""
        self._wake.set()

    async def run(self) -> None:
        """Look after them for ever."""
        async with asyncio.TaskGroup() as group:
            for informer in self._informers:
                group.create_task(informer.run())
            backoff = Backoff(0.5, PERIOD)
            while True:
                self._wake.clear()
                pause = await self._tend()
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

    async def _tend(self) -> float | None:
        """Seconds until the next look; None after one that failed."""
        try:
            await self._restore_rules()
            pause = await self._keeper.tend()
            pause = min(pause, await self._asking.tend(await self._keeper.read_webhooks()))
        except (errors.ApiError, Missing) as error:
            if str(error) != self._trouble:
                logger.warning("The webhooks were not looked after; trying again: %s", error)
            self._trouble = str(error)
            return None
        self._trouble = ""
        return pause

    async def _restore_rules(self) -> None:
        """Put back rules that somebody has taken, before all else: pods pass by meanwhile.

        In one write, on what the watch has told, with what the API server needs to ask.
        """
        for configuration in self._configuration.store.values():
            if self._asking.were_taken(configuration):
                await self._asking.restore(self._keeper.complete(configuration))


def _version(raw: dict[str, Any]) -> str:
    return str(raw["metadata"]["resourceVersion"])
