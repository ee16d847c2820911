"""The controller's Events on quotas, which people read in ``kubectl describe``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, Final, Literal

from hugetlb_quota import quantity
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.model import Condition
from hugetlb_quota.api.quota import KIND
from hugetlb_quota.kube import events
from hugetlb_quota.kube.quotas import QuotaObject

#: Seconds from a quota's first new file to the Event, so that one Event has many files.
GATHER: Final = 2.0
#: Seconds between two such Events on one quota.
REST: Final = 60.0
#: The most files that one Event names.
MOST_NAMED: Final = 4
#: The number of published files that are remembered.
PUBLISHED_KEPT: Final = 4096


class QuotaEvents:
    """Publishes Events on quotas. A failure is logged, and raises nothing.

    :param instance: the name of this controller.
    """

    def __init__(self, connection: events.EventApi, instance: str) -> None:
        self._connection = connection
        self._instance = instance
        self._tasks: set[asyncio.Task[None]] = set()
        #: The files that have or will get an Event, oldest first.
        self._published: dict[tuple[str, ...], None] = {}
        #: The files for the next Event of each quota.
        self._waiting: dict[QuotaKey, list[RetainedFile]] = {}
        #: The quotas that have a task for their files.
        self._active: set[QuotaKey] = set()

    def warn(self, quota: QuotaObject, reason: str, sentence: str) -> None:
        """Publish a warning about ``quota``, in a task."""
        self._start(self._publish(quota, "Warning", reason, sentence))

    async def conditions_changed(self, quota: QuotaObject, conditions: Iterable[Condition]) -> None:
        """Publish an Event for each of ``conditions``, which have changed.

        A quota that is deleted without a charge goes at once, so people need no Event.
        """
        if quota.quota.terminating and not quota.counter.used:
            return
        for condition in conditions:
            good = condition.status == "True"
            kind: Literal["Normal", "Warning"] = "Normal" if good else "Warning"
            await self._publish(quota, kind, condition.reason, condition.message)

    def retained(self, before: QuotaObject, files: Iterable[RetainedFile]) -> None:
        """Publish those of ``files`` that are new, in a task: gone pods left pages in them.

        An Event is only on a quota that is charged directly, not on the quotas above.

        :param before: the quota, with the files in its status before.
        """
        key = before.key
        stored = {_file_key(each) for each in before.retained_files}
        direct = {_file_key(file): file for file in files if key in file.quotas} if files else {}
        for file_key, file in direct.items():
            published = (before.uid, *file_key)
            if file_key in stored or published in self._published:
                continue
            self._published[published] = None
            while len(self._published) > PUBLISHED_KEPT:
                del self._published[next(iter(self._published))]
            self._waiting.setdefault(key, []).append(file)
        if key in self._waiting and key not in self._active:
            self._active.add(key)
            self._start(self._publish_retained(before))

    async def _publish_retained(self, quota: QuotaObject) -> None:
        try:
            await asyncio.sleep(GATHER)
            while files := self._waiting.pop(quota.key, []):
                sentence = _retained_sentence(quota, files)
                await self._publish(quota, "Normal", "Retained", sentence)
                await asyncio.sleep(REST)
        finally:
            self._active.discard(quota.key)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(
        self, quota: QuotaObject, kind: Literal["Normal", "Warning"], reason: str, sentence: str
    ) -> None:
        await events.publish(
            self._connection,
            events.Regarding(API_VERSION, KIND, quota.key.namespace, quota.key.name, quota.uid),
            kind=kind,
            reason=reason,
            note=sentence,
            program="controller",
            instance=self._instance,
        )


def _file_key(file: RetainedFile) -> tuple[str, str, str]:
    return file.node, file.path, file.pod


def _retained_sentence(quota: QuotaObject, files: list[RetainedFile]) -> str:
    named = ", ".join(
        f"pod {file.pod} left {quantity.render(file.charged)} of {file.size.resource} in"
        f" {file.path} on node {file.node}"
        for file in files[:MOST_NAMED]
    )
    more = f" and {len(files) - MOST_NAMED} more" if len(files) > MOST_NAMED else ""
    until = "the file is" if len(files) == 1 else "the files are"
    return (
        f"Retained: {named}{more}. This stays charged to HugeTLBQuota {quota.key} until {until}"
        " truncated or removed."
    )
