"""A delegate manages the quotas of one namespace, and can't escape the quota above."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.kube import chart
from tests.kube.api import Api, ApiError, Object
from tests.kube.cluster import Cluster
from tests.kube.quotas import quota_object
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
SIZE = "hugepages-2Mi"


@dataclass
class World:
    """A tenant's quota of 64Mi, and below it a quota of 32Mi in the delegate's namespace."""

    admin: Api
    delegate: Api
    tenant: str
    team: str

    def quota(self, name: str, hard: str, parent: Object | None, **spec: object) -> Object:
        more = {} if parent is None else {"parentRef": parent}
        return quota_object(self.team, name, {"hard": {SIZE: hard}, **more, **spec})

    def change(self, name: str, **spec: object) -> Object:
        return self.delegate.patch(QUOTAS, name, {"spec": spec}, namespace=self.team)

    @property
    def above(self) -> Object:
        return {"namespace": self.tenant, "name": "tenant"}

    @property
    def inside(self) -> Object:
        return {"namespace": self.team, "name": "team"}


@pytest.fixture
def world(cluster: Cluster, unique: Callable[[str], str]) -> Iterator[World]:
    plane = cluster.control_plane
    tenant, team, user = unique("tenant"), unique("team"), unique("delegate")
    plane.create_namespace(tenant)
    plane.create_namespace(team, {"tenant": tenant})
    delegate = plane.api_for(plane.user_kubeconfig(user))
    role = f"--clusterrole={chart.RELEASE}-delegate"
    plane.kubectl("create", "rolebinding", "delegate", role, f"--user={user}", "-n", team)
    made = World(plane.api, delegate, tenant, team)
    children = {"childNamespaces": {"matchLabels": {"tenant": tenant}}}
    top = made.quota("tenant", "64Mi", None, **children)
    top["metadata"]["namespace"] = tenant
    made.admin.create(QUOTAS, top)
    made.admin.create(QUOTAS, made.quota("team", "32Mi", made.above))
    _wait_for_the_right(delegate, team)
    yield made
    for namespace in (team, tenant):
        plane.api.delete("v1/namespaces", namespace)


def _wait_for_the_right(delegate: Api, namespace: str) -> None:
    def is_there() -> bool:
        try:
            delegate.list(QUOTAS, namespace=namespace)
        except ApiError:
            return False
        return True

    eventually(is_there)


def refused(world: World, why: str, **spec: object) -> None:
    with pytest.raises(ApiError, match=why):
        world.change("team", **spec)


def test_changes_limits_up_to_the_limit_above(world: World) -> None:
    world.change("team", hard={SIZE: "16Mi"})
    world.change("team", hard={SIZE: "64Mi"})
    refused(world, "is above the 64Mi of", hard={SIZE: "66Mi"})


def test_does_not_detach(world: World) -> None:
    refused(world, "you may not change the parent", parentRef=None)
    with pytest.raises(ApiError, match="you may not delete HugeTLBQuota"):
        world.delegate.delete(QUOTAS, "team", namespace=world.team)
    refused(world, "the podSelector", podSelector={"matchLabels": {"no": "pod"}})


def test_cannot_delete_a_quota_by_garbage_collection(world: World) -> None:
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "no-such"}
    with pytest.raises(ApiError, match="or the owners of"):
        world.delegate.patch(
            QUOTAS, "team", {"metadata": {"ownerReferences": [owner]}}, namespace=world.team
        )


def test_does_not_attach_elsewhere(world: World, unique: Callable[[str], str]) -> None:
    elsewhere = unique("elsewhere")
    other = world.quota("open", "1Gi", None, childNamespaces={})
    other["metadata"]["namespace"] = elsewhere
    world.admin.create(
        "v1/namespaces",
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": elsewhere}},
    )
    world.admin.create(QUOTAS, other)
    there = {"namespace": elsewhere, "name": "open"}
    refused(world, "you may not change the parent", parentRef=there)
    for parent in (there, world.above, None):
        with pytest.raises(ApiError, match="only below a quota of the same namespace"):
            world.delegate.create(QUOTAS, world.quota("mine", "2Mi", parent))
    world.admin.delete("v1/namespaces", elsewhere)


def test_manages_quotas_within_the_namespace(world: World) -> None:
    ci = world.quota("ci", "8Mi", world.inside, podSelector={"matchLabels": {"for": "ci"}})
    world.delegate.create(QUOTAS, ci)
    world.change("ci", hard={SIZE: "4Mi"}, podSelector={"matchLabels": {"for": "tests"}})
    with pytest.raises(ApiError, match="you may not change the parent"):
        world.change("ci", parentRef=world.above)
    world.delegate.delete(QUOTAS, "ci", namespace=world.team)


def test_does_not_forge_a_status(world: World) -> None:
    forged: Object = {"status": {"attachedTo": "", "observedGeneration": 99}}
    mine = world.delegate.get(QUOTAS, "team", namespace=world.team)
    with pytest.raises(ApiError, match="cannot update resource") as denied:
        world.delegate.replace(QUOTAS, mine | forged, subresource="status")
    assert denied.value.code == 403
    with pytest.raises(ApiError, match="cannot patch resource"):
        world.delegate.patch(QUOTAS, "team", forged, namespace=world.team, subresource="status")
    # A write of the object itself ignores the status.
    stored = world.delegate.patch(QUOTAS, "team", forged, namespace=world.team)
    assert stored.get("status", {}).get("observedGeneration") != 99


def test_does_not_change_the_limit_of_a_root(world: World) -> None:
    world.admin.create(QUOTAS, world.quota("root", "8Mi", None))
    with pytest.raises(ApiError, match="it is a root, and no quota above limits it"):
        world.change("root", hard={SIZE: "16Mi"})
    world.admin.patch(QUOTAS, "root", {"spec": {"hard": {SIZE: "16Mi"}}}, namespace=world.team)


def test_does_not_grant_the_right_to_attach(world: World, cluster: Cluster) -> None:
    """RBAC lets no user grant a right that the user lacks, also not the namespace's admin."""
    plane = cluster.control_plane
    username = world.delegate.create(
        "authentication.k8s.io/v1/selfsubjectreviews",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"},
    )["status"]["userInfo"]["username"]
    role = ("--clusterrole=admin", f"--user={username}", "-n", world.team)
    plane.kubectl("create", "rolebinding", "admin", *role)
    rule = {"apiGroups": ["hugetlb.dev"], "resources": ["hugetlbquotas"], "verbs": ["attach"]}
    grant = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "attach", "namespace": world.team},
        "rules": [rule],
    }

    def denied() -> str:
        with pytest.raises(ApiError) as refused:
            world.delegate.create("rbac.authorization.k8s.io/v1/roles", grant)
        return refused.value.message

    # Until the admin's role is in force, the admin may create no role at all.
    eventually(lambda: "attempting to grant RBAC permissions not currently held" in denied())
