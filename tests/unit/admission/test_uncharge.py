"""Reservations are taken back from each quota, and a failure is logged."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.uncharge import Uncharger
from hugetlb_quota.page_size import PageSize
from tests.unit.admission.fake_api import FakeApi, Fate, quota, reservation

SIZE = PageSize(2 * 1024**2)
LEAF, ROOT, GONE = QuotaKey("db", "leaf"), QuotaKey("db", "root"), QuotaKey("db", "gone")
#: The reservation to take back.
HELD = Reservation(
    "pod-1", "db/p", Charge({SIZE: 2 * SIZE.bytes}), datetime(2026, 11, 22, 12, tzinfo=UTC), "a"
)
#: Two requests have reserved for the same pod; the reservation of the first is HELD.
LINES = [reservation("pod-1", "db/p", "4Mi", request=each) for each in ("a", "b")]


class Broken(FakeApi):
    async def turn(self, request: str) -> Fate:
        await super().turn(request)
        return "lost" if request.startswith("PUT") and "root" in request else "answered"


async def test_takes_back_only_the_reservation_of_the_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = FakeApi()
    for key in (LEAF, ROOT):
        api.put(quota(str(key), {"hugepages-2Mi": "8Mi"}, reservations=LINES))
    uncharger = Uncharger(api, QuotaCache(api))
    await uncharger.start({key: {HELD.id: HELD} for key in (LEAF, ROOT, GONE)})
    for key in (LEAF, ROOT):
        assert api.raw(str(key))["status"]["reservations"] == [LINES[1]]
    assert uncharger.tasks == set()
    assert caplog.text == ""


async def test_a_failure_is_logged_and_does_not_keep_other_quotas_charged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    api = Broken()
    for key in (LEAF, ROOT):
        api.put(quota(str(key), {"hugepages-2Mi": "8Mi"}, reservations=LINES))
    await Uncharger(api, QuotaCache(api)).start({key: {HELD.id: HELD} for key in (ROOT, LEAF)})
    assert api.raw(str(LEAF))["status"]["reservations"] == [LINES[1]]
    assert (
        "The reservation of pod db/p (pod-1) on HugeTLBQuota db/root could not be taken back; it"
        " stays until it expires at 2026-11-22T12:00:00+00:00" in caplog.text
    )


async def test_a_quota_without_the_reservation_is_not_written() -> None:
    api = FakeApi()
    api.put(quota(str(LEAF), {"hugepages-2Mi": "8Mi"}, reservations=LINES[1:]))
    await Uncharger(api, QuotaCache(api)).start({LEAF: {HELD.id: HELD}})
    assert api.writes == []
