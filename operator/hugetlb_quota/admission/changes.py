"""The ConfigMap in which all replicas note the changes of quotas that they allow.

A replica first reads the ConfigMap, then the quotas, and then writes the ConfigMap by
compare-and-swap. So a replica that notes a change knows every change that was noted before, and
has read the quotas after those notes. Of two changes that must not both be stored, the later one
meets the note of the earlier one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from hugetlb_quota.accounting.changes import Change, MalformedChange
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME
from hugetlb_quota.admission.api import Api
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.resources import CONFIG_MAPS

#: The largest allowed difference between the clocks of two replicas.
CLOCK_SKEW: Final = timedelta(seconds=30)
#: The largest number of notes. They are far from filling an object, and there are never so many
#: changes at the same time.
MOST_NOTES: Final = 500
_FIELD: Final = "changes"
_WITHDRAW_ATTEMPTS: Final = 5


class NotesUnusable(Exception):
    """The ConfigMap is missing or full, or has an invalid line; the message says which."""


@dataclass(frozen=True, slots=True)
class Notes:
    """The ConfigMap as read (``raw``), and the changes that are noted in it."""

    raw: dict[str, Any]
    changes: tuple[Change, ...]


class ChangeNotes:
    """Reads and writes the notes.

    :param where: namespace and name of the ConfigMap.
    :param now: returns the present time.
    :param lifetime: how long the write of a quota may run after admission's answer.
    """

    def __init__(
        self,
        api: Api,
        where: tuple[str, str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        lifetime: timedelta = RESERVATION_LIFETIME,
    ) -> None:
        self._api = api
        self._lifetime = lifetime
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
            return Notes(raw, tuple(Change.parse(line) for line in lines.splitlines()))
        except errors.NotFound as error:
            raise NotesUnusable(f"{self} is missing; install the chart again.") from error
        except MalformedChange as error:
            raise NotesUnusable(f"{self} can't be read: {error} Delete that line.") from error

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

    async def withdraw(self, which: Callable[[Change], bool], deadline: Deadline) -> None:
        """Remove the notes of changes that nobody needs to wait for any more.

        If that fails, the notes stay until they expire.

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
        """When the write of a quota has ended for sure, by the clock of every replica.

        :param deadline: that of the request about the write.
        """
        return deadline.request_ends(self._now(), self._lifetime) + CLOCK_SKEW

    def now(self) -> datetime:
        """The present time, with which the expiry of notes is compared."""
        return self._now()

    def __str__(self) -> str:
        return f"ConfigMap {self._namespace}/{self._name}"
