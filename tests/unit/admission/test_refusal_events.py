"""One Event for many refusals, and none that anything waits for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.admission import refusal_events
from hugetlb_quota.admission.refusal_events import LARGEST_BOOK, RefusalEvents
from hugetlb_quota.kube.resources import EVENTS
from tests.unit.admission.fake_api import FakeApi, Fate, Json

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
LEAF, ROOT = QuotaKey("db", "leaf"), QuotaKey("acme", "root")


def telling(api: FakeApi, replica: str = "a", now: datetime = NOW) -> RefusalEvents:
    return RefusalEvents(api, lambda key: f"uid-of-{key.name}", replica, lambda: now)


def stored(api: FakeApi) -> list[Json]:
    return [raw for (plural, _, _), raw in api.objects.items() if plural == EVENTS.plural]


async def test_many_refusals_make_one_event_on_each_quota_that_refuses() -> None:
    api = FakeApi()
    refusals = telling(api)
    for number in range(20):
        refusals.note([LEAF, ROOT], f"pod db/p-{number} has no room.")
    refusals.note([LEAF], "pod db/q has no room.")
    assert api.event_counts == []
    await refusals.tell()
    assert api.event_counts == [("db/leaf", 21), ("acme/root", 20)]
    (leaf, _) = stored(api)
    assert leaf["note"] == "pod db/p-0 has no room."
    assert (leaf["type"], leaf["reason"]) == ("Warning", "PodRefused")
    assert leaf["regarding"]["uid"] == "uid-of-leaf"
    assert leaf["metadata"]["namespace"] == "db"
    await refusals.tell()
    assert api.event_counts == [("db/leaf", 21), ("acme/root", 20)]


async def test_a_single_refusal_is_no_series() -> None:
    api = FakeApi()
    refusals = telling(api)
    refusals.note([LEAF], "no.")
    await refusals.tell()
    assert "series" not in stored(api)[0]


async def test_replicas_add_to_one_event_at_the_same_time() -> None:
    class Slow(FakeApi):
        async def turn(self, request: str) -> Fate:
            fate = await super().turn(request)
            await asyncio.sleep(0)
            return fate

    api = Slow()
    replicas = [telling(api, name) for name in "abc"]
    for _ in range(2):
        for replica in replicas:
            replica.note([LEAF] * 5, "no.")
        await asyncio.gather(*(replica.tell() for replica in replicas))
    assert api.event_counts == [("db/leaf", 30)]


async def test_later_refusals_make_an_event_with_their_own_sentence() -> None:
    api = FakeApi()
    for now, sentence in ((NOW, "first."), (NOW + timedelta(minutes=10), "later.")):
        refusals = telling(api, now=now)
        refusals.note([LEAF], sentence)
        await refusals.tell()
    assert [raw["note"] for raw in stored(api)] == ["first.", "later."]


async def test_no_more_is_kept_than_one_round_can_tell() -> None:
    api = FakeApi()
    refusals = telling(api)
    refusals.note((QuotaKey("ns", f"q-{number}") for number in range(LARGEST_BOOK + 9)), "no.")
    assert refusals.dropped == 9
    await refusals.tell()
    assert len(api.event_counts) == LARGEST_BOOK


async def test_an_api_that_does_not_answer_is_not_asked_for_each_quota() -> None:
    class Away(FakeApi):
        async def turn(self, request: str) -> Fate:
            await super().turn(request)
            return "lost"

    api = Away()
    refusals = telling(api)
    refusals.note([LEAF, ROOT], "no.")
    await refusals.tell()
    assert len(api.requests) == 1


async def test_a_name_of_any_length_makes_the_name_of_an_event() -> None:
    api = FakeApi()
    refusals = telling(api)
    refusals.note([QuotaKey("ns", "a" * 253)], "no.")
    await refusals.tell()
    (event,) = stored(api)
    assert len(event["metadata"]["name"]) <= 253


async def test_what_is_noted_is_told_soon_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_events, "GATHER", 0.0)
    api = FakeApi()
    refusals = telling(api)
    task = asyncio.create_task(refusals.run())
    refusals.note([LEAF], "no.")
    while not api.event_counts:
        await asyncio.sleep(0)
    task.cancel()
    refusals.note([ROOT], "no.")
    await refusals.finish()
    assert api.event_counts == [("db/leaf", 1), ("acme/root", 1)]
