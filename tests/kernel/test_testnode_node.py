"""The test node after its watch fell behind: it lists again, and ends pods that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from tests.testnode import cgroup_tree
from tests.testnode.api import Api, ApiError, Json
from tests.testnode.node import Node
from tests.testnode.pod import Place


class ForgetfulApi(Api):
    """Lists ``pods``. Each watch waits for ``too_old`` and then ends with 410."""

    def __init__(self, pods: list[Json]) -> None:
        self.pods = pods
        self.too_old = asyncio.Event()
        self.calls: list[tuple[str, str]] = []

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Json:
        self.calls.append((method, path))
        if path == "/api/v1/pods":
            return {"items": self.pods, "metadata": {"resourceVersion": "1"}}
        return {"spec": {}}

    async def watch(
        self, path: str, query: Mapping[str, str], resource_version: str
    ) -> AsyncIterator[Json]:
        await self.too_old.wait()
        self.too_old.clear()
        raise ApiError(410, "too old resource version")
        yield {}


async def test_ends_a_pod_that_vanished_between_two_watches(
    cgroup_subtree: Path, tmp_path: Path
) -> None:
    place = Place(cgroup_tree.cgroup2_mount(), cgroup_subtree, tmp_path, "systemd")
    pod: Json = {
        "metadata": {"name": "a", "namespace": "b", "uid": "0-1"},
        "spec": {"containers": [{"name": "c", "command": ["sleep", "600"]}]},
        "status": {"qosClass": "BestEffort"},
    }
    api = ForgetfulApi([pod])
    node = asyncio.create_task(Node(api, place, {}, {}).run(tmp_path / "ready"))
    cgroup = place.pod_cgroup(pod)
    try:
        await until(lambda: cgroup.exists() and cgroup_tree.populated(cgroup))
        await until((tmp_path / "ready").exists)
        # The same list again changes nothing.
        api.too_old.set()
        await until(lambda: api.calls.count(("GET", "/api/v1/pods")) == 2)
        assert cgroup_tree.populated(cgroup)
        api.pods = []
        api.too_old.set()
        await until(lambda: not cgroup.exists())
        await until(lambda: ("DELETE", "/api/v1/namespaces/b/pods/a") in api.calls)
    finally:
        node.cancel()
        await asyncio.gather(node, return_exceptions=True)


async def test_does_not_start_an_ended_pod_again(cgroup_subtree: Path, tmp_path: Path) -> None:
    place = Place(cgroup_tree.cgroup2_mount(), cgroup_subtree, tmp_path, "cgroupfs")
    pod: Json = {
        "metadata": {"name": "a", "namespace": "b", "uid": "0-1"},
        "spec": {"containers": [{"name": "c", "command": ["sleep", "600"]}]},
        "status": {"qosClass": "BestEffort", "phase": "Failed"},
    }
    api = ForgetfulApi([pod])
    node = asyncio.create_task(Node(api, place, {}, {}).run(tmp_path / "ready"))
    try:
        await until(lambda: ("GET", "/api/v1/pods") in api.calls)
        await asyncio.sleep(0.3)
        assert not place.pod_cgroup(pod).exists()
        assert not [path for method, path in api.calls if "namespaces/b" in path]
    finally:
        node.cancel()
        await asyncio.gather(node, return_exceptions=True)


async def until(holds: Callable[[], bool], timeout: float = 60.0) -> None:
    async with asyncio.timeout(timeout):
        while not holds():
            await asyncio.sleep(0.02)
