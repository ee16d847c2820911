"""The names that completion offers, out of the kubeconfig and the cluster."""

from __future__ import annotations

from collections.abc import Mapping

from hugetlb_quota.kube import resources
from hugetlb_quota.plugin.cluster import Cluster, contexts
from hugetlb_quota.plugin.commands import WORKLOADS, quota_names


async def names(kind: str, given: Mapping[str, str]) -> list[str]:
    """The names of a ``kind``: context, namespace, quota, or one that ``explain`` takes.

    :param given: the values of the options that stand before: kubeconfig, context, namespace.
    :raises Exception: whatever is in the way of asking.
    """
    if kind == "context":
        return sorted(contexts(given.get("kubeconfig")))
    options = (given.get("kubeconfig"), given.get("context"), given.get("namespace"))
    async with Cluster.open(*options) as cluster:
        if kind == "namespace":
            found = await cluster.every(resources.NAMESPACES)
        elif kind == "quota":
            return list(quota_names(await cluster.world(), cluster.namespace))
        elif kind in WORKLOADS:
            found = await cluster.every(WORKLOADS[kind][1], cluster.namespace)
        else:
            return []
        return sorted(each["metadata"]["name"] for each in found)
