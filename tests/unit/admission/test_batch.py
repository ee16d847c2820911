"""Which requests of a batch fit, and on which quotas."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.admission.batch import (
    ChainChanged,
    ChargeRequest,
    NoRoom,
    TooManyReservations,
    decide,
    decide_again,
    merged_error,
)
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.page_size import PageSize
from tests.unit.admission.fake_api import quota

SIZE = PageSize(2 * 1024**2)
LATER = datetime(2030, 1, 1, tzinfo=UTC)


def stored(key: str, limit: str, version: int = 1, parent: str | None = None) -> QuotaObject:
    raw = quota(key, {"hugepages-2Mi": limit}, parent=parent)
    raw["metadata"] |= {"uid": f"uid-of-{key}", "resourceVersion": str(version)}
    return QuotaObject.from_json(raw)


LEAF = stored("ns/leaf", "8Mi", parent="ns/root")
ROOT = stored("ns/root", "6Mi")


def request_for(uid: str, pages: int, *chain: QuotaObject) -> ChargeRequest:
    reservation = Reservation(uid, f"ns/{uid}", Charge({SIZE: pages * SIZE.bytes}), LATER, uid)
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    return ChargeRequest(chain or (LEAF, ROOT), reservation, done)


def empty(_: QuotaKey) -> None:
    """A cache without quotas."""


def reserved(levels: list, key: str) -> list[str]:  # type: ignore[type-arg]
    (level,) = [each for each in levels if str(each.quota.key) == key]
    return [each.uid for each in level.tab.counter.reservations]


async def test_a_request_is_on_all_levels_or_on_none() -> None:
    fits, too_large, small = (request_for(*each) for each in (("a", 2), ("b", 2), ("c", 1)))
    levels = decide([fits, too_large, small], empty)
    assert reserved(levels, "ns/leaf") == reserved(levels, "ns/root") == ["a", "c"]
    assert fits.held_on == {LEAF.key, ROOT.key}
    assert too_large.held_on == set()
    (error,) = too_large.errors
    assert isinstance(error, NoRoom)
    assert [each.quota for each in error.shortfalls] == [ROOT.key]


async def test_the_newest_version_of_a_quota_is_decided_on() -> None:
    newer = stored("ns/root", "2Mi", version=2)
    request = request_for("a", 2)
    assert decide([request], {ROOT.key: newer}.get) == []
    assert isinstance(request.errors[0], NoRoom)


async def test_a_quota_with_another_parent_raises_place_changed() -> None:
    moved = stored("ns/leaf", "8Mi", version=2, parent="ns/other")
    request = request_for("a", 1)
    decide([request], {LEAF.key: moved}.get)
    assert isinstance(request.errors[0], ChainChanged)


async def test_an_earlier_attempt_of_a_request_needs_no_second_room() -> None:
    request = request_for("a", 3)
    held = replace(ROOT.counter, reservations=(request.reservation,))
    levels = decide([request], {ROOT.key: replace(ROOT, counter=held, resource_version="2")}.get)
    assert request.errors == []
    assert reserved(levels, "ns/root") == ["a"]


async def test_the_reservations_of_one_object_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hugetlb_quota.accounting.counter.LARGEST_RESERVATIONS", 10)
    request = request_for("a", 1)
    decide([request], empty)
    assert isinstance(request.errors[0], TooManyReservations)


async def test_after_a_conflict_only_open_requests_are_decided_again() -> None:
    first, last = request_for("a", 2), request_for("b", 2)
    refused, cancelled = request_for("c", 1), request_for("d", 1)  # they would fit
    refused.errors.append(ChainChanged("ns/leaf"))
    cancelled.done.cancel()
    level = decide_again(ROOT, [first, refused, cancelled, last])
    assert level.requests == [first]
    assert [each.uid for each in level.tab.counter.reservations] == ["a"]
    assert isinstance(last.errors[0], NoRoom)


async def test_shortfalls_of_several_levels_are_one_error() -> None:
    errors = []
    for each in (LEAF, ROOT):
        request = request_for("a", 9)
        decide_again(each, [request])
        errors += request.errors
    merged = merged_error(errors)
    assert isinstance(merged, NoRoom)
    assert [each.quota for each in merged.shortfalls] == [LEAF.key, ROOT.key]
    changed = ChainChanged("ns/leaf")
    assert merged_error([*errors, changed]) is changed
