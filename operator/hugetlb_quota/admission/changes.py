"""The ConfigMap in which all replicas note the changes of quotas that they allow.

A replica first reads the ConfigMap, then the quotas, and then writes the ConfigMap by
compare-and-swap. So a replica that notes a change knows every change that was noted before, and
has read the quotas after those notes. Of two changes that must not both be stored, the later one
meets the note of the earlier one.

A note ends when its quota has another version, or when its life is over: then the API request
behind the note has ended. No clocks are compared: each replica watches the notes by its own
monotonic clock, and removes a note that it has watched for a whole life.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from hugetlb_quota.accounting.changes import Change, MalformedChange
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.lives import Lives
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME
from hugetlb_quota.admission.api import Api
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import REQUEST_TIMEOUT
from hugetlb_quota.kube.resources import CONFIG_MAPS

#: How long a note lives on after the end of its API request. etcd, or an API server that is cut
#: off from etcd, may still hold the write, for less than 20 s (see controller/expiry.py). In
#: ``expires`` the same time allows for a difference of clocks, which earlier releases compare.
LIVES_ON: Final = timedelta(seconds=30)
#: The longest time between two looks for notes that are over, in seconds; the shortest is half.
PERIOD: Final = 10.0
#: The largest number of notes. They are far from filling an object, and there are never so many
#: changes at the same time.
MOST_NOTES: Final = 500
_FIELD: Final = "changes"
_WITHDRAW_ATTEMPTS: Final = 5

logger = logging.getLogger(__name__)


class NotesUnusable(Exception):
    """The ConfigMap is missing or full, or has an invalid line; the message says which."""


@dataclass(frozen=True, slots=True)
class Notes:
    """The ConfigMap as read (``raw``), and the changes that are noted in it.

    ``read_at``: when the answer came, on the monotonic clock.
    """

    raw: dict[str, Any]
    changes: tuple[Change, ...]
    read_at: float


class ChangeNotes:
    """Reads and writes the notes, and watches how long each note lives.

    :param where: namespace and name of the ConfigMap.
    :param now: returns the present time, for people and earlier releases.
    :param lifetime: how long the write of a quota may run after admission's answer.
    :param clock: returns the time of a monotonic clock, in seconds.
    """

    def __init__(
        self,
        api: Api,
        where: tuple[str, str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        lifetime: timedelta = RESERVATION_LIFETIME,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._lifetime = lifetime
        self._clock = clock
        self._lives = Lives(lifetime + LIVES_ON)
        self._has_read = False
        self._namespace, self._name = where
        self._now = now
        #: Hold the lock from read to write, so that the requests of one replica do not conflict.
        self.lock = asyncio.Lock()

    async def read(self, deadline: Deadline) -> Notes:
        """Read the present notes.

        :raises NotesUnusable: if the ConfigMap is missing, or has an invalid line.
        :raises ApiError: if the read fails.
        """
        try:
            raw = await self._api.get(
                CONFIG_MAPS, self._name, self._namespace, timeout=deadline.timeout()
            )
            lines = (raw.get("data") or {}).get(_FIELD) or ""
            changes = tuple(Change.parse(line) for line in lines.splitlines())
        except errors.NotFound as error:
            raise NotesUnusable(f"{self} is missing; install the chart again.") from error
        except MalformedChange as error:
            raise NotesUnusable(f"{self} can't be read: {error} Delete that line.") from error
        # After the answer: each API request began before its note was written.
        read_at = self._clock()
        self._lives.note((each.line for each in changes), read_at)
        self._has_read = True
        return Notes(raw, changes, read_at)

    def pending(self, notes: Notes, versions: Mapping[QuotaKey, int]) -> list[Change]:
        """The noted changes that the API server may still store.

        :param versions: the resourceVersion of every quota, read after ``notes``.
        """
        # If a life ended after the notes were read, its change may have been stored after the
        # quotas were read.
        return [
            each
            for each in notes.changes
            if each.may_come(versions) and not self._lives.is_over(each.line, notes.read_at)
        ]

    async def write(self, notes: Notes, changes: Iterable[Change], deadline: Deadline) -> None:
        """Replace all of ``notes`` by ``changes``.

        :param notes: the notes as they were read.
        :raises Conflict: if the ConfigMap was written since it was read.
        :raises NotesUnusable: if there are too many changes.
        :raises ApiError: if the write fails; the write may have happened.
        """
        lines = [each.line for each in changes]
        if len(lines) > MOST_NOTES:
            raise NotesUnusable(
                f"{self} already has {MOST_NOTES} changes that may still be stored."
            )
        body = {**notes.raw, "data": {_FIELD: "".join(f"{line}\n" for line in lines)}}
        await self._api.replace(
            CONFIG_MAPS, self._name, body, self._namespace, timeout=deadline.timeout()
        )
        self._lives.note(lines, self._clock())

    async def run(self) -> None:
        """Look for notes that are over, for ever."""
        while True:
            try:
                await self.look()
            except Exception:  # a bug; it must not end the program
                logger.exception("Notes of changes can't be removed; trying again.")
            await asyncio.sleep(PERIOD * random.uniform(0.5, 1.0))  # noqa: S311

    async def look(self) -> None:
        """Remove the notes that this replica has watched for their whole lives.

        The first look takes in the notes that other replicas have left.
        """
        now = self._clock()
        if not self._has_read or any(end <= now for end in self._lives.ends()):
            await self.withdraw(self._is_over, Deadline.after(REQUEST_TIMEOUT))

    async def withdraw(self, which: Callable[[Change], bool], deadline: Deadline) -> None:
        """Remove the notes of changes that nobody needs to wait for any more.

        If that fails, the notes stay until their lives are over.

        :param which: whether to remove the note of a change.
        """
        async with self.lock:
            for _ in range(_WITHDRAW_ATTEMPTS):
                try:
                    notes = await self.read(deadline)
                    kept = [each for each in notes.changes if not which(each)]
                    if len(kept) < len(notes.changes):
                        await self.write(notes, kept, deadline)
                    return
                except errors.Conflict:
                    continue
                except (errors.ApiError, NotesUnusable):
                    return

    def expires(self, deadline: Deadline) -> datetime:
        """When the write of a quota has ended for sure, as earlier releases see it.

        :param deadline: that of the request about the write.
        """
        return deadline.request_ends(self._now(), self._lifetime) + LIVES_ON

    def _is_over(self, change: Change) -> bool:
        return self._lives.is_over(change.line, self._clock())

    def __str__(self) -> str:
        return f"ConfigMap {self._namespace}/{self._name}"
