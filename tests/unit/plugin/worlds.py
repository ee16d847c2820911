"""A small cluster for the plugin's tests, as JSON from the API server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from hugetlb_quota.kube.pods import project_pod
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.plugin.reports import read_report
from hugetlb_quota.plugin.world import World, forest_of, waiting

Json = dict[str, Any]

NOW: Final = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
ACME: Final = {"tenant": "acme"}
NAMESPACES: Final = {"acme": {}, "acme-db": ACME, "acme-web": ACME}
TENANT: Final = {"namespace": "acme", "name": "tenant"}
NEW: Final = "new acme-web/new 2Mi:16Mi 2026-11-26T12:00:30Z request 0"


def quota(
    key: str,
    hard: str | Mapping[str, str],
    *,
    parent: Json | None = None,
    good: str = "Attached",
    bad: str = "",
    counted: bool = True,
    spec: Json | None = None,
    **status: Any,
) -> Json:
    """A quota. A bare amount is of 2Mi pages; ``bad`` is the reason why the quota is not Ready."""
    namespace, _, name = key.partition("/")
    charged = {
        name: {"hugepages-2Mi": value} if isinstance(value, str) else value
        for name, value in status.items()
    }
    ready = {
        "type": "Ready",
        "status": "False" if bad else "True",
        "reason": bad or good,
        "message": f"It is {bad or good}.",
        "lastTransitionTime": "2026-11-26T11:00:00Z",
    }
    limits = {"hugepages-2Mi": hard} if isinstance(hard, str) else dict(hard)
    own: Json = {"hard": limits, **({} if parent is None else {"parentRef": parent})}
    return {
        "metadata": {"namespace": namespace, "name": name, "uid": key, "generation": 1},
        "spec": {**own, **(spec or {})},
        "status": {"observedGeneration": int(counted), "conditions": [ready], **charged},
    }


def pod_spec(demand: str, field: str = "limits") -> Json:
    """The spec of a pod with one container."""
    return {"containers": [{"name": "c", "resources": {field: {"hugepages-2Mi": demand}}}]}


def pod(
    key: str, demand: str, *, node: str = "n1", phase: str = "Running", version: int = 5
) -> Json:
    """A pod that requests ``demand`` of 2Mi pages. The UID is the name."""
    namespace, _, name = key.partition("/")
    metadata = {"namespace": namespace, "name": name, "uid": name, "resourceVersion": str(version)}
    spec = {**pod_spec(demand, "requests"), **({"nodeName": node} if node else {})}
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase}}


def entry(key: str, charged: str, *, live: bool = True, demand: str = "") -> Json:
    """A pod in a node's report."""
    namespace, _, name = key.partition("/")
    raw: Json = {"uid": name, "namespace": namespace, "name": name, "live": live}
    raw["charged"] = {"hugepages-2Mi": charged}
    if demand:
        raw["demand"] = {"hugepages-2Mi": demand}
    if not live:
        raw["endedAt"] = "2026-11-26T10:00:00Z"
    return raw


def file(uid: str, charged: str, path: str = "segment") -> Json:
    """A file in a node's report."""
    return {
        "path": path,
        "mount": "/mnt/huge",
        "volume": "huge",
        "pageSize": "hugepages-2Mi",
        "charged": charged,
        "uid": uid,
        "since": "2026-11-26T09:00:00Z",
    }


def report(name: str, pods: Iterable[Json] = (), files: Iterable[Json] = (), **status: Any) -> Json:
    """A HugeTLBNode with a pool of 1Gi, half of it free."""
    pool = {"pageSize": "hugepages-2Mi", "total": 512, "free": 256, "reserved": 0, "surplus": 0}
    whole = {
        "bootID": "boot",
        "podsResourceVersion": "10",
        "reportedAt": "2026-11-26T11:59:30Z",
        "pools": [pool],
        "pods": list(pods),
        "files": list(files),
        "conditions": [],
        **status,
    }
    return {"metadata": {"name": name}, "spec": {}, "status": whole}


def world(
    quotas: Iterable[Json],
    pods: Iterable[Json] | None = (),
    reports: Iterable[Json] | None = (),
    *,
    namespaces: Mapping[str, Mapping[str, str]] | None = NAMESPACES,
    whole: bool = True,
) -> World:
    """The world of these objects, as the plugin reads it."""
    found = {each.key: each for each in map(QuotaObject.to_count, quotas)}
    raw_pods = None if pods is None else list(pods)
    return World(
        found,
        forest_of(found.values(), namespaces, whole=whole),
        None if raw_pods is None else tuple(map(project_pod, raw_pods)),
        None if reports is None else tuple(map(read_report, reports)),
        waiting(raw_pods or ()),
    )


def acme() -> World:
    """A tenant of 224Mi: 64Mi for each of db-0 and web-0, 32Mi left by old, 16Mi for new."""
    return world(
        [
            quota(
                "acme/tenant",
                {"hugepages-2Mi": "224Mi", "hugepages-1Gi": "4Gi"},
                good="Root",
                spec={"childNamespaces": {"matchLabels": ACME}},
                pods="128Mi",
                retained="32Mi",
                reservations=[NEW],
            ),
            quota("acme-db/db", "128Mi", parent=TENANT, pods="64Mi"),
            quota(
                *("acme-web/web", "192Mi"),
                parent=TENANT,
                pods="64Mi",
                retained="32Mi",
                reservations=[NEW],
            ),
        ],
        [pod("acme-db/db-0", "64Mi"), pod("acme-web/web-0", "64Mi", node="")],
        [
            report(
                "n1",
                [
                    entry("acme-db/db-0", "32Mi", demand="64Mi"),
                    entry("acme-web/old", "32Mi", live=False),
                ],
                [file("old", "32Mi"), file("db-0", "32Mi", "db")],
            )
        ],
    )
