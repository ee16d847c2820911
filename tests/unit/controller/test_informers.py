"""The informers feed the books, and warn of quotas that can't be understood."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hugetlb_quota.controller.counting.books import Books
from hugetlb_quota.controller.informers import Informers
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import (
    HUGETLB_NODES,
    HUGETLB_QUOTAS,
    NAMESPACES,
    NODES,
    PODS,
    Resource,
)

Json = dict[str, Any]


def named(name: str, namespace: str = "", **more: Any) -> Json:
    metadata = {"name": name, "namespace": namespace, "uid": name, "resourceVersion": "5"}
    return {"metadata": metadata, **more}


def pod(name: str) -> Json:
    resources = {"requests": {"hugepages-2Mi": "2Mi"}}
    containers = [{"name": "main", "image": "none", "resources": resources}]
    return named(name, "ns", spec={"containers": containers})


SPEC = {"hard": {"hugepages-2Mi": "64Mi"}}


class Api:
    """Lists one object of each kind, and a quota with an unknown field; watches send nothing."""

    def __init__(self) -> None:
        self.listed: dict[Resource, list[Json]] = {
            PODS: [pod("demanding"), named("other", "ns", spec={"containers": []})],
            HUGETLB_QUOTAS: [
                named("q", "ns", spec=SPEC),
                named("newer", "ns", spec={**SPEC, "escrow": "1Gi"}),
            ],
            HUGETLB_NODES: [named("worker", status={"bootID": "boot"})],
            NODES: [named("worker")],
            NAMESPACES: [named("ns")],
        }

    async def list_page(self, resource: Resource, *_: Any, **__: Any) -> Json:
        return {"metadata": {"resourceVersion": "9"}, "items": self.listed[resource]}

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[Json]:
        await asyncio.Event().wait()
        yield {}


async def test_each_kind_reaches_the_store_and_an_unreadable_quota_makes_one_warning() -> None:
    warnings: list[tuple[str, str, str]] = []

    def warn(quota: QuotaObject, reason: str, sentence: str) -> None:
        warnings.append((quota.key.name, reason, sentence))

    api, books = Api(), Books()
    informers = Informers(api, books, warn)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run()) for each in informers.all]
        for each in informers.all:
            await each.synced.wait()
        # The same object in a later list must not warn again.
        informers._project_quota(api.listed[HUGETLB_QUOTAS][1])
        for task in tasks:
            task.cancel()
    store = books.store
    assert set(store.pods) == {"demanding"}
    assert {key.name for key in store.quotas} == {"q", "newer"}
    assert set(store.namespaces) == {"ns"}
    assert (set(store.nodes.nodes), set(store.nodes.reports)) == ({"worker"}, {"worker"})
    ((name, reason, sentence),) = warnings
    assert (name, reason) == ("newer", "Invalid")
    assert sentence.startswith("HugeTLBQuota ns/newer can't be understood: spec.escrow")
    assert sentence.endswith(" Its charges stay, and its pods are refused. Correct its spec.")
    assert set(informers.report_ages) == {"worker"}
    informers.forget_reports(kept=())
    assert informers.report_ages == {}
