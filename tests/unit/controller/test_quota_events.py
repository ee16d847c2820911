"""What pods that are gone leave is told of on the quota that pays, together and once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.controller import quota_events as module
from hugetlb_quota.controller.quota_events import NAMED, QuotaEvents
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


async def settle(events: QuotaEvents) -> None:
    await asyncio.gather(*events._saying)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER", 0.0)
    monkeypatch.setattr(module, "REST", 0.0)


async def told(events: QuotaEvents, quota: QuotaObject, files: Iterable[RetainedFile]) -> None:
    events.retained(quota, files)
    await settle(events)


async def test_new_files_are_told_of_together_and_once() -> None:
    api = Api()
    events = QuotaEvents(api, "me")
    await told(events, QUOTA, left("a", "b"))
    await told(events, QUOTA, left("a", "b"))
    assert api.notes == [
        "Retained: pod ns/a left 4Mi of hugepages-2Mi in /huge/a on node n1, pod ns/b left 4Mi of"
        " hugepages-2Mi in /huge/b on node n1. This stays charged to HugeTLBQuota ns/q until the"
        " files are truncated or removed."
    ]
    await told(events, QUOTA, left("a", "b", "c"))
    assert [note.count(" left ") for note in api.notes] == [2, 1]


async def test_what_the_status_tells_already_and_what_others_pay_is_not_told() -> None:
    api = Api()
    events = QuotaEvents(api, "me")
    await told(events, replace(QUOTA, retained_files=left("a")), left("a"))
    await told(events, QUOTA, left("b", by="ns/below"))
    assert api.notes == []


async def test_many_are_counted_and_what_comes_meanwhile_waits() -> None:
    api = Api()
    events = QuotaEvents(api, "me")
    names = [str(number) for number in range(NAMED + 3)]
    events.retained(QUOTA, left(*names[:3]))
    events.retained(QUOTA, left(*names))
    await settle(events)
    (note,) = api.notes
    assert " and 3 more. " in note
    assert not events._telling
    assert not events._untold
