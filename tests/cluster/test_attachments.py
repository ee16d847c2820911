"""A charge through a link stays when the parent no longer allows the link."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.cluster.test_quota_moves import QUOTAS, run
from tests.kube.api import Api, ApiError, Object
from tests.kube.cluster import Cluster
from tests.kube.quotas import create_quota, quota_object
from tests.kube.reservations import pending
from tests.waiting import eventually


@pytest.fixture
def api(cluster: Cluster) -> Api:
    return cluster.control_plane.api


@pytest.fixture
def spaces(cluster: Cluster, unique: Callable[[str], str]) -> Iterator[tuple[str, str, str]]:
    """TOP has root with 128Mi. FIRST and SECOND have mid below root; FIRST has leaf below mid."""
    plane = cluster.control_plane
    top, first, second = unique("top"), unique("first"), unique("second")
    plane.create_namespace(top)
    children = {"matchLabels": {"tenant": top}}
    make(plane.api, top, "root", children=children)
    for below in (first, second):
        plane.create_namespace(below, {"tenant": top})
        make(plane.api, below, "mid", parent=(top, "root"))
    make(plane.api, first, "leaf", parent=(first, "mid"))
    yield top, first, second
    for name in (first, second, top):
        if plane.api.list("v1/namespaces", fields=f"metadata.name={name}"):
            plane.api.delete("v1/namespaces", name)


def make(
    api: Api,
    namespace: str,
    name: str,
    *,
    parent: tuple[str, str] | None = None,
    children: Object | None = None,
) -> None:
    spec: Object = {"hard": {"hugepages-2Mi": "128Mi"}}
    if parent is not None:
        spec["parentRef"] = {"namespace": parent[0], "name": parent[1]}
    if children is not None:
        spec["childNamespaces"] = children
    body = quota_object(namespace, name, spec)
    create_quota(api, body)


def status(api: Api, namespace: str, name: str) -> Object:
    found: Object = api.get(QUOTAS, name, namespace=namespace).get("status") or {}
    return found


def counted(api: Api, namespace: str, name: str) -> str:
    found = status(api, namespace, name)
    return str(found.get("pods", {}).get("hugepages-2Mi")) if not pending(found) else ""


def ready(api: Api, namespace: str, name: str) -> str:
    for each in status(api, namespace, name).get("conditions", ()):
        if each["type"] == "Ready":
            return str(each["reason"])
    return ""


def by_label(api: Api, top: str, below: str, on: bool) -> None:
    api.patch("v1/namespaces", below, {"metadata": {"labels": {"tenant": top if on else None}}})


def by_selector(api: Api, top: str, below: str, on: bool) -> None:
    tenant = top if on else "nobody"
    change = {"spec": {"childNamespaces": {"matchLabels": {"tenant": tenant}}}}
    api.patch(QUOTAS, "root", change, namespace=top)


@pytest.mark.parametrize("flap", [by_label, by_selector])
def test_a_flapping_link_loses_no_charge_and_admits_no_pod(
    api: Api,
    spaces: tuple[str, str, str],
    flap: Callable[[Api, str, str, bool], None],
) -> None:
    top, first, second = spaces
    run(api, first, "a", "128Mi")
    eventually(lambda: counted(api, top, "root") == "128Mi")
    eventually(lambda: status(api, first, "mid").get("attachedTo") == f"{top}/root")

    flap(api, top, first, False)
    eventually(lambda: ready(api, first, "leaf") == "ForeignParent")
    if flap is by_selector:
        eventually(lambda: ready(api, second, "mid") == "ForeignParent")
    assert status(api, top, "root")["used"] == {"hugepages-2Mi": "128Mi"}
    with pytest.raises(ApiError, match=r"has no room|does not let quotas"):
        run(api, second, "b", "2Mi")
    with pytest.raises(ApiError, match=f"{top}/root does not let quotas of namespace {first}"):
        run(api, first, "c", "2Mi")

    # The link ends with the last charge.
    api.delete("v1/pods", "a", namespace=first)
    eventually(lambda: counted(api, top, "root") == "0")
    eventually(lambda: status(api, first, "mid").get("attachedTo") == "")
    flap(api, top, first, True)
    eventually(lambda: ready(api, first, "leaf") == "Attached")
    run(api, first, "d", "128Mi")
    assert status(api, top, "root")["used"] == {"hugepages-2Mi": "128Mi"}


def test_a_parents_namespace_is_deleted_when_the_pods_below_are_gone(
    api: Api, spaces: tuple[str, str, str]
) -> None:
    top, first, second = spaces
    run(api, first, "a", "2Mi")
    eventually(lambda: counted(api, top, "root") == "2Mi")
    api.delete("v1/namespaces", top)
    eventually(lambda: ready(api, first, "leaf") == "Terminating", timeout=60)
    for below in (first, second):
        with pytest.raises(ApiError, match=f"HugeTLBQuota {top}/root is being deleted"):
            run(api, below, "b", "2Mi")
    assert status(api, top, "root")["used"] == {"hugepages-2Mi": "2Mi"}
    api.delete("v1/pods", "a", namespace=first)

    def gone() -> bool:
        return not api.list("v1/namespaces", fields=f"metadata.name={top}")

    eventually(gone, timeout=60)
    assert ready(api, first, "leaf") in ("Terminating", "ParentNotFound")
