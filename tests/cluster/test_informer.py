"""The informer and the connection on a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from hugetlb_quota.kube import informer
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.informer import Informer
from hugetlb_quota.kube.pods import Pod, project_demanding_pod, project_pod
from hugetlb_quota.kube.resources import PODS
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane

Change = tuple[Pod | None, Pod | None, int]


def pod(name: str, huge: str | None = "2Mi") -> Object:
    resources = {"cpu": "1m", "memory": "1Mi"} | ({"hugepages-2Mi": huge} if huge else {})
    container = {"name": "main", "image": "none", "resources": {"limits": resources}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container]},
    }


@pytest.fixture
async def connection(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Connection]:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.admin_kubeconfig))
    async with Connection.open("hugetlb-quota-test") as connection:
        yield connection


@asynccontextmanager
async def running(watched: Informer[Pod]) -> AsyncIterator[list[Change]]:
    changes: list[Change] = []
    watched.on_change(lambda old, new, version: changes.append((old, new, version)))
    task = asyncio.create_task(watched.run())
    try:
        await asyncio.wait_for(watched.synced.wait(), 60)
        yield changes
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_follows_pods_from_creation_to_deletion(
    control_plane: ControlPlane, connection: Connection, namespace: str
) -> None:
    api = control_plane.api
    api.create("v1/pods", pod("before"), namespace=namespace)
    api.create("v1/pods", pod("small", huge=None), namespace=namespace)
    watched = Informer(connection, PODS, project_demanding_pod, namespace=namespace)
    async with running(watched) as changes:
        assert set(watched.store) == {(namespace, "before")}
        created = api.create("v1/pods", pod("after"), namespace=namespace)
        await until(lambda: (namespace, "after") in watched.store)
        api.delete("v1/pods", "after", namespace=namespace, grace_seconds=0)
        await until(lambda: (namespace, "after") not in watched.store)
        # The scheduler may have written to the other pod since.
        old, version = next(
            (old, version)
            for old, new, version in reversed(changes)
            if old is not None and old.name == "after" and new is None
        )
        assert old.uid == created["metadata"]["uid"]
        # The version is later than all events of the pod: a report with it has seen the end.
        assert version > old.resource_version
        assert watched.resource_version >= version


async def test_a_field_selector_shows_only_the_pods_of_one_node(
    control_plane: ControlPlane, connection: Connection, namespace: str, node: str
) -> None:
    api = control_plane.api
    unbound = pod("unbound", huge=None)
    unbound["spec"]["nodeSelector"] = {"no": "node"}
    api.create("v1/pods", unbound, namespace=namespace)
    bound = pod("bound", huge=None)
    bound["spec"]["nodeName"] = node
    watched = Informer(connection, PODS, project_pod, field_selector=f"spec.nodeName={node}")
    async with running(watched):
        api.create("v1/pods", bound, namespace=namespace)
        await until(lambda: (namespace, "bound") in watched.store)
        assert set(watched.store) == {(namespace, "bound")}


async def test_notices_pods_that_were_deleted_while_the_watch_was_away(
    control_plane: ControlPlane,
    connection: Connection,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(informer, "PAGE", 2)  # more than one page
    api = control_plane.api
    for index in range(5):
        api.create("v1/pods", pod(f"p{index}"), namespace=namespace)
    watched = Informer(connection, PODS, project_demanding_pod, namespace=namespace)
    async with running(watched):
        assert len(watched.store) == 5
    api.delete("v1/pods", "p1", namespace=namespace, grace_seconds=0)
    api.delete("v1/pods", "p3", namespace=namespace, grace_seconds=0)
    made_anew = api.create("v1/pods", pod("p3"), namespace=namespace)
    watched._position = ""  # the same as after a 410
    async with running(watched) as changes:
        # The scheduler may have written to the other pods meanwhile: these changes are events too.
        await until(lambda: any(old is None for old, _, _ in changes))
        gone = {old.name for old, new, _ in changes if old is not None and new is None}
        assert gone == {"p1", "p3"}
        made = {new.uid for old, new, _ in changes if old is None and new is not None}
        assert made == {made_anew["metadata"]["uid"]}
        assert len(watched.store) == 4
