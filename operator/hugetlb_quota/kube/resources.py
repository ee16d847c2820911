"""The kinds of objects that the programs read and write, and their paths in the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from hugetlb_quota import api
from hugetlb_quota.api import node, quota


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of object: its API group ("" is core), version and plural."""

    group: str
    version: str
    plural: str
    namespaced: bool

    def path(
        self,
        namespace: str | None = None,
        name: str | None = None,
        subresource: str | None = None,
    ) -> str:
        """The URL path of a collection, an object, or a subresource.

        Without a namespace, the collection of a namespaced kind is that of all namespaces.
        """
        root = f"/apis/{self.group}" if self.group else "/api"
        parts = [root, self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, subresource) if part is not None]
        return "/".join(parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


#: The kinds that only the plugin reads.
CRDS: Final = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
ENDPOINT_SLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices", namespaced=True)
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", namespaced=True)
DAEMON_SETS: Final = Resource("apps", "v1", "daemonsets", namespaced=True)
STATEFUL_SETS: Final = Resource("apps", "v1", "statefulsets", namespaced=True)
REPLICA_SETS: Final = Resource("apps", "v1", "replicasets", namespaced=True)
JOBS: Final = Resource("batch", "v1", "jobs", namespaced=True)
CRON_JOBS: Final = Resource("batch", "v1", "cronjobs", namespaced=True)

#: The kinds that the programs read and write.
HUGETLB_QUOTAS: Final = Resource(api.GROUP, api.VERSION, quota.PLURAL, namespaced=True)
HUGETLB_NODES: Final = Resource(api.GROUP, api.VERSION, node.PLURAL, namespaced=False)
PODS: Final = Resource("", "v1", "pods", namespaced=True)
NODES: Final = Resource("", "v1", "nodes", namespaced=False)
NAMESPACES: Final = Resource("", "v1", "namespaces", namespaced=False)
WEBHOOK_CONFIGURATIONS: Final = Resource(
    "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", namespaced=False
)
SECRETS: Final = Resource("", "v1", "secrets", namespaced=True)
SERVICES: Final = Resource("", "v1", "services", namespaced=True)
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", namespaced=True)
EVENTS: Final = Resource("events.k8s.io", "v1", "events", namespaced=True)
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", namespaced=True)
