"""Reservations of pods that were never stored, while the controller is killed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.reservation import Reservation, parse
from hugetlb_quota.page_size import PageSize
from tests.chaos import load
from tests.chaos.observer import PAGES
from tests.kube.api import Api, ApiError
from tests.kube.cluster import Cluster
from tests.kube.quotas import QUOTAS, create_quota, quota_object
from tests.kube.reservations import pending
from tests.waiting import eventually

NAMESPACE = "phantoms"
CHARGE = Charge({PageSize(2 * 1024**2): 2 * 1024**2})


@pytest.fixture(scope="module")
def own_cluster(assets: Path) -> Iterator[Cluster]:
    with Cluster(assets=assets) as running:
        yield running


def reservations(api: Api) -> dict[str, Reservation]:
    """The reservations of the quota, by pod."""
    lines = pending(api.get(QUOTAS, "team", namespace=NAMESPACE)["status"])
    return {each.pod: each for each in map(parse, lines)}


@pytest.mark.timeout(400)
def test_a_controller_that_was_killed_lengthens_no_reservation(own_cluster: Cluster) -> None:
    api = own_cluster.control_plane.api
    own_cluster.control_plane.create_namespace(NAMESPACE)
    create_quota(api, quota_object(NAMESPACE, "team", {"hard": {PAGES: "64Mi"}}))
    # The API server checks ResourceQuotas after it has called admission.
    native = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"namespace": NAMESPACE, "name": "native"},
        "spec": {"hard": {"pods": "0"}},
    }
    api.create("v1/resourcequotas", native)
    for name in ("a", "b", "c"):
        with pytest.raises(ApiError, match="quota: native"):
            api.create("v1/pods", load.pod(name, "x", 2), namespace=NAMESPACE)
    phantoms = {f"{NAMESPACE}/{name}" for name in ("a", "b", "c")}
    assert reservations(api).keys() == phantoms
    own_cluster.controller.kill9()
    # No controller leads, and the lives end nevertheless.
    eventually(lambda: all(each.is_over for each in reservations(api).values()), timeout=150)
    assert reservations(api).keys() == phantoms

    # Only the next controller watches the next reservation, from the controller's start on.
    own_cluster.admission.kill9()
    other = Reservation(
        "other", f"{NAMESPACE}/other", CHARGE, datetime.now(UTC) - timedelta(hours=1), "request"
    )
    held = api.get(QUOTAS, "team", namespace=NAMESPACE)
    held["status"]["reservations"].append(other.line)
    api.replace(QUOTAS, held, subresource="status")
    own_cluster.programs.start_controller()
    eventually(lambda: phantoms.isdisjoint(reservations(api)), timeout=150)
    assert other.pod in reservations(api)
