"""Decisions about pods if etcd lost history, or if the watch is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.kube.resources import Resource
from tests.unit.admission.fake_api import (
    NOW,
    FakeApi,
    Json,
    admitting,
    create,
    namespace,
    pod,
    quota,
    with_tenant,
)


async def test_after_a_restore_of_etcd_the_quotas_are_listed_again() -> None:
    api = with_tenant(FakeApi())
    two_mib = {"hugepages-2Mi": "2Mi"}
    async with admitting(api, lambda: NOW) as admission:
        assert (await admission.decide(create(pod("a", two_mib)), Deadline.after(9))).allowed
        # An older backup: versions go back, and the leaf has no room.
        full = quota("db/leaf", {"hugepages-2Mi": "0"}, parent="acme/tenant")
        full["metadata"]["uid"] = api.raw("db/leaf")["metadata"]["uid"]
        api.version = 1
        api.put(full)
        api.put(api.raw("acme/tenant"))
        request = create(pod("b", two_mib), uid="b")
        decision = await admission.decide(request, Deadline.after(9))
    assert "HugeTLBQuota db/leaf has no room" in decision.message


class Restored(FakeApi):
    """After :meth:`restore`, the old watches are silent until the lost version comes again.

    The watch of kube-apiserver does the same: a watch delivers only versions after its position.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0

    def restore(self) -> None:
        self.lost, self.version = self.version, 1
        for raw in list(self.objects.values()):
            self.put(raw)
        self.version += 1

    async def watch(
        self, resource: Resource, resource_version: str, *args: Any, **fields: Any
    ) -> AsyncIterator[Json]:
        began_before = not self.lost
        async for event in super().watch(resource, resource_version, *args, **fields):
            later = int(event["object"]["metadata"]["resourceVersion"]) > self.lost
            if later or not began_before:
                yield event


@pytest.mark.parametrize("where", ["db", "free"], ids=["governed", "ungoverned in the cache"])
async def test_a_watch_of_a_lost_history_proves_nothing(where: str) -> None:
    api = Restored()
    for name in (*"abcdefghij", "db", "free"):
        api.put(namespace(name))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}))
    async with admitting(api, lambda: NOW) as admission:
        for _ in range(10):
            api.put(api.raw("db/leaf"))
        # The watch has delivered these writes when admission confirms the charge.
        assert (await admission.decide(create(pod("a")), Deadline.after(9))).allowed
        api.restore()
        api.put(quota(f"{where}/new", {"hugepages-2Mi": 0}))
        assert api.version < api.lost
        request = create(pod("c", {"hugepages-2Mi": "2Mi"}, namespace=where), uid="c")
        decision = await admission.decide(request, Deadline.after(9))
        assert f"HugeTLBQuota {where}/new has no room" in decision.message
        assert not decision.allowed
    assert "c" not in api.reservations("db/leaf")


async def test_a_write_that_the_watch_never_delivers_is_taken_back() -> None:
    class Silent(FakeApi):
        silent = False

        async def deliver(self) -> None:
            if self.silent:
                await asyncio.Event().wait()

    api = Silent()
    api.put(namespace("db"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}))
    async with admitting(api, lambda: NOW) as admission:
        assert (await admission.decide(create(pod("a")), Deadline.after(9))).allowed
        api.silent = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await admission.decide(create(pod("b"), uid="b"), Deadline.after(9))
    assert set(api.reservations("db/leaf")) == {"a"}
