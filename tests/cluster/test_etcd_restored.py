"""An administrator restores etcd from a backup: no program hangs or trusts the lost history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.test_quota_moves import QUOTAS, is_counted, make, quota, run, used
from tests.kube.api import ApiError
from tests.kube.cluster import Cluster
from tests.waiting import eventually

LOST_WRITES = 1000


@pytest.fixture
def restored(assets: Path) -> Iterator[Cluster]:
    """A control plane for this test alone."""
    with Cluster(assets=assets) as running:
        yield running


# A reservation of the lost history may last 100 s.
@pytest.mark.timeout(420)
def test_admission_and_count_continue_from_the_restored_state(restored: Cluster) -> None:
    plane, namespace = restored.control_plane, "restored"
    api = plane.api
    plane.create_namespace(namespace)
    make(api, namespace, "root", "128Mi")
    make(api, namespace, "leaf", "128Mi", parent="root")
    run(api, namespace, "kept", "64Mi")
    eventually(lambda: used(api, namespace) == {"root": "64Mi", "leaf": "64Mi"})
    eventually(lambda: is_counted(api, namespace))
    backup = plane.back_up()

    # Write many revisions: the new history must not reach the resourceVersions that the programs
    # have seen of pods and quotas. Otherwise no program can detect the lost history.
    for number in range(LOST_WRITES):
        mark = {"metadata": {"annotations": {"number": str(number)}}}
        api.patch(QUOTAS, "root", mark, namespace=namespace)
    run(api, namespace, "lost", "64Mi")
    eventually(lambda: used(api, namespace) == {"root": "128Mi", "leaf": "128Mi"})
    plane.restore(backup)

    # Create this quota before any program watches again.
    api.create(QUOTAS, quota(namespace, "new", "0", parent="root"))

    def refused() -> bool:
        try:
            run(api, namespace, "too-much", "2Mi")
        except ApiError as error:
            # The quota is not counted yet, or the API server has just started.
            return f"HugeTLBQuota {namespace}/new has no room" in error.message
        raise AssertionError("Admission missed a quota that was made after the restore.")

    # Each request writes reservations, and the new history must stay short.
    eventually(refused, timeout=60, every=1)
    raised = {"spec": {"hard": {"hugepages-2Mi": "128Mi"}}}
    api.patch(QUOTAS, "new", raised, namespace=namespace)
    after = {"root": "64Mi", "leaf": "64Mi", "new": "64Mi"}

    eventually(lambda: used(api, namespace) == after and is_counted(api, namespace), timeout=240)

    def admitted() -> bool:
        try:
            run(api, namespace, "more", "64Mi")
        except ApiError:
            return False
        return True

    eventually(admitted, timeout=60)
    with pytest.raises(ApiError, match="has no room"):
        run(api, namespace, "beyond", "2Mi")
