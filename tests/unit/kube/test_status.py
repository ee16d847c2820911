"""Compare-and-swap with the in-memory API of admission's tests."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.kube import errors, status
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.page_size import PageSize
from tests.unit.admission.fake_api import FakeApi, Fate, quota

SIZE = PageSize(2 * 1024**2)
KEY = QuotaKey("db", "leaf")


def one_more(quota: QuotaObject) -> QuotaObject:
    more = quota.counter.pods + Charge({SIZE: SIZE.bytes})
    return quota.with_counter(replace(quota.counter, pods=more))


class Contended(FakeApi):
    """An API in which another write precedes each of the first ``times`` writes."""

    times = 0

    async def turn(self, request: str) -> Fate:
        fate = await super().turn(request)
        if request.startswith("PUT") and self.times:
            self.times -= 1
            self.put(self.raw(str(KEY)))
        return fate


@pytest.fixture
def api() -> Contended:
    api = Contended()
    api.put(quota(str(KEY), {"hugepages-2Mi": "256Mi"}))
    return api


async def test_the_changed_quota_is_written_and_returned(api: Contended) -> None:
    written = await status.compare_and_swap(api, KEY, one_more)
    assert written.counter.pods.of(SIZE) == SIZE.bytes
    assert api.quota(str(KEY)) == written


async def test_a_conflict_is_read_and_changed_again(api: Contended) -> None:
    api.times = 3
    written = await status.compare_and_swap(api, KEY, one_more)
    assert written.counter.pods.of(SIZE) == SIZE.bytes
    assert len(api.writes) == 4


async def test_each_conflict_doubles_the_longest_random_wait_up_to_a_limit(
    api: Contended, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest: list[float] = []

    def no_wait(_: float, most: float) -> float:
        longest.append(most)
        return 0.0

    monkeypatch.setattr(random, "uniform", no_wait)
    api.times = 7
    await status.compare_and_swap(api, KEY, one_more)
    assert longest == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.32]


async def test_a_known_state_saves_the_first_read(api: Contended) -> None:
    await status.compare_and_swap(api, KEY, one_more, just_read=api.quota(str(KEY)))
    assert api.requests == ["PUT hugetlbquotas/status db/leaf"]


async def test_nothing_is_written_when_nothing_changes(api: Contended) -> None:
    await status.compare_and_swap(api, KEY, lambda quota: quota)
    first = await status.compare_and_swap(api, KEY, one_more)
    same = await status.compare_and_swap(api, KEY, lambda quota: quota.with_counter(first.counter))
    assert same.counter == first.counter
    assert len(api.writes) == 1


async def test_endless_conflicts_end_in_time(api: Contended) -> None:
    api.times = 10**6
    with pytest.raises(errors.ApiUnreachable, match=r"could not be written within 0\.2 s"):
        await status.compare_and_swap(api, KEY, one_more, within=0.2)


async def test_an_exception_of_the_change_writes_nothing(api: Contended) -> None:
    def refuse(quota: QuotaObject) -> QuotaObject:
        raise LookupError("no room")

    with pytest.raises(LookupError):
        await status.compare_and_swap(api, KEY, refuse)
    assert api.writes == []


async def test_a_missing_or_invalid_quota(api: Contended) -> None:
    with pytest.raises(errors.NotFound):
        await status.compare_and_swap(api, QuotaKey("db", "none"), one_more)
    api.put(quota("db/bad", {"hugepages-3Mi": "3Mi"}))
    with pytest.raises(InvalidQuota):
        await status.compare_and_swap(api, QuotaKey("db", "bad"), one_more)
