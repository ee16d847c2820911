"""Events on quotas: one for all files of gone pods, none for a deletion without a charge."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.api.model import Condition
from hugetlb_quota.controller.writing import quota_events as module
from hugetlb_quota.controller.writing.quota_events import MOST_NAMED, QuotaEvents
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.page_size import PageSize

MIB = 1 << 20
QUOTA = QuotaObject.from_json(
    {
        "metadata": {"namespace": "ns", "name": "q", "uid": "u", "resourceVersion": "7"},
        "spec": {"hard": {"hugepages-2Mi": "64Mi"}},
    }
)


class Api:
    def __init__(self) -> None:
        self.notes: list[str] = []

    async def create(self, resource: Resource, body: Any, *_: Any, **__: Any) -> dict[str, Any]:
        self.notes.append(body["note"])
        return {}


def left(*names: str, by: str = "ns/q") -> tuple[RetainedFile, ...]:
    quotas = frozenset([QuotaKey.parse(by)])
    return tuple(
        RetainedFile("n1", f"/huge/{name}", f"ns/{name}", PageSize(2 * MIB), 4 * MIB, quotas)
        for name in names
    )


async def finish(events: QuotaEvents) -> None:
    await asyncio.gather(*events._tasks)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER", 0.0)
    monkeypatch.setattr(module, "REST", 0.0)


async def publish(events: QuotaEvents, quota: QuotaObject, files: Iterable[RetainedFile]) -> None:
    events.retained(quota, files)
    await finish(events)


async def test_new_files_get_one_event_together_and_only_once() -> None:
    api = Api()
    events = QuotaEvents(api, "me")
    await publish(events, QUOTA, left("a", "b"))
    await publish(events, QUOTA, left("a", "b"))
    assert api.notes == [
        "Retained: pod ns/a left 4Mi of hugepages-2Mi in /huge/a on node n1, pod ns/b left 4Mi of"
        " hugepages-2Mi in /huge/b on node n1. This stays charged to HugeTLBQuota ns/q until the"
        " files are truncated or removed."
    ]
    await publish(events, QUOTA, left("a", "b", "c"))
    assert [note.count(" left ") for note in api.notes] == [2, 1]
    assert api.notes[1].endswith("until the file is truncated or removed.")


async def test_files_in_the_status_and_files_that_other_quotas_pay_for_get_no_event() -> None:
    api = Api()
    events = QuotaEvents(api, "me")
    await publish(events, replace(QUOTA, retained_files=left("a")), left("a"))
    await publish(events, QUOTA, left("b", by="ns/below"))
    assert api.notes == []


async def test_an_event_names_some_files_and_counts_the_rest() -> None:
    api = Api()
    events = QuotaEvents(api, "me")
    names = [str(number) for number in range(MOST_NAMED + 3)]
    events.retained(QUOTA, left(*names[:3]))
    events.retained(QUOTA, left(*names))
    await finish(events)
    (note,) = api.notes
    assert " and 3 more. " in note
    assert not events._active
    assert not events._waiting


async def test_a_deleted_quota_gets_an_event_only_if_it_is_charged() -> None:
    api = Api()
    events = QuotaEvents(api, "me")
    condition = Condition(
        type="Ready",
        status="False",
        reason="Terminating",
        message="HugeTLBQuota ns/q is being deleted and admits no pods.",
        last_transition_time=datetime(2026, 1, 1, tzinfo=UTC),
        observed_generation=1,
    )
    deleted = replace(QUOTA, quota=replace(QUOTA.quota, terminating=True))
    await events.conditions_changed(deleted, [condition])
    assert api.notes == []
    charged = replace(deleted.counter, retained=Charge({PageSize(2 * MIB): 4 * MIB}))
    await events.conditions_changed(deleted.with_counter(charged), [condition])
    assert len(api.notes) == 1
    # A quota under a deleted quota stays, and somebody must change its parent.
    await events.conditions_changed(QUOTA, [condition])
    assert len(api.notes) == 2
