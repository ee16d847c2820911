"""How often the recount asks a server that has nothing good to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import pytest

from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME
from hugetlb_quota.api.quota import FINALIZER
from hugetlb_quota.controller import expiry, term, write_plan
from hugetlb_quota.controller import recounter as recounter_module
from hugetlb_quota.controller.count import Count
from hugetlb_quota.controller.metrics import ControllerMetrics
from hugetlb_quota.controller.recounter import Recounter
from hugetlb_quota.controller.snapshot import Snapshot
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.lease import LeadershipLost
from hugetlb_quota.kube.pods import project_demanding_pod
from hugetlb_quota.kube.resources import (
    HUGETLB_NODES,
    HUGETLB_QUOTAS,
    NODES,
    PODS,
    Resource,
)
from tests.unit.admission.fake_api import FakeApi, Json, namespace, pod, quota, reservation

QUOTA = {
    "metadata": {
        "namespace": "ns",
        "name": "q",
        "uid": "u",
        "resourceVersion": "7",
        "finalizers": [FINALIZER],
    },
    "spec": {"hard": {"hugepages-2Mi": "64Mi"}},
}


class Refusing:
    """Lists one quota, and refuses to have it read or written."""

    def __init__(self) -> None:
        self.tried = 0

    async def list_page(self, resource: Resource, *_: Any, **__: Any) -> dict[str, Any]:
        items = [QUOTA] if resource == HUGETLB_QUOTAS else []
        return {"metadata": {"resourceVersion": "7"}, "items": items}

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
        await asyncio.Event().wait()
        yield {}

    async def get(self, *_: Any, **__: Any) -> dict[str, Any]:
        raise errors.Forbidden(403, "Forbidden", "hugetlbquotas is forbidden")

    async def replace(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.tried += 1
        raise errors.Forbidden(403, "Forbidden", "hugetlbquotas is forbidden")


def term_of(number: int) -> Callable[[], Awaitable[int]]:
    async def ask() -> int:
        return number

    return ask


def recounter_of(
    api: object,
    ask: Callable[[], Awaitable[int]] | None = None,
    lifetime: timedelta = RESERVATION_LIFETIME,
) -> Recounter:
    return Recounter(cast(Connection, api), "me", ask or term_of(1), lifetime=lifetime)


async def run_for(recounter: Recounter, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await recounter.run()


async def test_a_refused_write_is_not_tried_again_at_once() -> None:
    api = Refusing()
    await run_for(recounter_of(api), 0.8)
    assert api.tried == 1


class Silent(FakeApi):
    """An API of quotas whose watch tells nothing; the pods in ``pods`` are listed."""

    def __init__(self, *pods: Json) -> None:
        super().__init__()
        self.pods = pods
        self.told: list[str] = []

    async def list_page(self, resource: Resource, *_: Any, **__: Any) -> dict[str, Any]:
        if resource == PODS:
            return {"metadata": {"resourceVersion": "90"}, "items": list(self.pods)}
        return await super().list_page(resource)

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
        await asyncio.Event().wait()
        yield {}

    async def create(self, resource: Resource, body: Json, *_: Any, **__: Any) -> Json:
        self.told.append(body["note"])
        return body


def running(name: str, where: str = "db") -> Json:
    raw = pod(name, {"hugepages-2Mi": "64Mi"}, namespace=where)
    raw["metadata"]["resourceVersion"] = "80"
    return raw


def counted_under(api: FakeApi, term: int, pods: str) -> None:
    raw = quota("db/leaf", {"hugepages-2Mi": "128Mi"}, pods={"hugepages-2Mi": pods})
    raw["status"]["countedUnder"] = str(term)
    api.put(raw)


async def test_a_leader_that_was_paused_writes_over_no_later_count() -> None:
    api = Silent(running("a"))
    counted_under(api, 9, "128Mi")
    terms = iter([7])

    async def ask() -> int:
        if (held := next(terms, None)) is None:
            raise LeadershipLost("another leads")
        return held

    with pytest.raises(ExceptionGroup) as ended:
        await run_for(recounter_of(api, ask), 5)
    assert ended.value.subgroup(LeadershipLost)
    assert api.writes == []


async def test_a_leader_that_was_paused_looks_who_leads_before_it_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would count what its successor has not seen, and drop the reservation for that."""
    clock = [0.0]

    class Pausing(Silent):
        async def replace(self, *arguments: Any, **options: Any) -> Json:
            written = await super().replace(*arguments, **options)
            clock[0] += 100  # while it is paused, another leads
            counted_under(self, 7, "0")
            return written

    async def ask() -> int:
        if clock[0]:
            raise LeadershipLost("another leads")
        return 7

    monkeypatch.setattr(term, "_now", lambda: clock[0])
    monkeypatch.setattr(recounter_module, "PERIOD", 0.01)
    api = Pausing(running("a"))
    counted_under(api, 1, "0")
    with pytest.raises(ExceptionGroup) as ended:
        await run_for(recounter_of(api, ask), 5)
    assert ended.value.subgroup(LeadershipLost)
    assert len(api.writes) == 1


async def test_whoever_leads_later_writes_and_says_so() -> None:
    api = Silent(running("a"))
    counted_under(api, 7, "128Mi")
    await run_for(recounter_of(api, term_of(9)), 0.5)
    assert api.raw("db/leaf")["status"]["pods"] == {"hugepages-2Mi": "64Mi"}
    assert api.raw("db/leaf")["status"]["countedUnder"] == "9"


def flapping(api: FakeApi, **labels: str) -> None:
    """acme/tenant, and db/leaf that was attached to it while its namespace had the label."""
    tenant = {"matchLabels": {"tenant": "acme"}}
    nobody = {"matchLabels": {"no": "pod"}}
    api.put(namespace("db", **labels))
    api.put(quota("acme/tenant", {"hugepages-2Mi": "1Gi"}, children=tenant, selector=nobody))
    api.put(
        quota("db/leaf", {}, parent="acme/tenant", attached_to=None if labels else "acme/tenant")
    )


async def test_what_is_charged_stays_with_the_parent_when_the_label_goes() -> None:
    api = Silent(running("a"))
    flapping(api)
    await run_for(recounter_of(api), 0.5)
    leaf = api.raw("db/leaf")["status"]
    assert api.raw("acme/tenant")["status"]["pods"] == {"hugepages-2Mi": "64Mi"}
    assert leaf["attachedTo"] == "acme/tenant"
    (ready,) = [each for each in leaf["conditions"] if each["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "ForeignParent")
    assert "The charge of db/leaf stays charged to acme/tenant too." in ready["message"]


async def test_an_attachment_without_a_charge_goes_with_the_label() -> None:
    api = Silent()
    flapping(api)
    await run_for(recounter_of(api), 0.5)
    assert api.raw("db/leaf")["status"]["attachedTo"] == ""


async def test_an_attachment_is_remembered_by_the_count() -> None:
    api = Silent(running("a"))
    flapping(api, tenant="acme")
    await run_for(recounter_of(api), 0.5)
    assert api.raw("db/leaf")["status"]["attachedTo"] == "acme/tenant"
    assert "attachedTo" not in api.raw("acme/tenant")["status"]


async def test_a_history_that_went_back_hangs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recounter_module, "RETRY", 0.05)
    api = Silent(running("a"))
    counted_under(api, 1000, "128Mi")  # and the Lease is of 9, and still ours
    await run_for(recounter_of(api, term_of(9)), 0.8)
    assert api.raw("db/leaf")["status"]["pods"] == {"hugepages-2Mi": "64Mi"}


async def test_a_quota_of_a_newer_release_is_counted_and_told_of_and_not_written() -> None:
    api = Silent(running("a"))
    raw = quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="db/root")
    raw["spec"]["escrow"] = "1Gi"
    api.put(raw)
    api.put(quota("db/root", {"hugepages-2Mi": "1Gi"}, selector={"matchLabels": {"no": "pod"}}))
    await run_for(recounter_of(api), 0.5)
    assert api.raw("db/root")["status"]["pods"] == {"hugepages-2Mi": "64Mi"}
    assert set(api.writes) == {"PUT hugetlbquotas/status db/root"}
    assert "HugeTLBQuota db/leaf can't be understood: spec.escrow" in api.told[0]


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


class Watched(Silent):
    """The same, with watches that tell of what is put into ``events`` by kind."""

    def __init__(self, *pods: Json) -> None:
        super().__init__(*pods)
        self.told_of: dict[Resource, asyncio.Queue[Json]] = {}

    async def watch(self, resource: Resource, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
        queue = self.told_of.setdefault(resource, asyncio.Queue())
        while True:
            yield await queue.get()

    async def replace(self, resource: Resource, *arguments: Any, **options: Any) -> Json:
        written = await super().replace(resource, *arguments, **options)
        if resource == HUGETLB_QUOTAS:
            self.told_of[resource].put_nowait({"type": "MODIFIED", "object": written})
        return written

    def comes(self, name: str, version: int) -> None:
        raw = running(name)
        raw["metadata"]["resourceVersion"] = str(version)
        self.told_of[PODS].put_nowait({"type": "ADDED", "object": raw})


async def test_nothing_is_written_and_nothing_counted_where_nothing_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recounter_module, "PERIOD", 0.02)
    api = Watched(running("a"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}))
    counting = recounter_of(api)
    looked: list[int] = []
    count = counting.books.census.count

    def counted(snapshot: Snapshot) -> Count:
        looked.append(len(snapshot.pods))
        return count(snapshot)

    monkeypatch.setattr(counting.books.census, "count", counted)
    await run_for(counting, 0.8)
    assert len(api.writes) == 1
    assert looked[0] == 1
    assert len(looked) > 3
    assert set(looked[1:]) == {0}


async def test_a_quota_is_written_twice_a_second_at_most_however_many_pods_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rests: list[float] = []
    sleep = asyncio.sleep

    async def slept(seconds: float) -> None:
        rests.append(seconds)
        await sleep(0)

    api = Watched()
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Gi"}))
    monkeypatch.setattr(asyncio, "sleep", slept)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(recounter_of(api).run())
        await until(lambda: PODS in api.told_of and api.writes)
        for number in range(20):
            before = len(api.writes)
            api.comes(f"p{number}", 100 + number)
            await until(lambda before=before: len(api.writes) > before)  # type: ignore[misc]
        run.cancel()
    # Each count was followed by what was missing of half a second.
    assert len([rest for rest in rests if rest > 0.3]) >= 20


async def test_a_reservation_whose_pod_never_came_ends_as_soon_as_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not at one of the looks that the controller takes now and then."""
    monkeypatch.setattr(recounter_module, "PERIOD", 3600.0)
    monkeypatch.setattr(write_plan, "PENDING_PERIOD", 3600.0)
    monkeypatch.setattr(recounter_module, "SHORTEST_PERIOD", 0.01)
    monkeypatch.setattr(expiry, "APART", 0.2)
    api = Watched()
    held = reservation("never", "db/never", "64Mi")
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}, reservations=[held]))
    counting = recounter_of(api, lifetime=timedelta(seconds=0.2))
    async with asyncio.TaskGroup() as group:
        run = group.create_task(counting.run())
        await until(lambda: not api.raw("db/leaf")["status"]["reservations"])
        run.cancel()


async def test_a_write_that_failed_is_tried_again_though_nothing_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recounter_module, "RETRY", 0.05)

    class Failing(Watched):
        failures = 2

        async def replace(self, *arguments: Any, **options: Any) -> Json:
            if self.failures:
                self.failures -= 1
                raise errors.ApiUnreachable("no answer")
            return await super().replace(*arguments, **options)

    api = Failing(running("a"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}))
    await run_for(recounter_of(api), 2)
    assert api.raw("db/leaf")["status"]["pods"] == {"hugepages-2Mi": "64Mi"}


async def test_of_many_quotas_a_few_are_written_at_a_time() -> None:
    """A task for each of ten thousand takes the memory, and the event loop for itself."""

    class Busy(Watched):
        writing = most = tasks = 0

        async def replace(self, resource: Resource, *arguments: Any, **options: Any) -> Json:
            self.writing += 1
            self.most = max(self.most, self.writing)
            self.tasks = max(self.tasks, len(asyncio.all_tasks()))
            await asyncio.sleep(0)
            self.writing -= 1
            return await super().replace(resource, *arguments, **options)

    api = Busy()
    for number in range(200):
        api.put(quota(f"db/q-{number}", {"hugepages-2Mi": "1Gi"}))
    counting = recounter_of(api)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(counting.run())
        await until(lambda: len(api.writes) == 200)
        run.cancel()
    assert api.most == recounter_module.WRITERS
    assert api.tasks < 100


async def test_an_ended_pod_that_a_cut_report_holds_up_is_told_so() -> None:
    ended = running("a")
    ended["spec"]["nodeName"], ended["status"] = "worker", {"phase": "Succeeded"}
    metadata = {"name": "worker", "uid": "w", "resourceVersion": "70"}
    node = {"metadata": metadata, "status": {"nodeInfo": {"bootID": "boot"}}}
    report = {"bootID": "boot", "podsResourceVersion": "70", "leftOut": {"pods": 1}}
    listed = {NODES: node, HUGETLB_NODES: {"metadata": metadata, "status": report}}

    class WithNode(Silent):
        async def list_page(self, resource: Resource, *_: Any, **__: Any) -> dict[str, Any]:
            if resource not in listed:
                return await super().list_page(resource)
            return {"metadata": {"resourceVersion": "90"}, "items": [listed[resource]]}

    api = WithNode(ended)
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}))

    def reasons() -> list[str]:
        return [each["reason"] for each in api.raw("db/leaf")["status"].get("conditions", ())]

    async with asyncio.TaskGroup() as group:
        run = group.create_task(recounter_of(api).run())
        await until(lambda: "ReportTooLarge" in reasons())
        run.cancel()
    assert api.raw("db/leaf")["status"]["pods"] == {"hugepages-2Mi": "64Mi"}


async def test_a_quota_that_had_to_wait_is_counted_when_it_may_though_nothing_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recounter_module, "PERIOD", 0.05)
    api, asked = Watched(running("a")), [False]
    never_counted = quota("db/leaf", {"hugepages-2Mi": "128Mi"})
    del never_counted["status"]["observedGeneration"]
    api.put(never_counted)
    counting = Recounter(cast(Connection, api), "me", term_of(1), may_begin=lambda: asked[0])
    async with asyncio.TaskGroup() as group:
        run = group.create_task(counting.run())
        await until(lambda: counting.books.counts > 2)
        assert not api.writes
        asked[0] = True
        await until(lambda: api.writes)
        run.cancel()


async def test_the_count_from_scratch_wins_and_says_that_it_differed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(write_plan, "CHECK_PERIOD", 0.5)
    monkeypatch.setattr(recounter_module, "PERIOD", 0.05)
    api = Watched(running("a"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "1Gi"}))
    counting = recounter_of(api)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(counting.run())
        await until(lambda: api.writes)
        # A pod of which the count does not hear.
        missed = project_demanding_pod(running("b"))
        assert missed is not None
        counting.books.store.pods["b"] = missed
        await until(lambda: len(api.writes) > 1)
        run.cancel()
    assert api.raw("db/leaf")["status"]["pods"] == {"hugepages-2Mi": "128Mi"}
    assert counting.books.differences == 1
    assert b"check_differences_total 1.0" in ControllerMetrics(counting).render()
    assert "HugeTLBQuota db/leaf" in caplog.text


class Telling(Silent):
    """Tells of quotas what is put into ``to_tell``."""

    def __init__(self) -> None:
        super().__init__()
        self.to_tell = asyncio.Queue[Json]()

    async def watch(self, resource: Resource, *_: Any, **__: Any) -> AsyncIterator[Json]:
        while resource == HUGETLB_QUOTAS:
            yield await self.to_tell.get()
        await asyncio.Event().wait()


async def test_a_quota_that_comes_is_told_of_and_a_charge_is_not() -> None:
    api, told, seen = Telling(), list[str](), asyncio.Queue[str]()
    counted_under(api, 1, "0")
    recounter = recounter_of(api)
    quotas = recounter._informers.quotas
    quotas.on_change(lambda old, new, _: seen.put_nowait((new or old).key.name))  # type: ignore[union-attr]
    recounter.on_quotas(lambda: told.append("look"))
    running = asyncio.create_task(recounter.run())
    try:
        assert await seen.get() == "leaf"
        charged = await api.get(HUGETLB_QUOTAS, "leaf", "db")
        charged["status"]["pods"] = {"hugepages-2Mi": "2Mi"}
        charged["metadata"]["resourceVersion"] = "1000"
        await asyncio.wait_for(quotas.synced.wait(), 10)
        listed = len(told)
        api.to_tell.put_nowait({"type": "MODIFIED", "object": charged})
        assert await seen.get() == "leaf"
        assert len(told) == listed
        made = quota("db/other", {"hugepages-2Mi": "128Mi"})
        made["metadata"]["resourceVersion"] = "1001"
        api.to_tell.put_nowait({"type": "ADDED", "object": made})
        assert await seen.get() == "other"
        assert len(told) > listed
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
