"""HugeTLBNode: the agent's report of its node (status), the controller's wishes (spec)."""

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
    total: int = Field(description="All pages of the pool.")
    free: int = Field(description="Of these, not taken; some of them may be reserved.")
    reserved: int | None = Field(
        default=None, description="Promised to mappings, not yet faulted; the whole node only."
    )
    surplus: int = Field(description="Pages beyond nr_hugepages, which go when they are free.")


class NodePodStatus(Model):
    """A pod of the node that asks for huge pages, or that the kernel charges for some.

    There is one entry for each pod's cgroup, also when that is gone and something is charged
    to it still.
    """

    uid: str = Field(description="UID of the pod; of one that nobody names, that of its cgroup.")
    namespace: str = Field(default="", description="Empty: no agent ever saw the pod in the API.")
    name: str = Field(default="", description="The pod's; empty: as with namespace.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="As the agent saw them last: they say who pays."
    )
    labels_left_out: int | None = Field(
        default=None,
        description="So many more it has, for which there was no room: every quota pays that may"
        " select it by those that are here. Absent: none.",
    )
    cgroup: str = Field(
        default="",
        description="The UID in the name of its cgroup where that is another: of a static pod.",
    )
    live: bool = Field(description="Whether its cgroup is there or may yet come.")
    demand: ResourceList = Field(
        default_factory=dict,
        description="Bytes that it asks for, as the agent saw it last: it may yet use them while"
        " it is live.",
    )
    charged: ResourceList = Field(
        default_factory=dict,
        description="Bytes that the kernel charges to its cgroup and all below it, reserved or"
        " faulted.",
    )
    ended_at: datetime | None = Field(
        default=None, description="When it was first seen that it is not live any more."
    )


class FileStatus(Model):
    """A hugetlbfs file that pages are charged for; one entry for each pod that is charged."""

    path: str = Field(description="Below the mount; of an internal file its name.")
    mount: str = Field(description="Where it is mounted on the host; empty: nowhere.")
    volume: str = Field(
        default="",
        description="Volume of that pod through which it is reached; empty: it can't be told.",
    )
    page_size: str = Field(description="hugepages-2Mi, as Kubernetes names it.")
    charged: str = Field(description="Bytes of it charged to the pod, as a quantity.")
    uid: str = Field(default="", description="That pod's, as in pods; empty: the system.")
    since: datetime = Field(description="When it was first seen charged.")


class MountStatus(Model):
    """A hugetlbfs superblock, with its own limit beside the quotas'."""

    path: str = Field(description="Where it is mounted on the host.")
    page_size: str = Field(description="hugepages-2Mi, as Kubernetes names it.")
    limit: str | None = Field(default=None, description="size=, as a quantity; absent: none.")
    minimum: str | None = Field(default=None, description="min_size=, as a quantity.")
    used: str = Field(description="Reserved in it or allocated, as a quantity.")


class LeftOut(Model):
    """What a report has no room for: an object's size has a limit."""

    files: int = Field(default=0, description="Of the largest files that would be told.")
    labels: int = Field(default=0, description="Pods of which labels are left out.")
    pods: int = Field(
        default=0,
        description="Pods of which no report told yet; podsResourceVersion stays where it was.",
    )


class ReclaimSpec(Model):
    """A pod whose files are to be truncated and removed once it is gone for so long."""

    uid: str = Field(description="As in status.pods.")
    after: str = Field(description="From its end, as 10m; a duration.")


class HeirSpec(Model):
    """Who pays for a gone pod whose own quota was deleted."""

    uid: str = Field(description="As in status.pods.")
    quotas: list[str] = Field(description="namespace/name of the quotas, sorted.")


class HugeTLBNodeSpec(Model):
    """What the controller wants of the node, and what it must not forget of the node's pods."""

    reclaim: list[ReclaimSpec] = Field(
        default_factory=list, description="The gone pods whose files the agent may remove."
    )
    heirs: list[HeirSpec] = Field(
        default_factory=list,
        description="Who pays for what gone pods left, where their own quota was deleted.",
    )


class HugeTLBNodeStatus(Model):
    """The agent's report, and its only memory."""

    boot_id: str = Field(default="", alias="bootID", description="The kernel that this tells of.")
    pods_resource_version: str = Field(
        default="", description="Up to where the agent has seen the pods bound to its node."
    )
    reported_at: datetime | None = Field(
        default=None, description="When the agent wrote this, by the node's clock."
    )
    summary: str = Field(default="", description="What is free of the pools, for people.")
    pools: list[PoolStatus] = Field(
        default_factory=list, description="The pools of huge pages, of the node and of each part."
    )
    pods: list[NodePodStatus] = Field(
        default_factory=list,
        description="The pods that ask for huge pages or are charged for some, live and gone.",
    )
    system: ResourceList = Field(
        default_factory=dict, description="Charged to cgroups of no pod: the host's processes."
    )
    unlisted: ResourceList = Field(
        default_factory=dict,
        description="Counted by the kernel, and in nothing that its charge list shows.",
    )
    files: list[FileStatus] = Field(
        default_factory=list, description="The largest hugetlbfs files; not all of them."
    )
    mounts: list[MountStatus] = Field(
        default_factory=list, description="The hugetlbfs mounts of the host."
    )
    left_out: LeftOut | None = Field(default=None, description="Absent: nothing.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Ready: pods are held to what they may use. ChargeListReadable: the kernel's"
        " own list of charges is read. MountsHaveRoom: no mount is at its size=.",
    )


class HugeTLBNode(Model):
    """A HugeTLBNode object."""

    api_version: str = Field(default="", description="Group and version of this kind.")
    kind: str = Field(default=KIND, description="HugeTLBNode.")
    metadata: ObjectMeta
    spec: HugeTLBNodeSpec = Field(default_factory=HugeTLBNodeSpec)
    status: HugeTLBNodeStatus = Field(default_factory=HugeTLBNodeStatus)
