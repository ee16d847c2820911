"""Reads what ``check`` looks at; what may not be read is left out, and why is kept."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from hugetlb_quota.kube import errors, resources
from hugetlb_quota.plugin.check import COMPONENTS, CRDS, LEASE, WEBHOOKS, Facts
from hugetlb_quota.plugin.cluster import Cluster
from hugetlb_quota.plugin.problem import Exit, Problem
from hugetlb_quota.plugin.uninstall import Left

_T = TypeVar("_T")
Json = dict[str, Any]

_COMPONENT: Final = "app.kubernetes.io/component"


async def read(cluster: Cluster) -> Facts:
    """Everything at once.

    :raises ApiError: when the API server can't be reached.
    """
    unread: dict[str, str] = {}

    async def may(topic: str, reading: Awaitable[_T]) -> _T | None:
        try:
            return await reading
        except errors.Forbidden as error:
            denied = re.search(r'cannot (\w+) resource "([^"]+)"', error.message)
            why = f"you may not {denied[1]} {denied[2]}" if denied else str(error).rstrip(".")
            unread.setdefault(topic, why)
        except Problem as problem:
            if problem.code == Exit.UNREACHABLE:
                raise
            unread.setdefault(topic, str(problem).partition(";")[0])
        return None

    crds, webhooks, workloads, held, nodes = await asyncio.gather(
        may("CRDs", _crds(cluster)),
        may("webhooks", _webhooks(cluster)),
        may("programs", _workloads(cluster)),
        may("leader", leases(cluster)),
        may("nodes", cluster.every(resources.NODES)),
    )
    reports, world = await asyncio.gather(
        may("nodes", _reports(cluster)),
        may("quotas", cluster.world()),
    )
    if "programs" in unread:
        unread["versions"] = unread["programs"]
    return Facts(
        now=datetime.now(UTC),
        version=importlib.metadata.version("hugetlb-quota"),
        crds=crds,
        webhooks=webhooks,
        endpoints=await may("endpoints", _endpoints(cluster, webhooks or ())),
        workloads=workloads,
        leases=held,
        nodes=nodes,
        reports=reports,
        quotas=None if world is None else tuple(world.quotas.values()),
        unread=unread,
        partly=tuple(each for each in cluster.unseen if "quotas of other" in each),
    )


async def read_left(cluster: Cluster, namespace: str | None) -> Left:
    """What there is of hugetlb-quota, for ``uninstall``; quotas of one namespace or of all.

    :raises ApiError: Forbidden among them.
    """
    crds, webhooks, namespaces = await asyncio.gather(
        _crds(cluster), _webhooks(cluster), cluster.every(resources.NAMESPACES)
    )
    quotas = await cluster.every(resources.HUGETLB_QUOTAS, namespace) if CRDS[0] in crds else []
    of_quotas = {each["metadata"]["namespace"] for each in quotas}
    ending = [each for each in namespaces if each["metadata"].get("deletionTimestamp")]
    names = [each["metadata"]["name"] for each in ending]
    return Left(
        quotas=quotas,
        namespaces=[each for each in names if each in of_quotas],
        crds=list(crds),
        webhooks=[each["metadata"]["name"] for each in webhooks],
    )


async def _crds(cluster: Cluster) -> Mapping[str, Json]:
    found = {}
    for name in CRDS:
        try:
            found[name] = await cluster.one(resources.CRDS, name)
        except errors.NotFound:
            continue
    return found


async def _webhooks(cluster: Cluster) -> Sequence[Json]:
    return [
        each
        for each in await cluster.every(resources.WEBHOOK_CONFIGURATIONS)
        if any(hook.get("name") in WEBHOOKS for hook in each.get("webhooks") or ())
    ]


async def _endpoints(cluster: Cluster, configurations: Sequence[Json]) -> Mapping[str, int]:
    """How many endpoints are ready, of each Service that is named."""
    services = {
        (service["namespace"], service["name"])
        for configuration in configurations
        for hook in configuration.get("webhooks") or ()
        if (service := (hook.get("clientConfig") or {}).get("service"))
    }
    ready = {}
    for namespace, name in services:
        slices = await cluster.every(
            resources.ENDPOINT_SLICES,
            namespace,
            label_selector=f"kubernetes.io/service-name={name}",
        )
        ready[f"{namespace}/{name}"] = sum(
            (endpoint.get("conditions") or {}).get("ready") is not False
            for each in slices
            for endpoint in each.get("endpoints") or ()
        )
    return ready


async def _workloads(cluster: Cluster) -> Mapping[str, Sequence[Json]]:
    selector = f"{_COMPONENT} in ({','.join(COMPONENTS)})"
    deployments, daemon_sets = await asyncio.gather(
        cluster.every(resources.DEPLOYMENTS, label_selector=selector),
        cluster.every(resources.DAEMON_SETS, label_selector=selector),
    )
    found: dict[str, list[Json]] = {component: [] for component in COMPONENTS}
    for each in (*deployments, *daemon_sets):
        if _is_ours(each):
            found[each["metadata"]["labels"][_COMPONENT]].append(each)
    return found


def _is_ours(workload: Json) -> bool:
    """Whether it runs a program of hugetlb-quota; others have such components too."""
    words = [
        str(word)
        for container in workload["spec"]["template"]["spec"]["containers"]
        for word in (*(container.get("command") or ()), *(container.get("args") or ()))
    ]
    return any("hugetlb_quota" in word or "hugetlb-quota" in word for word in words)


async def leases(cluster: Cluster) -> Sequence[Json]:
    """The controllers' Lease, one for each install.

    :raises ApiError: Forbidden among them.
    """
    found = await cluster.every(resources.LEASES)
    return [each for each in found if each["metadata"]["name"] == LEASE]


async def _reports(cluster: Cluster) -> Any:
    found = await cluster.reports()
    if found is None:
        raise Problem(Exit.FORBIDDEN, "hugetlbnodes may not be listed")
    return found
