"""The recounter: when the recounter counts, what it writes, and when it must not write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, cast

import pytest

from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME
from hugetlb_quota.api.quota import FINALIZER
from hugetlb_quota.controller import expiry, term
from hugetlb_quota.controller import recounter as recounter_module
from hugetlb_quota.controller.counting.count import Count
from hugetlb_quota.controller.counting.snapshot import Snapshot
from hugetlb_quota.controller.metrics import ControllerMetrics
from hugetlb_quota.controller.recounter import Recounter
from hugetlb_quota.controller.writing import write_plan
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
    """Lists one quota, and refuses to read or write the quota."""

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
    async def read_term() -> int:
        return number

    return read_term


def recounter_of(
    api: object,
    read_term: Callable[[], Awaitable[int]] | None = None,
    lifetime: timedelta = RESERVATION_LIFETIME,
) -> Recounter:
    return Recounter(cast(Connection, api), "me", read_term or term_of(1), lifetime=lifetime)


async def run_for(recounter: Recounter, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await recounter.run()


async def test_a_refused_write_is_not_tried_again_at_once() -> None:
    api = Refusing()
    await run_for(recounter_of(api), 0.8)
    assert api.tried == 1


class Silent(FakeApi):
    """An API of quotas and of the pods ``pods``. Its watches send nothing."""

    def __init__(self, *pods: Json) -> None:
        super().__init__()
        self.pods = pods
        self.notes: list[str] = []

    async def list_page(self, resource: Resource, *_: Any, **__: Any) -> dict[str, Any]:
        if resource == PODS:
            return {"metadata": {"resourceVersion": "90"}, "items": list(self.pods)}
        return await super().list_page(resource)

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
        await asyncio.Event().wait()
        yield {}

    async def create(self, resource: Resource, body: Json, *_: Any, **__: Any) -> Json:
        self.notes.append(body["note"])
        return body


def running(name: str, where: str = "db") -> Json:
    raw = pod(name, {"hugepages-2Mi": "64Mi"}, namespace=where)
    raw["metadata"]["resourceVersion"] = "80"
    return raw


def counted_under(api: FakeApi, term: int, pods: str) -> None:
    raw = quota("db/leaf", {"hugepages-2Mi": "128Mi"}, pods={"hugepages-2Mi": pods})
    raw["status"]["countedUnder"] = str(term)
    api.put(raw)


async def test_a_paused_leader_overwrites_no_later_count() -> None:
    api = Silent(running("a"))
    counted_under(api, 9, "128Mi")
    terms = iter([7])

    async def read_term() -> int:
        if (held := next(terms, None)) is None:
            raise LeadershipLost("another leads")
        return held

    with pytest.raises(ExceptionGroup) as ended:
        await run_for(recounter_of(api, read_term), 5)
    assert ended.value.subgroup(LeadershipLost)
    assert api.writes == []


async def test_a_paused_leader_reads_the_lease_before_it_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the leader would count a pod that its successor has not seen.

    Then the leader would end the reservation of the pod.
    """
    clock = [0.0]

    class Pausing(Silent):
        async def replace(self, *arguments: Any, **options: Any) -> Json:
            written = await super().replace(*arguments, **options)
            clock[0] += 100  # a pause, in which another controller leads
            counted_under(self, 7, "0")
            return written

    async def read_term() -> int:
        if clock[0]:
            raise LeadershipLost("another leads")
        return 7

    monkeypatch.setattr(term, "_now", lambda: clock[0])
    monkeypatch.setattr(recounter_module, "PERIOD", 0.01)
    api = Pausing(running("a"))
    counted_under(api, 1, "0")
    with pytest.raises(ExceptionGroup) as ended:
        await run_for(recounter_of(api, read_term), 5)
    assert ended.value.subgroup(LeadershipLost)
    assert len(api.writes) == 1


async def test_a_later_leader_overwrites_the_count_with_its_own_term() -> None:
    api = Silent(running("a"))
    counted_under(api, 7, "128Mi")
    await run_for(recounter_of(api, term_of(9)), 0.5)
    assert api.raw("db/leaf")["status"]["pods"] == {"hugepages-2Mi": "64Mi"}
    assert api.raw("db/leaf")["status"]["countedUnder"] == "9"


def flapping(api: FakeApi, **labels: str) -> None:
    """Store acme/tenant, and db/leaf, which was attached while its namespace had the label."""
    tenant = {"matchLabels": {"tenant": "acme"}}
    no_pod = {"matchLabels": {"no": "pod"}}
    api.put(namespace("db", **labels))
    api.put(quota("acme/tenant", {"hugepages-2Mi": "1Gi"}, children=tenant, selector=no_pod))
    api.put(
        quota("db/leaf", {}, parent="acme/tenant", attached_to=None if labels else "acme/tenant")
    )


async def test_a_charged_quota_stays_attached_when_the_label_is_removed() -> None:
    api = Silent(running("a"))
    flapping(api)
    await run_for(recounter_of(api), 0.5)
    leaf = api.raw("db/leaf")["status"]
    assert api.raw("acme/tenant")["status"]["pods"] == {"hugepages-2Mi": "64Mi"}
    assert leaf["attachedTo"] == "acme/tenant"
    (ready,) = [each for each in leaf["conditions"] if each["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "ForeignParent")
    assert "The charge of db/leaf stays charged to acme/tenant too." in ready["message"]


async def test_an_uncharged_quota_is_detached_when_the_label_is_removed() -> None:
    api = Silent()
    flapping(api)
    await run_for(recounter_of(api), 0.5)
    assert api.raw("db/leaf")["status"]["attachedTo"] == ""


async def test_the_count_stores_the_attachment() -> None:
    api = Silent(running("a"))
    flapping(api, tenant="acme")
    await run_for(recounter_of(api), 0.5)
    assert api.raw("db/leaf")["status"]["attachedTo"] == "acme/tenant"
    assert "attachedTo" not in api.raw("acme/tenant")["status"]


async def test_after_a_restore_of_etcd_the_leader_overwrites_counts_of_later_terms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recounter_module, "RETRY", 0.05)
    api = Silent(running("a"))
    counted_under(api, 1000, "128Mi")  # the term of the present leader is 9
    await run_for(recounter_of(api, term_of(9)), 0.8)
    assert api.raw("db/leaf")["status"]["pods"] == {"hugepages-2Mi": "64Mi"}


async def test_a_quota_of_a_newer_release_is_counted_with_a_warning_and_not_written() -> None:
    api = Silent(running("a"))
    raw = quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="db/root")
    raw["spec"]["escrow"] = "1Gi"
    api.put(raw)
    api.put(quota("db/root", {"hugepages-2Mi": "1Gi"}, selector={"matchLabels": {"no": "pod"}}))
    await run_for(recounter_of(api), 0.5)
    assert api.raw("db/root")["status"]["pods"] == {"hugepages-2Mi": "64Mi"}
    assert set(api.writes) == {"PUT hugetlbquotas/status db/root"}
    assert "HugeTLBQuota db/leaf can't be understood: spec.escrow" in api.notes[0]


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


class Watched(Silent):
    """The same API. The watch of a kind sends the events in ``watch_events`` of the kind."""

    def __init__(self, *pods: Json) -> None:
        super().__init__(*pods)
        self.watch_events: dict[Resource, asyncio.Queue[Json]] = {}

    async def watch(self, resource: Resource, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
        queue = self.watch_events.setdefault(resource, asyncio.Queue())
        while True:
            yield await queue.get()

    async def replace(self, resource: Resource, *arguments: Any, **options: Any) -> Json:
        written = await super().replace(resource, *arguments, **options)
        if resource == HUGETLB_QUOTAS:
            self.watch_events[resource].put_nowait({"type": "MODIFIED", "object": written})
        return written

    def create_pod(self, name: str, version: int) -> None:
        raw = running(name)
        raw["metadata"]["resourceVersion"] = str(version)
        self.watch_events[PODS].put_nowait({"type": "ADDED", "object": raw})


async def test_without_changes_no_pod_is_counted_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recounter_module, "PERIOD", 0.02)
    api = Watched(running("a"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}))
    counting = recounter_of(api)
    pods_counted: list[int] = []
    count = counting.books.census.count

    def count_and_note(snapshot: Snapshot) -> Count:
        pods_counted.append(len(snapshot.pods))
        return count(snapshot)

    monkeypatch.setattr(counting.books.census, "count", count_and_note)
    await run_for(counting, 0.8)
    assert len(api.writes) == 1
    assert pods_counted[0] == 1
    assert len(pods_counted) > 3
    assert set(pods_counted[1:]) == {0}


async def test_a_quota_is_written_at_most_twice_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rests: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        rests.append(seconds)
        await sleep(0)

    api = Watched()
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Gi"}))
    monkeypatch.setattr(asyncio, "sleep", record)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(recounter_of(api).run())
        await until(lambda: PODS in api.watch_events and api.writes)
        for number in range(20):
            before = len(api.writes)
            api.create_pod(f"p{number}", 100 + number)
            await until(lambda before=before: len(api.writes) > before)  # type: ignore[misc]
        run.cancel()
    # After each count the loop slept for the rest of half a second.
    assert len([rest for rest in rests if rest > 0.3]) >= 20


async def test_the_reservation_of_a_pod_that_never_came_ends_as_soon_as_possible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The controller does not wait for its next periodic count."""
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


async def test_a_failed_write_is_tried_again_without_another_change(
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


async def test_only_a_few_quotas_are_written_at_the_same_time() -> None:
    """Ten thousand tasks would take much memory, and block the event loop."""

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


async def test_a_condition_says_that_a_cut_report_holds_an_ended_pod() -> None:
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


async def test_a_new_quota_is_counted_as_soon_as_the_webhook_rules_are_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recounter_module, "PERIOD", 0.05)
    api, rules_in_force = Watched(running("a")), [False]
    never_counted = quota("db/leaf", {"hugepages-2Mi": "128Mi"})
    del never_counted["status"]["observedGeneration"]
    api.put(never_counted)
    counting = Recounter(
        *(cast(Connection, api), "me", term_of(1)), may_begin=lambda: rules_in_force[0]
    )
    async with asyncio.TaskGroup() as group:
        run = group.create_task(counting.run())
        await until(lambda: counting.books.counts > 2)
        assert not api.writes
        rules_in_force[0] = True
        await until(lambda: api.writes)
        run.cancel()


async def test_a_differing_count_from_scratch_replaces_the_charges_and_is_logged(
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
        # The store gets a pod without a note of the change.
        missed = project_demanding_pod(running("b"))
        assert missed is not None
        counting.books.store.pods["b"] = missed
        await until(lambda: len(api.writes) > 1)
        run.cancel()
    assert api.raw("db/leaf")["status"]["pods"] == {"hugepages-2Mi": "128Mi"}
    assert counting.books.differences == 1
    assert b"check_differences_total 1.0" in ControllerMetrics(counting).render()
    assert "HugeTLBQuota db/leaf" in caplog.text


class QuotasWatched(Silent):
    """An API in which only the watch of quotas sends events: those in ``watch_events``."""

    def __init__(self) -> None:
        super().__init__()
        self.watch_events = asyncio.Queue[Json]()

    async def watch(self, resource: Resource, *_: Any, **__: Any) -> AsyncIterator[Json]:
        while resource == HUGETLB_QUOTAS:
            yield await self.watch_events.get()
        await asyncio.Event().wait()


async def test_on_quotas_calls_back_for_a_new_quota_and_not_for_a_charge() -> None:
    api, calls, seen = QuotasWatched(), list[str](), asyncio.Queue[str]()
    counted_under(api, 1, "0")
    recounter = recounter_of(api)
    quotas = recounter._informers.quotas
    quotas.on_change(lambda old, new, _: seen.put_nowait((new or old).key.name))  # type: ignore[union-attr]
    recounter.on_quotas(lambda: calls.append("look"))
    running = asyncio.create_task(recounter.run())
    try:
        assert await seen.get() == "leaf"
        charged = await api.get(HUGETLB_QUOTAS, "leaf", "db")
        charged["status"]["pods"] = {"hugepages-2Mi": "2Mi"}
        charged["metadata"]["resourceVersion"] = "1000"
        await asyncio.wait_for(quotas.synced.wait(), 10)
        listed = len(calls)
        api.watch_events.put_nowait({"type": "MODIFIED", "object": charged})
        assert await seen.get() == "leaf"
        assert len(calls) == listed
        created = quota("db/other", {"hugepages-2Mi": "128Mi"})
        created["metadata"]["resourceVersion"] = "1001"
        api.watch_events.put_nowait({"type": "ADDED", "object": created})
        assert await seen.get() == "other"
        assert len(calls) > listed
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
