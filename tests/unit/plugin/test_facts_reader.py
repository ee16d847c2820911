"""``check`` and ``uninstall`` read all that the user may read, and note the rest with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from hugetlb_quota.kube import errors, resources
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.controller_lease import LEASE
from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.plugin import facts_reader
from hugetlb_quota.plugin.cluster import Cluster
from hugetlb_quota.plugin.facts import CRDS
from tests.unit.plugin.check_facts import webhooks
from tests.unit.plugin.worlds import quota, report

Json = dict[str, Any]


class Server:
    """Lists ``objects`` by kind; refuses the kinds in ``refuses``; answers nothing if ``down``."""

    server = "https://test"

    def __init__(
        self,
        objects: Mapping[Resource, list[Json]] | None = None,
        *,
        refuses: tuple[Resource, ...] = (),
    ) -> None:
        self.objects = dict(objects or {})
        self.refuses = refuses
        self.down = False
        self.selectors: dict[str, str | None] = {}

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        **_: Any,
    ) -> Json:
        self._check(resource)
        self.selectors[resource.plural] = label_selector
        items = [
            each
            for each in self.objects.get(resource, ())
            if namespace in (None, each["metadata"].get("namespace"))
        ]
        return {"items": items, "metadata": {}}

    async def get(self, resource: Resource, name: str, *_: Any, **__: Any) -> Json:
        self._check(resource)
        for each in self.objects.get(resource, ()):
            if each["metadata"]["name"] == name:
                return each
        raise errors.NotFound(404, "NotFound", "no such object")

    def _check(self, resource: Resource) -> None:
        if self.down:
            raise errors.ApiUnreachable("It does not answer.")
        if resource in self.refuses:
            denied = f'User "x" cannot list resource "{resource.plural}" in API group ""'
            raise errors.Forbidden(403, "Forbidden", denied)


def cluster(server: Server) -> Cluster:
    return Cluster(cast(Connection, server), "a")


def named(name: str, namespace: str = "", **others: Any) -> Json:
    return {"metadata": {"name": name, "namespace": namespace, **others}}


def workload(component: str, *command: str) -> Json:
    containers = [{"name": "c", "command": list(command)}]
    return {
        **named(component, "system", labels={"app.kubernetes.io/component": component}),
        "spec": {"template": {"spec": {"containers": containers}}},
    }


def configuration(name: str = "hooks") -> Json:
    return {**named(name), **webhooks()[0]}


SLICES = [
    {
        **named("slice-1", "hugetlb-system"),
        "endpoints": [{"conditions": {"ready": True}}, {"conditions": {"ready": False}}],
    },
    {**named("slice-2", "hugetlb-system"), "endpoints": [{}]},
    {**named("slice-3", "hugetlb-system"), "endpoints": None},
]
WHOLE: dict[Resource, list[Json]] = {
    resources.CRDS: [named(CRDS[0]), named("others.example.com")],
    resources.WEBHOOK_CONFIGURATIONS: [configuration(), {**named("other"), "webhooks": None}],
    resources.DEPLOYMENTS: [
        workload("admission", "python", "-m", "hugetlb_quota.admission"),
        workload("controller", "python", "-m", "other.controller"),
    ],
    resources.DAEMON_SETS: [workload("agent", "/usr/bin/hugetlb-quota-agent")],
    resources.LEASES: [named(LEASE, "system"), named("other", "system")],
    resources.NODES: [named("n1")],
    resources.HUGETLB_NODES: [report("n1")],
    resources.HUGETLB_QUOTAS: [quota("a/b", "64Mi")],
    resources.ENDPOINT_SLICES: SLICES,
}


async def test_reads_the_objects_of_hugetlb_quota_and_no_others() -> None:
    facts = await facts_reader.read(cluster(Server(WHOLE)))
    assert facts.crds is not None
    assert facts.webhooks is not None
    assert facts.workloads is not None
    assert facts.leases is not None
    assert facts.quotas is not None
    assert list(facts.crds) == [CRDS[0]]
    assert [each["metadata"]["name"] for each in facts.webhooks] == ["hooks"]
    assert {name: len(each) for name, each in facts.workloads.items()} == {
        "admission": 1,
        "controller": 0,  # the Deployment with this label runs another program
        "agent": 1,
    }
    assert [each["metadata"]["name"] for each in facts.leases] == [LEASE]
    assert [str(each.key) for each in facts.quotas] == ["a/b"]
    assert (facts.unread, facts.partly) == ({}, ())


async def test_an_endpoint_without_a_condition_is_ready() -> None:
    server = Server(WHOLE)
    facts = await facts_reader.read(cluster(server))
    assert facts.endpoints == {"hugetlb-system/admission": 2}
    selector = server.selectors[resources.ENDPOINT_SLICES.plural]
    assert selector == "kubernetes.io/service-name=admission"


@pytest.mark.parametrize(
    ("refused", "topics", "why"),
    [
        (resources.CRDS, {"CRDs"}, "you may not list customresourcedefinitions"),
        (resources.DEPLOYMENTS, {"programs", "versions"}, "you may not list deployments"),
        (resources.LEASES, {"leader"}, "you may not list leases"),
        (resources.HUGETLB_NODES, {"nodes"}, "you may not list hugetlbnodes"),
        (resources.ENDPOINT_SLICES, {"endpoints"}, "you may not list endpointslices"),
    ],
)
async def test_a_part_that_may_not_be_read_is_noted_with_the_right_that_is_missing(
    refused: Resource, topics: set[str], why: str
) -> None:
    facts = await facts_reader.read(cluster(Server(WHOLE, refuses=(refused,))))
    assert facts.unread == dict.fromkeys(topics, why)


async def test_quotas_that_may_not_be_listed_are_noted_without_the_advice() -> None:
    facts = await facts_reader.read(cluster(Server(WHOLE, refuses=(resources.HUGETLB_QUOTAS,))))
    assert facts.quotas is None
    assert facts.unread["quotas"].endswith("nor in a")


async def test_a_cluster_that_does_not_answer_is_no_missing_right() -> None:
    server = Server(WHOLE)
    server.down = True
    with pytest.raises(errors.ApiUnreachable):
        await facts_reader.read(cluster(server))


async def test_uninstall_reads_what_is_left() -> None:
    ending = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    namespaces = [named("a", **ending), named("empty", **ending), named("stays")]
    quotas = [quota("a/b", "64Mi"), quota("stays/c", "64Mi")]
    server = Server({**WHOLE, resources.NAMESPACES: namespaces, resources.HUGETLB_QUOTAS: quotas})
    left = await facts_reader.read_left(cluster(server), None)
    assert [each["metadata"]["name"] for each in left.quotas] == ["b", "c"]
    assert left.namespaces == ["a"]
    assert (left.crds, left.webhooks) == ([CRDS[0]], ["hooks"])
    elsewhere = await facts_reader.read_left(cluster(server), "stays")
    assert (elsewhere.quotas, elsewhere.namespaces) == (quotas[1:], [])


async def test_without_the_crd_uninstall_lists_no_quotas() -> None:
    refuses = (resources.HUGETLB_QUOTAS,)
    left = await facts_reader.read_left(cluster(Server(refuses=refuses)), None)
    assert (left.quotas, left.crds) == ([], [])


async def test_a_missing_right_ends_uninstall() -> None:
    with pytest.raises(errors.Forbidden):
        await facts_reader.read_left(cluster(Server(refuses=(resources.NAMESPACES,))), None)
