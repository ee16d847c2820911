"""Many refusals make one Event, and no request waits for the Event."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.admission import refusal_events as module
from hugetlb_quota.admission.refusal_events import MOST_QUOTAS, RefusalEvents
from hugetlb_quota.kube.resources import EVENTS
from tests.unit.admission.fake_api import FakeApi, Fate, Json

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
LEAF, ROOT = QuotaKey("db", "leaf"), QuotaKey("acme", "root")


def refusal_events(api: FakeApi, replica: str = "a", now: datetime = NOW) -> RefusalEvents:
    return RefusalEvents(api, lambda key: f"uid-of-{key.name}", replica, lambda: now)


def stored(api: FakeApi) -> list[Json]:
    return [raw for (plural, _, _), raw in api.objects.items() if plural == EVENTS.plural]


async def test_many_refusals_make_one_event_for_each_quota() -> None:
    api = FakeApi()
    refusals = refusal_events(api)
    for number in range(20):
        refusals.note([LEAF, ROOT], f"pod db/p-{number} has no room.")
    refusals.note([LEAF], "pod db/q has no room.")
    assert api.event_counts == []
    await refusals.publish()
    assert api.event_counts == [("db/leaf", 21), ("acme/root", 20)]
    (leaf, _) = stored(api)
    assert leaf["note"] == "pod db/p-0 has no room."
    assert (leaf["type"], leaf["reason"]) == ("Warning", "PodRefused")
    assert leaf["regarding"]["uid"] == "uid-of-leaf"
    assert leaf["metadata"]["namespace"] == "db"
    await refusals.publish()
    assert api.event_counts == [("db/leaf", 21), ("acme/root", 20)]


async def test_a_single_refusal_makes_an_event_without_a_series() -> None:
    api = FakeApi()
    refusals = refusal_events(api)
    refusals.note([LEAF], "no.")
    await refusals.publish()
    assert "series" not in stored(api)[0]


async def test_replicas_count_on_one_event_at_the_same_time() -> None:
    class Slow(FakeApi):
        async def turn(self, request: str) -> Fate:
            fate = await super().turn(request)
            await asyncio.sleep(0)
            return fate

    api = Slow()
    replicas = [refusal_events(api, name) for name in "abc"]
    for _ in range(2):
        for replica in replicas:
            replica.note([LEAF] * 5, "no.")
        await asyncio.gather(*(replica.publish() for replica in replicas))
    assert api.event_counts == [("db/leaf", 30)]


async def test_refusals_in_a_later_time_span_make_another_event() -> None:
    api = FakeApi()
    for now, sentence in ((NOW, "first."), (NOW + timedelta(minutes=10), "later.")):
        refusals = refusal_events(api, now=now)
        refusals.note([LEAF], sentence)
        await refusals.publish()
    assert [raw["note"] for raw in stored(api)] == ["first.", "later."]


async def test_refusals_of_too_many_quotas_are_dropped() -> None:
    api = FakeApi()
    refusals = refusal_events(api)
    refusals.note((QuotaKey("ns", f"q-{number}") for number in range(MOST_QUOTAS + 9)), "no.")
    assert refusals.dropped == 9
    await refusals.publish()
    assert len(api.event_counts) == MOST_QUOTAS


async def test_a_round_ends_if_the_api_server_does_not_answer() -> None:
    class Unreachable(FakeApi):
        async def turn(self, request: str) -> Fate:
            await super().turn(request)
            return "lost"

    api = Unreachable()
    refusals = refusal_events(api)
    refusals.note([LEAF, ROOT], "no.")
    await refusals.publish()
    assert len(api.requests) == 1


async def test_a_long_quota_name_makes_a_valid_event_name() -> None:
    api = FakeApi()
    refusals = refusal_events(api)
    refusals.note([QuotaKey("ns", "a" * 253)], "no.")
    await refusals.publish()
    (event,) = stored(api)
    assert len(event["metadata"]["name"]) <= 253


async def test_a_noted_refusal_makes_an_event_soon_or_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GATHER", 0.0)
    api = FakeApi()
    refusals = refusal_events(api)
    task = asyncio.create_task(refusals.run())
    refusals.note([LEAF], "no.")
    while not api.event_counts:
        await asyncio.sleep(0)
    task.cancel()
    refusals.note([ROOT], "no.")
    await refusals.finish()
    assert api.event_counts == [("db/leaf", 1), ("acme/root", 1)]
