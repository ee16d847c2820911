"""Events on quotas that refuse pods: one Event per quota and time span.

No request waits for an Event. Refusals are noted in a table of bounded size; a refusal that does
not fit, or that can't be written as an Event, is dropped.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.quota import KIND
from hugetlb_quota.kube import errors, events
from hugetlb_quota.plural import number_of

REASON: Final = "PodRefused"
#: The time span of one Event, in seconds. A refusal in a later span makes an Event of its own,
#: with the numbers of that time.
SPAN: Final = 600
#: The largest number of quotas that get an Event in one round.
MOST_QUOTAS: Final = 256
#: The wait from a refusal to its Event, and then to the next round, in seconds.
GATHER: Final = 1.0
REST: Final = 9.0
#: The time limit of the last round, in seconds.
LAST_ROUND: Final = 2.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Refusals:
    """The refusals of one quota since the last round: the first message, and the number."""

    message: str
    times: int


class RefusalEvents:
    """Notes refusals, and writes Events in a task of its own.

    :param uid_of: the UID of a quota; "" if it is unknown.
    :param instance: the name of this replica.
    :param now: returns the present time.
    """

    def __init__(
        self,
        api: events.SeriesApi,
        uid_of: Callable[[QuotaKey], str],
        instance: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._uid_of = uid_of
        self._instance = instance
        self._now = now
        self._noted: dict[QuotaKey, _Refusals] = {}
        self._has_notes = asyncio.Event()
        #: The number of refusals that did not fit into the table.
        self.dropped = 0

    def note(self, quotas: Iterable[QuotaKey], message: str) -> None:
        """Note that each of ``quotas`` refused a pod, with ``message``."""
        for key in quotas:
            refusals = self._noted.get(key)
            if refusals is not None:
                refusals.times += 1
            elif len(self._noted) < MOST_QUOTAS:
                self._noted[key] = _Refusals(message, 1)
                self._has_notes.set()
            else:
                self.dropped += 1

    async def run(self) -> None:
        """Write Events about noted refusals, round after round; runs until cancelled."""
        while True:
            await self._has_notes.wait()
            await asyncio.sleep(GATHER)
            await self.publish()
            await asyncio.sleep(REST)

    async def finish(self) -> None:
        """Write Events about the refusals that are left, for at most LAST_ROUND."""
        try:
            async with asyncio.timeout(LAST_ROUND):
                await self.publish()
        except TimeoutError:
            logger.info("The last refusals have no Events.")

    async def publish(self) -> None:
        """Write an Event for each quota with noted refusals."""
        self._has_notes.clear()
        noted, self._noted = self._noted, {}
        for key, refusals in noted.items():
            try:
                await events.count(self._api, self._event(key, refusals), refusals.times)
            except errors.ApiUnreachable as error:
                quotas = number_of(len(noted), "quota")
                logger.warning("The refusals of %s have no Events: %s", quotas, error)
                return
            except errors.ApiError as error:
                logger.warning("The refusals of HugeTLBQuota %s have no Event: %s", key, error)
            except Exception:  # a bug; the refusals of other quotas still get Events
                logger.exception("The refusals of HugeTLBQuota %s have no Event.", key)

    def _event(self, key: QuotaKey, refusals: _Refusals) -> events.Json:
        uid = self._uid_of(key)
        span = int(self._now().timestamp()) // SPAN
        # All replicas make the same name, so they count on one Event.
        suffix = hashlib.sha256(f"{key} {uid} {span}".encode()).hexdigest()[:16]
        return events.event(
            events.Regarding(API_VERSION, KIND, key.namespace, key.name, uid),
            kind="Warning",
            reason=REASON,
            note=refusals.message,
            program="admission",
            instance=self._instance,
            action="Admit",
            suffix=suffix,
        )
