"""Events on quotas that refuse pods: one a quota and a while, however many are refused.

Nothing waits for them: a refusal is noted in a book of bounded size, and what does not fit, or
can't be told, is dropped.
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

REASON: Final = "PodRefused"
#: For how long refusals are added to one Event, in seconds: the next has new numbers.
SPAN: Final = 600
#: As many quotas are told of in one round, at the most.
LARGEST_BOOK: Final = 256
#: Seconds from a refusal to its Event, and from there to the next round.
GATHER: Final = 1.0
REST: Final = 9.0
#: Seconds for what is left at the end.
LAST_ROUND: Final = 2.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    """The first of the refusals that were noted, and how many there were."""

    sentence: str
    times: int


class RefusalEvents:
    """Notes refusals, and tells of them in a task of its own.

    :param uid_of: the UID of a quota that is known, else "".
    :param instance: which replica this is.
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
        self._book: dict[QuotaKey, _Entry] = {}
        self._noted = asyncio.Event()
        #: How many refusals had no place in the book.
        self.dropped = 0

    def note(self, quotas: Iterable[QuotaKey], sentence: str) -> None:
        """``quotas`` refused a pod, with ``sentence``."""
        for key in quotas:
            entry = self._book.get(key)
            if entry is not None:
                entry.times += 1
            elif len(self._book) < LARGEST_BOOK:
                self._book[key] = _Entry(sentence, 1)
                self._noted.set()
            else:
                self.dropped += 1

    async def run(self) -> None:
        """Tell of what is noted, for ever."""
        while True:
            await self._noted.wait()
            await asyncio.sleep(GATHER)
            await self.tell()
            await asyncio.sleep(REST)

    async def finish(self) -> None:
        """Tell of what is left, if that does not take long."""
        try:
            async with asyncio.timeout(LAST_ROUND):
                await self.tell()
        except TimeoutError:
            logger.info("The last refusals are told of by no Event.")

    async def tell(self) -> None:
        """Tell of what is noted now, quota by quota."""
        self._noted.clear()
        book, self._book = self._book, {}
        for key, entry in book.items():
            try:
                await events.count(self._api, self._event(key, entry), entry.times)
            except errors.ApiUnreachable as error:
                logger.warning(
                    "Refusals of %d quotas are told of by no Event: %s", len(book), error
                )
                return
            except errors.ApiError as error:
                logger.warning("No Event tells of HugeTLBQuota %s's refusals: %s", key, error)
            except Exception:  # a bug, and no reason to tell of nothing any more
                logger.exception("No Event tells of HugeTLBQuota %s's refusals.", key)

    def _event(self, key: QuotaKey, entry: _Entry) -> events.Json:
        uid = self._uid_of(key)
        span = int(self._now().timestamp()) // SPAN
        # The same on every replica: they add to one Event.
        name = hashlib.sha256(f"{key} {uid} {span}".encode()).hexdigest()[:16]
        return events.event(
            events.Regarding(API_VERSION, KIND, key.namespace, key.name, uid),
            kind="Warning",
            reason=REASON,
            note=entry.sentence,
            program="admission",
            instance=self._instance,
            action="Admit",
            suffix=name,
        )
