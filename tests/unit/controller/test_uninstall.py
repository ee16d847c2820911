"""The uninstall takes the Lease and removes the operator's finalizer from all quotas."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hugetlb_quota.api.quota import FINALIZER
from hugetlb_quota.controller import uninstall
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS, LEASES, Resource
from tests.unit.controller.fake_objects import FakeObjects, Json


class Cluster(FakeObjects):
    """Quotas in pages of two, and the controllers' Lease."""

    def __init__(self) -> None:
        super().__init__()
        self.lists = 0
        self.put(
            LEASES,
            {
                "metadata": {"namespace": "system", "name": "hugetlb-quota-controller"},
                "spec": {"holderIdentity": "controller-1"},
            },
        )

    def make(self, name: str, *finalizers: str) -> None:
        metadata = {"namespace": "db", "name": name, "finalizers": list(finalizers)}
        self.put(HUGETLB_QUOTAS, {"metadata": metadata})

    def quotas(self) -> list[Json]:
        kinds = self.objects.items()
        return [raw for (plural, _), raw in kinds if plural == HUGETLB_QUOTAS.plural]

    def finalizers(self) -> dict[str, list[str]]:
        metadata = (raw["metadata"] for raw in self.quotas())
        return {each["name"]: each["finalizers"] for each in metadata}

    async def list_page(
        self, resource: Resource, *, limit: int, continuation: str | None = None
    ) -> Json:
        self.lists += 1
        start = int(continuation or 0)
        found = self.quotas()[start : start + 2]
        metadata = {} if start + 2 >= len(self.quotas()) else {"continue": str(start + 2)}
        return {"metadata": metadata, "items": found}


async def run(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def connect(_: str) -> AsyncIterator[Any]:
        yield cluster

    monkeypatch.setattr(Connection, "open", connect)
    monkeypatch.setattr(uninstall, "_PERIOD", 0.0)
    # The controller that led has stopped at once.
    monkeypatch.setattr(uninstall, "LEASE_DURATION", 0)
    await uninstall._main(uninstall.command_line().parse_args(["--lease-namespace=system"]))


async def test_every_page_of_quotas_loses_our_finalizer(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    for number in range(5):
        cluster.make(f"q{number}", FINALIZER, "other/s")
    await run(cluster, monkeypatch)
    assert cluster.finalizers() == {f"q{number}": ["other/s"] for number in range(5)}
    lease = cluster.objects[LEASES.plural, "hugetlb-quota-controller"]
    assert lease["spec"]["holderIdentity"] == "uninstall"


async def test_a_finalizer_that_the_stopping_controller_adds_is_removed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stopping(Cluster):
        async def list_page(
            self, resource: Resource, *, limit: int, continuation: str | None = None
        ) -> Json:
            if self.lists == 1:
                self.make("late", FINALIZER)
            return await super().list_page(resource, limit=limit, continuation=continuation)

    cluster = Stopping()
    cluster.make("early", FINALIZER)
    await run(cluster, monkeypatch)
    assert cluster.finalizers() == {"early": [], "late": []}
    assert cluster.lists == 3, "the last pass finds no finalizer"


async def test_the_uninstall_works_where_no_controller_ever_led(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster()
    cluster.objects.clear()
    cluster.make("q", FINALIZER)
    await run(cluster, monkeypatch)
    assert cluster.finalizers() == {"q": []}
