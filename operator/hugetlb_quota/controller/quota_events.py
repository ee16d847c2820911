"""The controller's Events on quotas: what a person reads in ``kubectl describe``."""

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

#: Seconds from the first file to its Event, and from there to the next: many are told together.
GATHER: Final = 2.0
REST: Final = 60.0
#: Files named in one Event.
NAMED: Final = 4
#: So many files are remembered as told of.
TOLD_KEPT: Final = 4096


class QuotaEvents:
    """Publishes Events on quotas; a failure is logged, and nothing waits for one that it says.

    :param identity: of this controller.
    """

    def __init__(self, connection: events.EventApi, identity: str) -> None:
        self._connection = connection
        self._identity = identity
        self._saying: set[asyncio.Task[None]] = set()
        self._told: dict[tuple[str, ...], None] = {}
        self._untold: dict[QuotaKey, list[RetainedFile]] = {}
        self._telling: set[QuotaKey] = set()

    def warn(self, quota: QuotaObject, reason: str, sentence: str) -> None:
        """Publish a warning about ``quota``, in a task of its own."""
        self._start(self._publish(quota, "Warning", reason, sentence))

    async def turned(self, quota: QuotaObject, turned: Iterable[Condition]) -> None:
        """Tell of the conditions of ``quota`` that are others now."""
        for condition in turned:
            good = condition.status == "True"
            kind: Literal["Normal", "Warning"] = "Normal" if good else "Warning"
            await self._publish(quota, kind, condition.reason, condition.message)

    def retained(self, before: QuotaObject, files: Iterable[RetainedFile]) -> None:
        """Tell which of ``files`` are new to ``before``: pods that are gone left pages in them.

        Only where the quota itself pays, not each one above; together, and not too often.
        """
        key = before.key
        known = {_same(each) for each in before.retained_files}
        new = {_same(file): file for file in files if key in file.quotas} if files else {}
        for same, file in new.items():
            told = (before.uid, *same)
            if same in known or told in self._told:
                continue
            self._told[told] = None
            while len(self._told) > TOLD_KEPT:
                del self._told[next(iter(self._told))]
            self._untold.setdefault(key, []).append(file)
        if key in self._untold and key not in self._telling:
            self._telling.add(key)
            self._start(self._tell_retained(before))

    async def _tell_retained(self, quota: QuotaObject) -> None:
        try:
            await asyncio.sleep(GATHER)
            while files := self._untold.pop(quota.key, []):
                await self._publish(quota, "Normal", "Retained", _retained(quota, files))
                await asyncio.sleep(REST)
        finally:
            self._telling.discard(quota.key)

    def _start(self, saying: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(saying)
        self._saying.add(task)
        task.add_done_callback(self._saying.discard)

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
            instance=self._identity,
        )


def _same(file: RetainedFile) -> tuple[str, str, str]:
    return file.node, file.path, file.pod


def _retained(quota: QuotaObject, files: list[RetainedFile]) -> str:
    told = ", ".join(
        f"pod {file.pod} left {quantity.render(file.charged)} of {file.size.resource} in"
        f" {file.path} on node {file.node}"
        for file in files[:NAMED]
    )
    more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
    return (
        f"Retained: {told}{more}. This stays charged to HugeTLBQuota {quota.key} until the files"
        " are truncated or removed."
    )
