"""Add the finalizer to each quota, and label the deleted quotas for kopf.

kopf removes the finalizer when nothing is charged to the quota any more (:mod:`deletion`). kopf
could add the finalizer too, but kopf would write all new quotas at the same time, and would keep a
task and a record for each quota. So kopf watches only quotas with a label, and this module sets
the label on quotas that wait for their deletion.

A quota gets its finalizer before its first count, and admission admits nothing under a quota that
was never counted. So a quota that could be deleted at once never has a charge. Both writes follow
from the stored object, so the next leader continues after a kill between them.
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

#: The largest number of concurrent writes.
WRITERS: Final = 8
#: The first and the longest wait after a failed write, in seconds.
FIRST_BACKOFF: Final = 1.0
LONGEST_BACKOFF: Final = 60.0

logger = logging.getLogger(__name__)


class Guard:
    """Writes the metadata that :func:`missing_metadata` finds, of a few quotas at a time.

    :param quotas: the store of an informer, a live view; the informer must call :meth:`on_change`.
    """

    def __init__(self, connection: PatchApi, quotas: Mapping[ObjectKey, QuotaObject]) -> None:
        self._connection = connection
        self._quotas = quotas
        self._queue: asyncio.Queue[ObjectKey] = asyncio.Queue()
        self._queued: set[ObjectKey] = set()
        self._failing: dict[ObjectKey, Backoff] = {}

    def on_change(self, _: QuotaObject | None, quota: QuotaObject | None, __: int) -> None:
        """Handle one change of a quota; a listener of an informer."""
        if quota is not None and missing_metadata(quota) is not None:
            self._enqueue(ObjectKey(*quota.key))

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._work())

    def _enqueue(self, key: ObjectKey) -> None:
        if key not in self._queued:
            self._queued.add(key)
            self._queue.put_nowait(key)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            self._queued.discard(key)
            quota = self._quotas.get(key)
            if quota is not None and (metadata := missing_metadata(quota)) is not None:
                await self._write(key, metadata)
            else:
                self._failing.pop(key, None)

    async def _write(self, key: ObjectKey, metadata: dict[str, Any]) -> None:
        try:
            await self._connection.patch(
                HUGETLB_QUOTAS, key.name, {"metadata": metadata}, key.namespace
            )
        except (errors.Conflict, errors.NotFound):
            pass  # the informer reports the change, and on_change handles the newer version
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
    """Whether the quota has the finalizer, or is being deleted and so can't get one any more."""
    return FINALIZER in quota.finalizers or quota.quota.terminating


def missing_metadata(quota: QuotaObject) -> dict[str, Any] | None:
    """A merge patch for the missing finalizer or label; None if neither is missing."""
    if not is_guarded(quota):
        return {
            "uid": quota.uid,
            # The patch replaces the whole list, so the list must still be the one that was read.
            "resourceVersion": quota.resource_version,
            "finalizers": [*quota.finalizers, FINALIZER],
        }
    if quota.quota.terminating and FINALIZER in quota.finalizers and not quota.labelled:
        return {"uid": quota.uid, "labels": {DELETED: ""}}
    return None
