"""NodeObject creates the HugeTLBNode, and replaces no status of another program."""

from __future__ import annotations

from typing import Any

import pytest

from hugetlb_quota.agent.node_object import NodeObject
from hugetlb_quota.kube.errors import Conflict, NotFound
from hugetlb_quota.kube.resources import Resource
from tests.unit.agent.fake_api import FakeApi

Json = dict[str, Any]
FIRST: Json = {"reportedAt": "T1"}
SECOND: Json = {"reportedAt": "T2"}


@pytest.fixture
def api() -> FakeApi:
    """An API server with a Node and no HugeTLBNode."""
    return FakeApi()


@pytest.fixture
def node(api: FakeApi) -> NodeObject:
    return NodeObject(api, "n")


async def test_a_missing_object_has_no_last_status(node: NodeObject) -> None:
    assert await node.last_status() is None


async def test_reads_the_status_of_the_last_agent(api: FakeApi, node: NodeObject) -> None:
    api.remember(bootID="boot")
    assert await node.last_status() == {"bootID": "boot"}


@pytest.mark.parametrize("status", [None, "damaged", []])
async def test_a_missing_or_damaged_status_is_empty(
    api: FakeApi, node: NodeObject, status: object
) -> None:
    api.remember()
    assert api.report is not None
    api.report["status"] = status
    assert await node.last_status() == {}


async def test_writes_into_the_object_of_the_last_agent(api: FakeApi, node: NodeObject) -> None:
    api.remember(reportedAt="T0")
    await node.last_status()
    await node.write(FIRST)
    assert api.status == FIRST
    assert api.calls == ["get hugetlbnodes", "replace hugetlbnodes"]


async def test_creates_a_missing_object_owned_by_its_node(api: FakeApi, node: NodeObject) -> None:
    await node.write(FIRST)
    assert api.report is not None
    assert api.report["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "node-uid"}
    ]
    assert (api.report["kind"], api.report["apiVersion"], api.status) == (
        "HugeTLBNode",
        "hugetlb.dev/v1alpha1",
        FIRST,
    )


async def test_later_writes_need_no_read(api: FakeApi, node: NodeObject) -> None:
    await node.write(FIRST)
    api.calls.clear()
    await node.write(SECOND)
    assert (api.calls, api.status) == (["replace hugetlbnodes"], SECOND)


async def test_creates_no_object_without_a_node(api: FakeApi, node: NodeObject) -> None:
    api.node = None
    with pytest.raises(NotFound):
        await node.write(FIRST)
    assert api.report is None


async def test_uses_an_object_that_another_program_created_first(
    api: FakeApi, node: NodeObject
) -> None:
    api.remember(reportedAt="T0")
    await node.write(FIRST)
    assert api.calls[1:] == ["create hugetlbnodes", "get hugetlbnodes", "replace hugetlbnodes"]
    assert api.status == FIRST


async def test_writes_the_status_all_the_same_if_only_the_spec_changed(
    api: FakeApi, node: NodeObject
) -> None:
    await node.write(FIRST)
    api.wish()
    await node.write(SECOND)
    assert api.report is not None
    assert (api.status, api.report["spec"]) == (SECOND, {"reclaim": []})


async def test_does_not_replace_the_status_of_another_program(
    api: FakeApi, node: NodeObject
) -> None:
    await node.write(FIRST)
    api.touch()
    with pytest.raises(Conflict):
        await node.write(SECOND)
    assert api.status == {"reportedAt": "by another"}
    # The next call reads the object again.
    await node.write(SECOND)
    assert api.status == SECOND


@pytest.mark.parametrize("status", [{"reportedAt": "T0"}, {}], ids=["with time", "without time"])
async def test_does_not_replace_a_status_written_after_the_last_status_was_read(
    api: FakeApi, node: NodeObject, status: Json
) -> None:
    api.remember(**status)
    await node.last_status()
    api.wish()
    with pytest.raises(Conflict):
        await node.write(FIRST)
    assert api.status == status


async def test_creates_a_deleted_object_again_for_the_present_node(
    api: FakeApi, node: NodeObject
) -> None:
    await node.write(FIRST)
    api.report, api.node = None, {"metadata": {"name": "n", "uid": "new-uid"}}
    with pytest.raises(NotFound):
        await node.write(SECOND)
    await node.write(SECOND)
    assert api.report is not None
    assert api.report["metadata"]["ownerReferences"][0]["uid"] == "new-uid"
    assert api.status == SECOND


async def test_a_spec_that_changes_twice_is_a_conflict() -> None:
    class Busy(FakeApi):
        """The controller writes the spec before each write of the status."""

        async def replace(
            self, resource: Resource, name: str, body: Json, *, subresource: str | None = None
        ) -> Json:
            if self.writes:
                self.wish()
            return await super().replace(resource, name, body, subresource=subresource)

    api = Busy()
    node = NodeObject(api, "n")
    await node.write(FIRST)
    with pytest.raises(Conflict):
        await node.write(SECOND)
    assert api.status == FIRST
