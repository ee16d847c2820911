"""The names that completion offers: those that the command line accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.kube import resources
from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.plugin.names import names
from tests.unit.plugin.kubeconfigs import KUBECONFIG
from tests.unit.plugin.stub_cluster import StubCluster

Json = dict[str, Any]


class Listed(StubCluster):
    """Lists two objects of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[tuple[Resource, str | None]] = []

    async def every(self, resource: Resource, namespace: str | None = None) -> list[Json]:
        self.listed.append((resource, namespace))
        return [{"metadata": {"name": name}} for name in ("z", "a")]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Listed:
    listed = Listed()
    listed.install(monkeypatch)
    return listed


async def test_a_quota_of_the_namespace_is_offered_with_and_without_the_namespace(
    listed: Listed,
) -> None:
    assert await names("quota", {}) == ["acme/tenant", "acme-db/db", "acme-web/web", "web"]
    assert (await names("quota", {"namespace": "acme-db"}))[1:3] == ["acme-db/db", "db"]


async def test_objects_are_offered_from_the_namespace_in_order(listed: Listed) -> None:
    assert await names("job", {}) == ["a", "z"]
    assert await names("namespace", {}) == ["a", "z"]
    assert listed.listed == [(resources.JOBS, "acme-web"), (resources.NAMESPACES, None)]


async def test_an_unknown_kind_has_no_names(listed: Listed) -> None:
    assert await names("service", {}) == []
    assert listed.listed == []


async def test_contexts_are_read_without_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(KUBECONFIG)
    assert await names("context", {"kubeconfig": str(tmp_path / "config")}) == ["xy"]
