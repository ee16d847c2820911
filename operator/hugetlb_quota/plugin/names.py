"""The names that completion offers, from the kubeconfig and the cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hugetlb_quota.kube import resources
from hugetlb_quota.plugin.cluster import Cluster
from hugetlb_quota.plugin.explain_command import WORKLOADS
from hugetlb_quota.plugin.kubeconfig import contexts
from hugetlb_quota.plugin.world import World


async def names(kind: str, given: Mapping[str, str]) -> list[str]:
    """The names of a ``kind``: context, namespace, quota, or a kind that ``explain`` takes.

    :param given: the values of the options already typed: kubeconfig, context, namespace.
    :raises Exception: any error on the way to the names.
    """
    if kind == "context":
        return sorted(contexts(given.get("kubeconfig")))
    options = (given.get("kubeconfig"), given.get("context"), given.get("namespace"))
    async with Cluster.open(*options) as cluster:
        if kind == "namespace":
            objects = await cluster.every(resources.NAMESPACES)
        elif kind == "quota":
            return list(_quota_names(await cluster.world(), cluster.namespace))
        elif kind in WORKLOADS:
            objects = await cluster.every(WORKLOADS[kind][1], cluster.namespace)
        else:
            return []
        return sorted(raw["metadata"]["name"] for raw in objects)


def _quota_names(world: World, namespace: str) -> Iterator[str]:
    """Each spelling of each quota that the command line accepts."""
    for key in sorted(world.quotas):
        yield str(key)
        if key.namespace == namespace:
            yield key.name
