"""Puts the finalizer on each quota, and shows kopf those that are deleted.

kopf takes the finalizer off when nothing is charged any more (:mod:`deletion`), and would put it
on as well: on all new quotas at the same time, each in a task of its own, with a record of each
for ever. So it is shown by a label the quotas alone that wait for their end.

A quota is counted first when it has the finalizer, and nothing is admitted under one that was
never counted: so nothing is ever charged to one that could go at once. Both writes follow from
what is stored, so a controller that was killed between them is followed by one that goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.api.quota import DELETED, FINALIZER
from hugetlb_quota.backoff import Backoff
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import PatchApi
from hugetlb_quota.kube.informer import ObjectKey
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS
from hugetlb_quota.program import about

#: Quotas written at the same time.
WRITERS: Final = 8
#: Seconds from a write that failed to the next: doubled up to the last.
FIRST_BACKOFF: Final = 1.0
LONGEST_BACKOFF: Final = 60.0

logger = logging.getLogger(__name__)


class Guard:
    """Writes what :func:`lacks` says, of a few quotas at a time.

    :param quotas: all that are known; a live view.
    """

    def __init__(self, connection: PatchApi, quotas: Mapping[ObjectKey, QuotaObject]) -> None:
        self._connection = connection
        self._quotas = quotas
        self._queue: asyncio.Queue[ObjectKey] = asyncio.Queue()
        self._queued: set[ObjectKey] = set()
        self._failing: dict[ObjectKey, Backoff] = {}

    def look(self, _: QuotaObject | None, quota: QuotaObject | None, __: int) -> None:
        """Take in one change of a quota, as an informer tells it."""
        if quota is not None and lacks(quota) is not None:
            self._enqueue(ObjectKey(*quota.key))

    async def run(self) -> None:
        """Write for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._write_each())

    def _enqueue(self, key: ObjectKey) -> None:
        if key not in self._queued:
            self._queued.add(key)
            self._queue.put_nowait(key)

    async def _write_each(self) -> None:
        while True:
            key = await self._queue.get()
            self._queued.discard(key)
            quota = self._quotas.get(key)
            if quota is not None and (lacking := lacks(quota)) is not None:
                await self._write(key, lacking)
            else:
                self._failing.pop(key, None)

    async def _write(self, key: ObjectKey, lacking: dict[str, Any]) -> None:
        try:
            await self._connection.patch(
                HUGETLB_QUOTAS, key.name, {"metadata": lacking}, key.namespace
            )
        except (errors.Conflict, errors.NotFound):
            pass  # the informer tells what became of it
        except errors.ApiError as error:
            logger.warning(
                "HugeTLBQuota %s did not get its finalizer or label; trying again: %s",
                *(key, error),
                extra=about(quota=QuotaKey(*key)),
            )
            backoff = self._failing.setdefault(key, Backoff(FIRST_BACKOFF, LONGEST_BACKOFF))
            asyncio.get_running_loop().call_later(backoff.next(), self._enqueue, key)
            return
        self._failing.pop(key, None)


def is_guarded(quota: QuotaObject) -> bool:
    """Whether it stays until nothing is charged to it, or is past getting a finalizer."""
    return FINALIZER in quota.finalizers or quota.quota.terminating


def lacks(quota: QuotaObject) -> dict[str, Any] | None:
    """The metadata that ``quota`` lacks, for a merge patch; None where it lacks nothing."""
    if not is_guarded(quota):
        return {
            "uid": quota.uid,
            # The list is replaced as a whole.
            "resourceVersion": quota.resource_version,
            "finalizers": [*quota.finalizers, FINALIZER],
        }
    if quota.quota.terminating and FINALIZER in quota.finalizers and not quota.labelled:
        return {"uid": quota.uid, "labels": {DELETED: ""}}
    return None
