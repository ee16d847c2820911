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


class RetainedStatus(Model):
    """What pods left that are gone or under other quotas now, by the quotas that are charged."""

    quotas: list[str] = Field(description="namespace/name of the quotas charged directly, sorted.")
    charge: ResourceList


class FileStatus(Model):
    """A hugetlbfs file that pages are charged for."""

    path: str = Field(description="Below the mount; without one, what else it can be.")
    mount: str = Field(description="Where it is mounted on the host; empty for the kernel's own.")
    volume: str = Field(
        default="",
        description="Volume of that pod through which it is reached; empty: it can't be told.",
    )
    page_size: str = Field(description="hugepages-2Mi, as Kubernetes names it.")
    charged: str = Field(description="Bytes of it charged to the pod, as a quantity.")
    pod: str = Field(description="namespace/name of the pod that is charged; empty: the system.")
    uid: str = Field(default="", description="UID of that pod.")
    quotas: list[str] = Field(default_factory=list)
    retained: bool = Field(
        description="Whether that pod is gone, or under other quotas than when it filled this."
    )
    since: datetime = Field(description="When it was first seen charged.")


class MountStatus(Model):
    """A hugetlbfs superblock, with its own limit beside the quotas'."""

    path: str
    page_size: str
    limit: str | None = Field(default=None, description="size=, as a quantity; absent: none.")
    minimum: str | None = Field(default=None, description="min_size=, as a quantity.")
    used: str = Field(description="What its files hold, as statfs tells it.")


class HugeTLBNodeStatus(Model):
    """The agent's report."""

    boot_id: str = Field(default="", alias="bootID", description="The kernel that this tells of.")
    pods_resource_version: str = Field(
        default="", description="Up to where the agent has seen the pods bound to its node."
    )
    pods_since: str = Field(
        default="",
        description="From where on the agent has seen them without a gap: every pod that was"
        " there then, or came later.",
    )
    settled: list[str] = Field(
        default_factory=list,
        description="UIDs of pods that quotas tell as unreported and that are gone from here: what"
        " they left is in retained.",
    )
    reported_at: datetime | None = None
    pools: list[PoolStatus] = Field(default_factory=list)
    pods: list[NodePodStatus] = Field(default_factory=list)
    retained: list[RetainedStatus] = Field(
        default_factory=list,
        description="Still charged for pods that are gone or under other quotas now, by quota.",
    )
    system: ResourceList = Field(
        default_factory=dict,
        description="Held by hugetlbfs files that the host's own processes made; charged to none.",
    )
    files: list[FileStatus] = Field(
        default_factory=list, description="The largest hugetlbfs files; not all of them."
    )
    mounts: list[MountStatus] = Field(default_factory=list)
    conditions: list[Condition] = Field(default_factory=list)


class HugeTLBNode(Model):
    """A HugeTLBNode object."""

    api_version: str = ""
    kind: str = KIND
    metadata: ObjectMeta
    status: HugeTLBNodeStatus = Field(default_factory=HugeTLBNodeStatus)
