"""A cluster for the plugin's tests: a tenant's quotas, pods and reports, without a controller.

The module writes the statuses like controller and agents, so every number is fixed. Admission is
real, and answers dry runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from tests.kube import chart as charts
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Programs
from tests.kube.quotas import quota_object

QUOTAS: Final = "hugetlb.dev/v1alpha1/hugetlbquotas"
NODES: Final = "hugetlb.dev/v1alpha1/hugetlbnodes"
SIZE: Final = "hugepages-2Mi"
#: The file of the gone pod old. acme/tenant has 64Mi for each of db-0 and web-0, 32Mi that old left
#: in this file, and 16Mi reserved for new.
FILE: Final = "/mnt/huge/segment"
OLD_UID: Final = "11111111-2222-3333-4444-555555555555"
NEW_UID: Final = "66666666-7777-8888-9999-000000000000"


def fill(plane: ControlPlane, chart: charts.Chart) -> None:
    """Make everything except the webhooks: admission would add reservations for these pods."""
    charts.install(plane, chart)
    for name, labels in (("acme", {}), ("acme-db", ACME), ("acme-web", ACME), ("lab", {})):
        plane.create_namespace(name, labels)
    _make_node(plane, "n1", pages="1Gi")
    _make_node(plane, "n2", pages="512Mi")
    db = _make_pod(plane, "acme-db", "db-0", "64Mi", node="n1")
    _make_pod(plane, "acme-web", "web-0", "64Mi")
    _make_quotas(plane)
    _report(plane, "n1", [_live(db, "64Mi", "32Mi"), _gone()])
    _report(plane, "n2", [], ready=False)


def serve(plane: ControlPlane, chart: charts.Chart) -> Programs:
    """Start admission, and let the API server call it."""
    programs = Programs(plane, chart)
    admission = programs.start_admission()
    admission.wait_ready()
    charts.register_webhooks(plane, chart, admission.address)
    return programs


ACME: Final = {"tenant": "acme"}


def a_pod(
    name: str, request: str, *, namespace: str | None = None, node: str | None = None
) -> Object:
    """A pod with one container; ``request``: its 2 MiB pages."""
    resources = {"limits": {SIZE: request, "memory": "64Mi", "cpu": "10m"}}
    metadata = {"name": name} | ({} if namespace is None else {"namespace": namespace})
    spec: Object = {"containers": [{"name": "c", "image": "none", "resources": resources}]}
    if node is None:
        spec["nodeSelector"] = {"no": "node"}
    else:
        spec["nodeName"] = node
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _make_pod(
    plane: ControlPlane, namespace: str, name: str, request: str, node: str | None = None
) -> Object:
    return plane.api.create("v1/pods", a_pod(name, request, namespace=namespace, node=node))


def _make_node(plane: ControlPlane, name: str, *, pages: str) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    created = plane.api.create("v1/nodes", node)
    now = created["metadata"]["creationTimestamp"]
    ready = {"type": "Ready", "status": "True", "reason": "Test"}
    ready |= {"lastHeartbeatTime": now, "lastTransitionTime": now}
    capacity = {"cpu": "8", "memory": "16Gi", "pods": "500", SIZE: pages}
    status = {
        "capacity": capacity,
        "allocatable": capacity,
        "conditions": [ready],
        "nodeInfo": _info(f"boot-of-{name}"),
    }
    plane.api.patch("v1/nodes", name, {"status": status}, subresource="status")


def _info(boot: str) -> Object:
    names = "machineID systemUUID kernelVersion osImage containerRuntimeVersion kubeletVersion"
    names += " kubeProxyVersion operatingSystem architecture"
    return {**dict.fromkeys(names.split(), "test"), "bootID": boot}


def _make_quotas(plane: ControlPlane) -> None:
    tenant = {"namespace": "acme", "name": "tenant"}
    _make_quota(
        *(plane, "acme", "tenant"),
        {"hard": {SIZE: "224Mi", "hugepages-1Gi": "4Gi"}, "childNamespaces": {"matchLabels": ACME}},
        {"pods": {SIZE: "128Mi"}, "retained": {SIZE: "32Mi"}, "reservations": [_new()]},
    )
    _make_quota(
        *(plane, "acme-db", "db"),
        {"hard": {SIZE: "128Mi"}, "parentRef": tenant},
        {"pods": {SIZE: "64Mi"}},
    )
    _make_quota(
        *(plane, "acme-web", "web"),
        {"hard": {SIZE: "192Mi"}, "parentRef": tenant},
        {"pods": {SIZE: "64Mi"}, "retained": {SIZE: "32Mi"}, "reservations": [_new()]},
    )
    _make_quota(
        *(plane, "lab", "lost"),
        {"hard": {SIZE: "64Mi"}, "parentRef": {"namespace": "lab", "name": "nowhere"}},
        {},
        reason="ParentNotFound",
    )


def _make_quota(
    plane: ControlPlane,
    namespace: str,
    name: str,
    spec: Object,
    status: Object,
    reason: str = "",
) -> None:
    ready = _condition("Ready", reason or "Attached", good=not reason)
    created = plane.api.create(
        QUOTAS,
        quota_object(namespace, name, spec),
    )
    stored = {**status, "observedGeneration": 1, "conditions": [ready]}
    plane.api.replace(QUOTAS, created | {"status": stored}, subresource="status")


def _report(plane: ControlPlane, name: str, pods: list[Object], *, ready: bool = True) -> None:
    now = datetime.now(UTC)
    created = plane.api.create(
        NODES,
        {"apiVersion": "hugetlb.dev/v1alpha1", "kind": "HugeTLBNode", "metadata": {"name": name}},
    )
    file = {
        "path": "segment",
        "mount": "/mnt/huge",
        "volume": "huge",
        "pageSize": SIZE,
        "charged": "32Mi",
        "uid": OLD_UID,
        "since": _text(now - timedelta(hours=3)),
    }
    pool = {"pageSize": SIZE, "total": 512, "free": 480, "reserved": 16, "surplus": 0}
    status = {
        "bootID": f"boot-of-{name}",
        "podsResourceVersion": created["metadata"]["resourceVersion"],
        "reportedAt": _text(now + timedelta(minutes=10)),
        "pools": [pool],
        "pods": pods,
        "files": [file] if pods else [],
        "conditions": [_condition("Ready", "Reading" if ready else "NoCgroup2", good=ready)],
    }
    plane.api.replace(NODES, created | {"status": status}, subresource="status")


def _live(pod: Mapping[str, Object], demand: str, charged: str) -> Object:
    metadata = pod["metadata"]
    return {
        "uid": metadata["uid"],
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "live": True,
        "demand": {SIZE: demand},
        "charged": {SIZE: charged},
    }


def _gone() -> Object:
    return {
        "uid": OLD_UID,
        "namespace": "acme-web",
        "name": "old",
        "live": False,
        "charged": {SIZE: "32Mi"},
        "endedAt": _text(datetime.now(UTC) - timedelta(hours=2)),
    }


def _new() -> str:
    expires = datetime.now(UTC) + timedelta(hours=1)
    return f"{NEW_UID} acme-web/new 2Mi:16Mi {expires:%Y-%m-%dT%H:%M:%SZ} {OLD_UID} 0"


def _condition(kind: str, reason: str, *, good: bool) -> Object:
    return {
        "type": kind,
        "status": "True" if good else "False",
        "reason": reason,
        "message": f"It is {reason}.",
        "lastTransitionTime": _text(datetime.now(UTC)),
    }


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
