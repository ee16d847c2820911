"""HugeTLBNode: what a node's agent sees there; the agent alone writes it."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pydantic import Field

from hugetlb_quota.api.model import Condition, Model, ObjectMeta
from hugetlb_quota.api.quota import ResourceList

KIND: Final = "HugeTLBNode"
PLURAL: Final = "hugetlbnodes"


class PoolStatus(Model):
    """One pool of huge pages of the node, in pages."""

    page_size: str = Field(description="hugepages-2Mi, as Kubernetes names it.")
    numa_node: int | None = Field(default=None, description="Absent: the whole node.")
    total: int
    free: int
    reserved: int | None = Field(
        default=None, description="Promised to mappings, not yet faulted; the whole node only."
    )
    surplus: int


class NodePodStatus(Model):
    """A governed pod bound to the node whose cgroup is there or may yet come."""

    uid: str
    namespace: str
    name: str
    quotas: list[str] = Field(description="namespace/name of the quotas that select it.")
    charge: ResourceList = Field(description="What it asks for, and is charged.")
    in_use: ResourceList = Field(
        default_factory=dict, description="What its cgroup has reserved or faulted, the larger."
    )


class HugeTLBNodeStatus(Model):
    """The agent's report."""

    boot_id: str = Field(default="", alias="bootID", description="The kernel that this tells of.")
    pods_resource_version: str = Field(
        default="", description="Up to where the agent has seen the pods bound to its node."
    )
    reported_at: datetime | None = None
    pools: list[PoolStatus] = Field(default_factory=list)
    pods: list[NodePodStatus] = Field(default_factory=list)
    conditions: list[Condition] = Field(default_factory=list)


class HugeTLBNode(Model):
    """A HugeTLBNode object."""

    api_version: str = ""
    kind: str = KIND
    metadata: ObjectMeta
    status: HugeTLBNodeStatus = Field(default_factory=HugeTLBNodeStatus)
