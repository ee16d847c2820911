"""How often the recount asks a server that has nothing good to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.controller import recounter as recounter_module
from hugetlb_quota.controller.recounter import Recounter
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS, Resource

QUOTA = {
    "metadata": {"namespace": "ns", "name": "q", "uid": "u", "resourceVersion": "7"},
    "spec": {"hard": {"hugepages-2Mi": "64Mi"}},
}


class Refusing:
    """Lists one quota, and refuses to have it read or written."""

    def __init__(self) -> None:
        self.reads = 0

    async def list_page(self, resource: Resource, *_: Any, **__: Any) -> dict[str, Any]:
        items = [QUOTA] if resource == HUGETLB_QUOTAS else []
        return {"metadata": {"resourceVersion": "7"}, "items": items}

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
        await asyncio.Event().wait()
        yield {}

    async def get(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.reads += 1
        raise errors.Forbidden(403, "Forbidden", "hugetlbquotas is forbidden")


async def test_a_refused_write_is_not_tried_again_at_once() -> None:
    api = Refusing()
    recounter = Recounter(cast(Connection, api), "me")
    with suppress(TimeoutError):
        async with asyncio.timeout(0.8):
            await recounter.run()
    assert api.reads == 1


async def test_a_reservation_of_nobody_ends_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listing(Refusing):
        async def get(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {"kind": "PodList", "items": []}  # what a name that is none gets

    monkeypatch.setattr(recounter_module, "RESERVATION_LIFETIME", timedelta(0))
    recounter = Recounter(cast(Connection, Listing()), "me")
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    held = [Reservation(f"u-{pod}", pod, Charge(), long_ago) for pod in ("ns/", "/", "", "ns/p")]
    counter = Counter(QuotaKey("ns", "q"), Charge(), reservations=tuple(held))
    assert await recounter._gone(counter) == {each.id for each in held}
