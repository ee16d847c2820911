"""The plugin reads a cluster that refuses requests, or stops answering."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from hugetlb_quota.kube import errors, resources
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.plugin.cluster import Cluster
from hugetlb_quota.plugin.problem import Exit, Problem
from tests.unit.plugin.worlds import pod, quota

Json = dict[str, Any]


class Server:
    """Lists a quota and ``pods`` until its watch breaks; refuses to list what is in ``refuses``."""

    server = "https://test"

    def __init__(self, *, refuses: tuple[tuple[Resource, str | None], ...] = ()) -> None:
        self.refuses = refuses
        self.down = False
        self.pods: list[Json] = []
        self.answer: errors.ApiError | None = None

    async def list_page(self, resource: Resource, namespace: str | None = None, **_: Any) -> Json:
        if self.down:
            raise errors.ApiUnreachable("It does not answer.")
        if (resource, namespace) in self.refuses:
            raise errors.Forbidden(403, "Forbidden", f'cannot list resource "{resource.plural}"')
        raw = quota("a/b", "64Mi")
        raw["metadata"]["resourceVersion"] = "4"
        items = {resources.HUGETLB_QUOTAS: [raw], resources.PODS: self.pods}.get(resource, [])
        return {"items": items, "metadata": {"resourceVersion": "5"}}

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[Json]:
        self.down = True
        if self.down:
            raise errors.ApiUnreachable("It does not answer.")
        yield {}

    async def create(self, *_: Any, **__: Any) -> Json:
        if self.answer is not None:
            raise self.answer
        return {}


def cluster(server: Server) -> Cluster:
    return Cluster(cast(Connection, server), "a")


async def test_a_broken_watch_keeps_the_last_world() -> None:
    found = cluster(Server())
    async with contextlib.aclosing(found.watch()) as worlds:
        while not found.trouble:
            world = await anext(worlds)
        assert [str(key) for key in world.quotas] == ["a/b"]
    assert found.trouble == "It does not answer."


async def test_without_the_right_to_list_all_lists_the_namespace() -> None:
    found = cluster(Server(refuses=((resources.HUGETLB_QUOTAS, None),)))
    world = await found.world()
    assert [str(key) for key in world.quotas] == ["a/b"]
    assert len(found.unseen) == 1


async def test_the_world_says_which_pods_have_not_started() -> None:
    server = Server()
    server.pods = [pod("a/creating", "2Mi", phase="Pending"), pod("a/runs", "2Mi")]
    world = await cluster(server).world(pods=True)
    states = {each.pod: each.state for each in world.holders}
    assert states == {"a/creating": "starting", "a/runs": "running"}


async def test_without_any_right_names_the_role() -> None:
    both: tuple[tuple[Resource, str | None], ...] = (
        (resources.HUGETLB_QUOTAS, None),
        (resources.HUGETLB_QUOTAS, "a"),
    )
    with pytest.raises(Problem, match="hugetlb-quota-view") as refused:
        await cluster(Server(refuses=both)).world()
    assert refused.value.code == Exit.FORBIDDEN


@pytest.mark.parametrize(
    ("answer", "expected", "start"),
    [
        (None, True, ""),
        (
            errors.Forbidden(403, "Forbidden", 'User "x" cannot create resource "pods"'),
            *(None, "you may not create pods"),
        ),
        (
            errors.Forbidden(
                *(403, "Forbidden"),
                'admission webhook "pods.hugetlb.dev" denied the request: pod x asks for too much',
            ),
            *(False, "pod x asks for too much"),
        ),
        (errors.Forbidden(403, "Forbidden", "exceeded quota"), False, "exceeded quota"),
        (errors.ApiError(422, "Invalid", "no whole page"), False, "no whole page"),
        (errors.ApiUnreachable("Nobody answers."), None, "Nobody answers."),
    ],
)
async def test_the_verdict_of_a_dry_run(
    answer: errors.ApiError | None, expected: bool | None, start: str
) -> None:
    server = Server()
    server.answer = answer
    accepted, message = await cluster(server).try_pod({}, "a")
    assert accepted is expected
    assert message.startswith(start)
