"""kopf against a server: it watches only deleted quotas, and removes their finalizer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import kopf
import pytest
from aiohttp import web

from hugetlb_quota.api.quota import DELETED, FINALIZER
from hugetlb_quota.controller import deletion
from hugetlb_quota.kube.connection import Connection
from tests.unit.admission.fake_api import quota
from tests.unit.http_server import serve, write_kubeconfig

Json = dict[str, Any]
GROUP = "/apis/hugetlb.dev/v1alpha1"


def _group(name: str, version: str) -> Json:
    served = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "preferredVersion": served, "versions": [served]}


def _resources(*kinds: str) -> Json:
    return {
        "resources": [
            {
                "kind": kind,
                "name": f"{kind.lower()}s",
                "singularName": kind.lower(),
                "namespaced": kind in ("HugeTLBQuota", "Event"),
                "verbs": ["list", "watch", "patch"],
            }
            for kind in kinds
        ]
    }


#: The discovery documents that kopf reads: the kinds that it needs, and the kind of quotas.
DISCOVERY = {
    "/api": {"versions": ["v1"]},
    "/api/v1": _resources("Namespace", "Event"),
    "/apis": {"groups": [_group("hugetlb.dev", "v1alpha1"), _group("apiextensions.k8s.io", "v1")]},
    "/apis/apiextensions.k8s.io/v1": _resources("CustomResourceDefinition"),
    GROUP: _resources("HugeTLBQuota"),
}


class Server:
    """Discovery, one deleted and charged quota, and a record of kopf's requests."""

    def __init__(self) -> None:
        self.quota = quota(
            "db/leaf", {"hugepages-2Mi": "64Mi"}, pods={"hugepages-2Mi": "2Mi"}, terminating=True
        )
        self.quota["metadata"] |= {"uid": "u", "resourceVersion": "7", "labels": {DELETED: ""}}
        self.selectors: set[str | None] = set()
        self.patches: list[Any] = []
        self.changes: asyncio.Queue[Json] = asyncio.Queue()
        self.over = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.method == "PATCH":
            self._patch(json.loads(await request.read()))
            return web.json_response(self.quota)
        if "watch" in request.query:
            return await self._watch(request)
        return web.json_response(self._found(request))

    def _patch(self, patch: Any) -> None:
        """Store the annotations; kopf recognizes its own write by them."""
        self.patches.append(patch)
        metadata = self.quota["metadata"]
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        if isinstance(patch, dict):
            merged = metadata.get("annotations", {}) | patch["metadata"].get("annotations", {})
            metadata["annotations"] = {name: each for name, each in merged.items() if each}
        self.changes.put_nowait({"type": "MODIFIED", "object": self.quota})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse()
        await stream.prepare(request)
        while request.path == f"{GROUP}/hugetlbquotas":
            await stream.write(json.dumps(await self.changes.get()).encode() + b"\n")
        await self.over.wait()
        return stream

    def _found(self, request: web.Request) -> Json:
        listed: Json = {"metadata": {"resourceVersion": "7"}, "items": []}
        if request.path == f"{GROUP}/hugetlbquotas":
            self.selectors.add(request.query.get("labelSelector"))
            listed["items"] = [self.quota]
        found = {f"{GROUP}/namespaces/db/hugetlbquotas/leaf": self.quota, **DISCOVERY}
        return found.get(request.path, listed)


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    server = Server()
    runner = await serve(server.handle)
    write_kubeconfig(tmp_path / "kubeconfig", runner.addresses[0][1])
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    yield server
    server.over.set()
    await runner.cleanup()


async def test_kopf_keeps_a_deleted_quota_until_nothing_is_charged(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "RETRY_PERIOD", 0.05)
    stop = asyncio.Event()
    async with Connection.open() as connection, asyncio.timeout(60):
        running = asyncio.create_task(
            kopf.operator(
                registry=deletion.registry(connection),
                clusterwide=True,
                standalone=True,
                stop_flag=stop,
            )
        )
        while len(server.patches) < 2:  # the handler is called again
            await asyncio.sleep(0.01)
        assert not any(_removes_finalizer(each) for each in server.patches)
        server.quota["status"]["pods"] = {}
        while not any(_removes_finalizer(each) for each in server.patches):
            await asyncio.sleep(0.01)
        stop.set()
        server.over.set()
        await running
    assert server.selectors == {DELETED}


def _removes_finalizer(patch: Any) -> bool:
    """Whether a merge patch or a JSON patch removes a finalizer."""
    if isinstance(patch, dict):
        return FINALIZER not in patch.get("metadata", {}).get("finalizers", [FINALIZER])
    return any("finalizers" in each["path"] and each["op"] != "test" for each in patch)
