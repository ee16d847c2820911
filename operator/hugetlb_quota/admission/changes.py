"""The ConfigMap in which all replicas note the changes of quotas that they have allowed.

It is written by compare-and-swap, and read before the quotas: whoever notes a change knows of
every one that was noted before, and has read the quotas since. So of two changes that must
not both be stored, the later knows of the earlier.
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

#: By how much the clocks of two replicas may differ.
CLOCK_SKEW: Final = timedelta(seconds=30)
#: As many fit into one object by far; more are not under way at one time.
MOST_NOTED: Final = 500
_FIELD: Final = "changes"


class CanNotNote(Exception):
    """The ConfigMap is missing, or full, or holds what is no change; the sentence says which."""


@dataclass(frozen=True, slots=True)
class Noted:
    """The ConfigMap as it was read, and the changes in it."""

    raw: dict[str, Any]
    changes: tuple[Change, ...]


class ChangeNotes:
    """Reads and writes the notes.

    :param where: namespace and name of the ConfigMap.
    :param lifetime: how long a write of a quota may be under way after admission.
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
        #: Held from reading to writing, so that requests of one replica meet no conflicts.
        self.lock = asyncio.Lock()

    async def read(self, deadline: Deadline) -> Noted:
        """What is noted now.

        :raises CanNotNote: when that can't be understood.
        :raises ApiError: when it can't be read.
        """
        try:
            raw = await self._api.get(
                CONFIG_MAPS, self._name, self._namespace, timeout=deadline.timeout()
            )
            text = (raw.get("data") or {}).get(_FIELD) or ""
            return Noted(raw, tuple(Change.parse(line) for line in text.splitlines()))
        except errors.NotFound as error:
            raise CanNotNote(f"{self} is missing; install the chart again.") from error
        except MalformedChange as error:
            raise CanNotNote(f"{self} can't be read: {error} Delete that line.") from error

    async def write(self, noted: Noted, changes: Iterable[Change], deadline: Deadline) -> None:
        """Note ``changes`` in place of all that ``noted`` holds.

        :raises Conflict: when somebody else has written since.
        :raises CanNotNote: when there are too many.
        :raises ApiError: when it can't be written; it may have been.
        """
        lines = [each.line for each in changes]
        if len(lines) > MOST_NOTED:
            raise CanNotNote(f"{self} holds {len(lines)} changes that are under way.")
        body = {**noted.raw, "data": {_FIELD: "".join(f"{line}\n" for line in lines)}}
        await self._api.replace(
            CONFIG_MAPS, self._name, body, self._namespace, timeout=deadline.timeout()
        )

    async def withdraw(self, which: Callable[[Change], bool], deadline: Deadline) -> None:
        """Take back the notes of changes that will not come, or have come and gone.

        Where that can't be done they expire.
        """
        async with self.lock:
            for _ in range(5):
                try:
                    noted = await self.read(deadline)
                    kept = [each for each in noted.changes if not which(each)]
                    if len(kept) < len(noted.changes):
                        await self.write(noted, kept, deadline)
                    return
                except errors.Conflict:
                    continue
                except (errors.ApiError, CanNotNote):
                    return

    def expires(self, deadline: Deadline) -> datetime:
        """When a request that is answered within ``deadline`` can't be under way any more."""
        return deadline.request_ends(self._now(), self._lifetime) + CLOCK_SKEW

    def now(self) -> datetime:
        """The time by which changes expire."""
        return self._now()

    def __str__(self) -> str:
        return f"ConfigMap {self._namespace}/{self._name}"
