"""Resource: the path of a collection, an object and a subresource in the API."""

from __future__ import annotations

import pytest

from hugetlb_quota.kube.resources import (
    DEPLOYMENTS,
    HUGETLB_NODES,
    HUGETLB_QUOTAS,
    NAMESPACES,
    PODS,
    Resource,
)


@pytest.mark.parametrize(
    ("resource", "path"),
    [
        (PODS, "/api/v1/pods"),
        (NAMESPACES, "/api/v1/namespaces"),
        (DEPLOYMENTS, "/apis/apps/v1/deployments"),
        (HUGETLB_QUOTAS, "/apis/hugetlb.dev/v1alpha1/hugetlbquotas"),
    ],
    ids=str,
)
def test_the_collection_of_the_whole_cluster(resource: Resource, path: str) -> None:
    assert resource.path() == path


def test_the_collection_of_a_namespace() -> None:
    assert PODS.path("db") == "/api/v1/namespaces/db/pods"


def test_an_object_in_a_namespace_and_its_subresource() -> None:
    path = "/apis/hugetlb.dev/v1alpha1/namespaces/db/hugetlbquotas/leaf"
    assert HUGETLB_QUOTAS.path("db", "leaf") == path
    assert HUGETLB_QUOTAS.path("db", "leaf", "status") == f"{path}/status"


def test_an_object_of_the_cluster_has_no_namespace_in_its_path() -> None:
    path = "/apis/hugetlb.dev/v1alpha1/hugetlbnodes/n"
    assert HUGETLB_NODES.path(name="n") == HUGETLB_NODES.path("db", "n") == path


def test_a_name_cannot_lead_to_another_path() -> None:
    assert PODS.path("a/b", "../c?d#e") == "/api/v1/namespaces/a%2Fb/pods/..%2Fc%3Fd%23e"


def test_is_printed_as_kubectl_names_a_kind() -> None:
    assert (str(PODS), str(HUGETLB_QUOTAS)) == ("pods", "hugetlbquotas.hugetlb.dev")
