"""Real control planes for the tests of this layer."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests import preflight
from tests.kernel import charge_reading
from tests.kube import build
from tests.kube.cluster import Cluster
from tests.kube.control_plane import ControlPlane
from tests.kube.quotas import create_quota


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build missing programs before the first test: a build takes longer than a test's timeout."""
    if any(Path(__file__).parent in item.path.parents for item in session.items):
        with suppress(build.AssetsMissingError):
            build.assets()
        # The agents read the kernel's charge list if the reader can be built.
        if preflight._reader() is None:
            charge_reading.build()


@pytest.fixture(scope="session")
def assets() -> Path:
    """The programs of the control plane, built after the collection of the tests."""
    try:
        return build.assets()
    except build.AssetsMissingError as error:
        if os.environ.get("REQUIRE_LAYERS") == "1":
            pytest.fail(f"REQUIRE_LAYERS=1, and the cluster layer cannot run: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def helm(assets: Path) -> Path:
    """The real helm."""
    return assets / "helm"


@pytest.fixture(scope="session")
def control_plane(assets: Path) -> Iterator[ControlPlane]:
    """A control plane without the operator."""
    with ControlPlane(assets) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(assets: Path) -> Iterator[Cluster]:
    """Another control plane, with the operator. Each test makes its own nodes.

    The webhook's rules stay all the time. Without a quota the controller would remove the rules
    after a minute, and a pod created just after the next quota could bypass admission.
    """
    with Cluster(assets=assets) as running:
        running.control_plane.create_namespace("first")
        metadata = {"name": "first", "namespace": "first"}
        quota = {
            "apiVersion": "hugetlb.dev/v1alpha1",
            "kind": "HugeTLBQuota",
            "metadata": metadata,
            "spec": {"hard": {"hugepages-2Mi": "0"}},
        }
        create_quota(running.control_plane.api, quota)
        yield running


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace in the control plane without the operator."""
    yield from _namespace(control_plane)


@pytest.fixture
def cluster_namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace in the control plane with the operator."""
    yield from _namespace(cluster.control_plane)


@pytest.fixture
def node(control_plane: ControlPlane) -> Iterator[str]:
    """A ready Node in the control plane without the operator; nothing runs on it."""
    name = f"node-{uuid.uuid4().hex[:8]}"
    metadata = {"name": name, "labels": {"kubernetes.io/hostname": name}}
    created = control_plane.api.create(
        "v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
    )
    capacity = {"cpu": "8", "memory": "16Gi", "pods": "500", "hugepages-2Mi": "1Gi"}
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Test",
        "lastHeartbeatTime": created["metadata"]["creationTimestamp"],
        "lastTransitionTime": created["metadata"]["creationTimestamp"],
    }
    status = {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}
    control_plane.api.patch("v1/nodes", name, {"status": status}, subresource="status")
    yield name
    control_plane.api.delete("v1/nodes", name)


@pytest.fixture
def hugetlbfs(tmp_path: Path) -> Iterator[Path]:
    """A hugetlbfs of 2 MiB pages that every user may write to, as an administrator mounts it."""
    mount = tmp_path / "huge"
    mount.mkdir()
    options = ("-t", "hugetlbfs", "-o", "pagesize=2M,mode=1777")
    subprocess.run(("mount", *options, "test", str(mount)), check=True, timeout=30)
    yield mount
    subprocess.run(("umount", "--lazy", str(mount)), check=True, timeout=30)


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Names for cluster-scoped objects that no other test has."""
    return lambda stem: f"{stem}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def tenant_namespaces(
    control_plane: ControlPlane, unique: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    """The namespace TENANT, and the namespace DB with the label ``tenant=TENANT``."""
    top, below = unique("tenant"), unique("db")
    control_plane.create_namespace(top)
    control_plane.create_namespace(below, {"tenant": top})
    yield top, below
    for name in (below, top):
        control_plane.api.delete("v1/namespaces", name)


def _namespace(plane: ControlPlane) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:8]}"
    plane.create_namespace(name)
    yield name
    plane.api.delete("v1/namespaces", name)
