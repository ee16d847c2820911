"""The guard writes finalizers and labels: a few at a time, and before the first charge."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from hugetlb_quota.api.quota import DELETED, FINALIZER
from hugetlb_quota.controller import guard
from hugetlb_quota.controller.guard import WRITERS, Guard, missing_metadata
from hugetlb_quota.controller.recounter import Recounter
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.informer import Informer
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS
from tests.unit.admission.fake_api import FakeApi, Fate, Json, quota

LIMIT = {"hugepages-2Mi": "64Mi"}


class Api(FakeApi):
    """Delays each PATCH. ``most``: the largest number of concurrent PATCH requests."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.most = 0
        self.fates: list[Fate] = []

    async def patch(self, *arguments: Any, **options: Any) -> Json:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0.001)
            return await super().patch(*arguments, **options)
        finally:
            self.under_way -= 1

    async def turn(self, request: str) -> Fate:
        await super().turn(request)
        if request.startswith("PATCH") and self.fates:
            return self.fates.pop(0)
        return "answered"

    def make(self, name: str, *finalizers: str, terminating: bool = False) -> None:
        raw = quota(f"db/{name}", LIMIT, terminating=terminating, counted=False)
        raw["metadata"] |= {"finalizers": list(finalizers), "labels": {"team": "a"}}
        raw["metadata"]["uid"] = f"uid-of-{name}"
        self.put(raw)

    def metadata(self, name: str) -> Json:
        found: Json = self.raw(f"db/{name}")["metadata"]
        return found

    @property
    def patches(self) -> list[str]:
        return [each for each in self.requests if each.startswith("PATCH")]


def guarding(api: Api) -> tuple[Informer[QuotaObject], Guard]:
    informer = Informer(api, HUGETLB_QUOTAS, QuotaObject.to_count)
    quota_guard = Guard(api, informer.store)
    informer.on_change(quota_guard.on_change)
    return informer, quota_guard


async def guard_until(api: Api, names: list[str]) -> None:
    """Run one controller until no quota of ``names`` lacks metadata."""
    informer, quota_guard = guarding(api)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run()) for each in (informer, quota_guard)]
        while any(missing_metadata(api.quota(f"db/{name}")) for name in names):
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()


async def test_many_new_quotas_are_written_a_few_at_a_time() -> None:
    api = Api()
    names = [f"q{number}" for number in range(200)]
    for name in names:
        api.make(name, "other/s")
    await guard_until(api, names)
    assert api.most == WRITERS
    assert len(api.patches) == len(names)
    assert api.metadata("q7")["finalizers"] == ["other/s", FINALIZER]
    assert api.metadata("q7")["labels"] == {"team": "a"}


async def test_deleted_quotas_with_our_finalizer_get_the_label() -> None:
    api = Api()
    api.make("waits", FINALIZER, terminating=True)
    api.make("of-others", "other/s", terminating=True)
    api.make("lives", FINALIZER)
    await guard_until(api, ["waits"])
    assert api.patches == ["PATCH hugetlbquotas db/waits"]
    assert api.metadata("waits")["labels"] == {"team": "a", DELETED: ""}


async def test_a_failed_write_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "FIRST_BACKOFF", 0.001)
    api = Api()
    api.fates = ["lost", "lost", "answer lost"]
    api.make("q")
    await guard_until(api, ["q"])
    assert len(api.patches) == 3


async def test_a_finalizer_that_was_added_meanwhile_stays() -> None:
    """The patch replaces the list of finalizers, and another program may have changed the list."""

    class Racing(Api):
        async def turn(self, request: str) -> Fate:
            if request.startswith("PATCH") and not self.patches:
                self.make("q", "other/s")
            return await super().turn(request)

    racing = Racing()
    racing.make("q")
    await guard_until(racing, ["q"])
    assert racing.metadata("q")["finalizers"] == ["other/s", FINALIZER]


async def test_a_quota_gets_its_finalizer_before_its_first_count() -> None:
    """Admission admits nothing under an uncounted quota, so a charged quota has the finalizer."""
    api = Api()
    api.fates = ["lost"] * 2
    api.make("q")
    order: list[str] = []

    async def read_term() -> int:
        return 1

    counting = Recounter(cast(Connection, api), "me", read_term)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        run = group.create_task(counting.run())
        while not api.writes:
            await asyncio.sleep(0.01)
        order = [each.split()[0] for each in api.requests if each.split()[0] in ("PATCH", "PUT")]
        run.cancel()
    assert order == ["PATCH", "PATCH", "PATCH", "PUT"]
