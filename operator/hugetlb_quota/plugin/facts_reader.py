"""Reads what ``check`` and ``uninstall`` need from the cluster."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

from hugetlb_quota.kube import errors, resources
from hugetlb_quota.kube.controller_lease import LEASE
from hugetlb_quota.plugin.cluster import Cluster
from hugetlb_quota.plugin.facts import COMPONENTS, CRDS, WEBHOOKS, Facts, Json
from hugetlb_quota.plugin.problem import Exit, Problem
from hugetlb_quota.plugin.reports import NodeReport
from hugetlb_quota.plugin.uninstall import Left

_T = TypeVar("_T")

_COMPONENT: Final = "app.kubernetes.io/component"


async def read(cluster: Cluster) -> Facts:
    """Read all facts for ``check``. A part that may not be read is None, with the reason.

    :raises ApiError: when the API server can't be reached.
    """
    unread: dict[str, str] = {}

    async def try_to(topic: str, reading: Awaitable[_T]) -> _T | None:
        try:
            return await reading
        except errors.Forbidden as error:
            denied = re.search(r'cannot (\w+) resource "([^"]+)"', error.message)
            why = f"you may not {denied[1]} {denied[2]}" if denied else str(error).rstrip(".")
            unread.setdefault(topic, why)
        except Problem as problem:
            unread.setdefault(topic, str(problem).partition(";")[0])
        return None

    crds, webhooks, workloads, held, nodes = await asyncio.gather(
        try_to("CRDs", _crds(cluster)),
        try_to("webhooks", _webhooks(cluster)),
        try_to("programs", programs(cluster)),
        try_to("leader", leases(cluster)),
        try_to("nodes", cluster.every(resources.NODES)),
    )
    reports, world = await asyncio.gather(
        try_to("nodes", _reports(cluster)),
        try_to("quotas", cluster.world()),
    )
    if "programs" in unread:
        unread["versions"] = unread["programs"]
    return Facts(
        now=datetime.now(UTC),
        version=importlib.metadata.version("hugetlb-quota"),
        crds=crds,
        webhooks=webhooks,
        endpoints=await try_to("endpoints", _endpoints(cluster, webhooks or ())),
        workloads=workloads,
        leases=held,
        nodes=nodes,
        reports=reports,
        quotas=None if world is None else tuple(world.quotas.values()),
        unread=unread,
        partly=tuple(unseen for unseen in cluster.unseen if "quotas of other" in unseen),
    )


async def read_left(cluster: Cluster, namespace: str | None) -> Left:
    """Read for ``uninstall`` the parts of hugetlb-quota that are still in the cluster.

    :param namespace: read only the quotas of this namespace; None reads all quotas.
    :raises ApiError: Forbidden among them.
    """
    crds, webhooks, namespaces = await asyncio.gather(
        _crds(cluster), _webhooks(cluster), cluster.every(resources.NAMESPACES)
    )
    quotas = await cluster.every(resources.HUGETLB_QUOTAS, namespace) if CRDS[0] in crds else []
    with_quotas = {quota["metadata"]["namespace"] for quota in quotas}
    ending = [raw for raw in namespaces if raw["metadata"].get("deletionTimestamp")]
    names = [raw["metadata"]["name"] for raw in ending]
    return Left(
        quotas=quotas,
        namespaces=[name for name in names if name in with_quotas],
        crds=list(crds),
        webhooks=[configuration["metadata"]["name"] for configuration in webhooks],
    )


async def leases(cluster: Cluster) -> Sequence[Json]:
    """The Lease of the controllers, one for each install.

    :raises ApiError: Forbidden among them.
    """
    every = await cluster.every(resources.LEASES)
    return [lease for lease in every if lease["metadata"]["name"] == LEASE]


async def programs(cluster: Cluster) -> Mapping[str, Sequence[Json]]:
    """The Deployments and the DaemonSet of the operator, by component.

    :raises ApiError: Forbidden among them.
    """
    selector = f"{_COMPONENT} in ({','.join(COMPONENTS)})"
    deployments, daemon_sets = await asyncio.gather(
        cluster.every(resources.DEPLOYMENTS, label_selector=selector),
        cluster.every(resources.DAEMON_SETS, label_selector=selector),
    )
    workloads: dict[str, list[Json]] = {component: [] for component in COMPONENTS}
    for workload in (*deployments, *daemon_sets):
        if _is_ours(workload):
            workloads[workload["metadata"]["labels"][_COMPONENT]].append(workload)
    return workloads


async def _crds(cluster: Cluster) -> Mapping[str, Json]:
    crds = {}
    for name in CRDS:
        try:
            crds[name] = await cluster.one(resources.CRDS, name)
        except errors.NotFound:
            continue
    return crds


async def _webhooks(cluster: Cluster) -> Sequence[Json]:
    return [
        configuration
        for configuration in await cluster.every(resources.WEBHOOK_CONFIGURATIONS)
        if any(hook.get("name") in WEBHOOKS for hook in configuration.get("webhooks") or ())
    ]


async def _endpoints(cluster: Cluster, configurations: Sequence[Json]) -> Mapping[str, int]:
    """The number of ready endpoints of each Service that a webhook names."""
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


def _is_ours(workload: Json) -> bool:
    """Whether the workload runs a program of hugetlb-quota; others use the same label."""
    words = [
        str(word)
        for container in workload["spec"]["template"]["spec"]["containers"]
        for word in (*(container.get("command") or ()), *(container.get("args") or ()))
    ]
    return any("hugetlb_quota" in word or "hugetlb-quota" in word for word in words)


async def _reports(cluster: Cluster) -> Sequence[NodeReport]:
    reports = await cluster.reports()
    if reports is None:
        raise Problem(Exit.FORBIDDEN, "you may not list hugetlbnodes")
    return reports
