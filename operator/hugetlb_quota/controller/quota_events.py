"""The controller's Events on quotas: what a person reads in ``kubectl describe``."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, Literal

from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.model import Condition
from hugetlb_quota.api.quota import KIND
from hugetlb_quota.kube import events
from hugetlb_quota.kube.quotas import QuotaObject


class QuotaEvents:
    """Publishes Events on quotas; a failure is logged, and nothing waits for one that it says.

    :param identity: of this controller.
    """

    def __init__(self, connection: events.EventApi, identity: str) -> None:
        self._connection = connection
        self._identity = identity
        self._saying: set[asyncio.Task[None]] = set()

    def warn(self, quota: QuotaObject, reason: str, sentence: str) -> None:
        """Publish a warning about ``quota``, in a task of its own."""
        self._start(self._publish(quota, "Warning", reason, sentence))

    async def turned(self, quota: QuotaObject, turned: Iterable[Condition]) -> None:
        """Tell of the conditions of ``quota`` that are others now."""
        for condition in turned:
            good = condition.status == "True"
            kind: Literal["Normal", "Warning"] = "Normal" if good else "Warning"
            await self._publish(quota, kind, condition.reason, condition.message)

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
