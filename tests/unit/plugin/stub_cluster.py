"""A cluster of the plugin, with a fixed world and a fixed answer to dry runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.plugin.cluster import Cluster
from hugetlb_quota.plugin.reports import NodeReport
from hugetlb_quota.plugin.world import World
from tests.unit.plugin.worlds import acme

Json = dict[str, Any]


class StubCluster:
    """The context has the namespace acme-web.

    ``dry_runs``: the namespace of each dry run. ``verdict``: the answer to each dry run.
    ``objects``: the results of :meth:`workload`, by kind, namespace and name.
    """

    server = "https://test"

    def __init__(self, world: World | None = None) -> None:
        self.namespace = "acme-web"
        self.unseen: list[str] = []
        self.trouble = ""
        self.shown = acme() if world is None else world
        self.dry_runs: list[str] = []
        self.verdict: tuple[bool | None, str] = (True, "")
        self.objects: dict[tuple[str, str, str], Json] = {}

    @property
    def cluster(self) -> Cluster:
        """The stub, with the type that the commands take."""
        return cast(Cluster, self)

    async def world(self, **_: bool) -> World:
        return self.shown

    async def reports(self) -> tuple[NodeReport, ...] | None:
        return self.shown.reports

    async def workload(self, _: Resource, kind: str, name: str, namespace: str) -> Json:
        return self.objects[kind, namespace, name]

    async def try_pod(self, _: Json, namespace: str) -> tuple[bool | None, str]:
        self.dry_runs.append(namespace)
        return self.verdict

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let ``Cluster.open`` give this cluster."""

        @asynccontextmanager
        async def give(_: object, __: object, namespace: str | None) -> AsyncIterator[StubCluster]:
            self.namespace = namespace or self.namespace
            yield self

        monkeypatch.setattr(Cluster, "open", give)
