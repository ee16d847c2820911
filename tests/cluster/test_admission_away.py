"""No replica of admission runs. Changes that must not wait for admission succeed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.test_quota_moves import QUOTAS, run, used
from tests.kube.api import Api, ApiError, Object
from tests.kube.cluster import Cluster
from tests.kube.quotas import create_quota
from tests.waiting import eventually

PRIMARY = {"metadata": {"labels": {"role": "primary"}}}
GOVERNED, FREE = "governed", "free"


@pytest.fixture(scope="module")
def api(assets: Path) -> Iterator[Api]:
    """A cluster with a quota for primaries; then admission ends."""
    with Cluster(assets=assets) as running:
        api = running.control_plane.api
        for namespace in (GOVERNED, FREE):
            running.control_plane.create_namespace(namespace)
        spec = {
            "hard": {"hugepages-2Mi": "64Mi"},
            "podSelector": {"matchLabels": {"role": "primary"}},
        }
        quota: Object = {
            "apiVersion": "hugetlb.dev/v1alpha1",
            "kind": "HugeTLBQuota",
            "metadata": {"namespace": GOVERNED, "name": "primaries"},
            "spec": spec,
        }
        create_quota(api, quota)
        for namespace in (GOVERNED, FREE):
            run(api, namespace, "database", "32Mi", role="replica")
        running.admission.kill9()
        yield api


def test_the_api_server_creates_only_pods_without_huge_pages(api: Api) -> None:
    container = {"name": "main", "image": "none"}
    small: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": GOVERNED, "name": "small"},
        "spec": {"containers": [container]},
    }
    api.create("v1/pods", small)
    with pytest.raises(ApiError, match="failed calling webhook"):
        run(api, GOVERNED, "large", "2Mi")


def test_labels_change_and_the_count_follows(api: Api) -> None:
    """A database's failover must not wait, with a quota or without a quota."""
    for namespace in (FREE, GOVERNED):
        changed = api.patch("v1/pods", "database", PRIMARY, namespace=namespace)
        assert changed["metadata"]["labels"] == PRIMARY["metadata"]["labels"]
    eventually(lambda: used(api, GOVERNED) == {"primaries": "32Mi"})


def test_a_pod_ends_and_is_deleted(api: Api) -> None:
    over = {"status": {"phase": "Succeeded"}}
    api.patch("v1/pods", "database", over, namespace=FREE, subresource="status")
    api.delete("v1/pods", "database", namespace=FREE)
    assert "database" not in [
        each["metadata"]["name"] for each in api.list("v1/pods", namespace=FREE)
    ]


def test_only_the_spec_of_a_quota_waits(api: Api) -> None:
    mark = {"metadata": {"annotations": {"a": "b"}}}
    api.patch(QUOTAS, "primaries", mark, namespace=GOVERNED)
    raised = {"spec": {"hard": {"hugepages-2Mi": "128Mi"}}}
    with pytest.raises(ApiError, match="failed calling webhook"):
        api.patch(QUOTAS, "primaries", raised, namespace=GOVERNED)
