"""HugeTLBNode: the agent's report of its node (status), the controller's orders (spec)."""

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

    page_size: str = Field(description="The page size as in Kubernetes: hugepages-2Mi.")
    numa_node: int | None = Field(
        default=None, description="The NUMA node; absent for the pool of the whole node."
    )
    total: int = Field(description="All pages of the pool.")
    free: int = Field(description="The pages that are not allocated, with the reserved ones.")
    reserved: int | None = Field(
        default=None,
        description="The pages that are reserved for mappings and not faulted yet; only for the"
        " whole node.",
    )
    surplus: int = Field(
        description="The pages above nr_hugepages; the kernel removes them when they are freed."
    )


class NodePodStatus(Model):
    """A pod of the node that requests huge pages, or that the kernel charges for some.

    There is one entry for each pod's cgroup. The entry stays while the kernel charges
    something to the cgroup, even if the cgroup is gone.
    """

    uid: str = Field(
        description="The UID of the pod. If no agent ever saw the pod in the API: the UID in the"
        " name of the cgroup."
    )
    namespace: str = Field(
        default="",
        description="The namespace of the pod; empty if no agent ever saw the pod in the API.",
    )
    name: str = Field(
        default="",
        description="The name of the pod; empty if no agent ever saw the pod in the API.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="The last labels of the pod that the agent saw. They select the quotas that"
        " pay.",
    )
    labels_left_out: int | None = Field(
        default=None,
        description="How many labels of the pod are missing in labels, for lack of room. Then"
        " every quota that may select the pod pays. Absent: none.",
    )
    cgroup: str = Field(
        default="",
        description="The UID in the name of the cgroup, if it differs from uid, as it does for a"
        " static pod.",
    )
    live: bool = Field(description="Whether the cgroup exists or may still be created.")
    demand: ResourceList = Field(
        default_factory=dict,
        description="The bytes that the pod requests, as the agent last saw. A live pod may still"
        " come to use them.",
    )
    charged: ResourceList = Field(
        default_factory=dict,
        description="The bytes that the kernel charges to the cgroup and all cgroups below,"
        " reserved or faulted.",
    )
    ended_at: datetime | None = Field(
        default=None, description="When the agent first saw that the pod is no longer live."
    )


class FileStatus(Model):
    """A hugetlbfs file and a pod that is charged for it; a file has an entry for each pod."""

    path: str = Field(
        description="The path below the mount point; for a file inside the kernel, its name."
    )
    mount: str = Field(
        description="The mount point of the hugetlbfs on the host; empty if not mounted."
    )
    volume: str = Field(
        default="",
        description="The volume through which the pod reaches the file; empty if unknown.",
    )
    page_size: str = Field(description="The page size as in Kubernetes: hugepages-2Mi.")
    charged: str = Field(
        description="The bytes of the file that are charged to the pod, as a quantity."
    )
    uid: str = Field(
        default="", description="The UID of the pod, as in pods; empty for a process of no pod."
    )
    since: datetime = Field(description="When the agent first saw this charge.")


class MountStatus(Model):
    """A hugetlbfs superblock; it can have a limit of its own."""

    path: str = Field(description="The mount point on the host.")
    page_size: str = Field(description="The page size as in Kubernetes: hugepages-2Mi.")
    limit: str | None = Field(
        default=None, description="The mount option size=, as a quantity; absent: no limit."
    )
    minimum: str | None = Field(
        default=None, description="The mount option min_size=, as a quantity."
    )
    used: str = Field(description="The bytes reserved or allocated, as a quantity.")


class LeftOut(Model):
    """What the report leaves out, because the size of an object is limited."""

    files: int = Field(
        default=0, description="How many of the largest files the report leaves out."
    )
    labels: int = Field(default=0, description="How many pods have labels left out.")
    pods: int = Field(
        default=0,
        description="How many new pods no report has listed yet. While there are any,"
        " podsResourceVersion does not advance.",
    )


class ReclaimSpec(Model):
    """A pod; the agent truncates and removes its files when the pod is gone for long enough."""

    uid: str = Field(description="The UID of the pod, as in status.pods.")
    after: str = Field(description="The duration from the end of the pod, such as 10m.")


class HeirSpec(Model):
    """The quotas that pay for a gone pod after its own quota was deleted."""

    uid: str = Field(description="The UID of the pod, as in status.pods.")
    quotas: list[str] = Field(description="namespace/name of each quota, sorted.")


class HugeTLBNodeSpec(Model):
    """The controller's orders to the agent, and its memory of the node's pods."""

    reclaim: list[ReclaimSpec] = Field(
        default_factory=list, description="The gone pods; the agent may remove their files."
    )
    heirs: list[HeirSpec] = Field(
        default_factory=list,
        description="The quotas that pay for gone pods after their own quota was deleted.",
    )


class HugeTLBNodeStatus(Model):
    """The agent's report of the node, and the agent's only memory."""

    boot_id: str = Field(
        default="", alias="bootID", description="The boot ID of the kernel that is reported."
    )
    pods_resource_version: str = Field(
        default="",
        description="Up to this resourceVersion the agent has seen the pods bound to the node.",
    )
    reported_at: datetime | None = Field(
        default=None, description="When the agent wrote the report, by the node's clock."
    )
    summary: str = Field(default="", description="The free pages of each pool, for people.")
    pools: list[PoolStatus] = Field(
        default_factory=list,
        description="The pools of huge pages, of the whole node and of each NUMA node.",
    )
    pods: list[NodePodStatus] = Field(
        default_factory=list,
        description="The pods, live and gone, that request huge pages or are charged for some.",
    )
    system: ResourceList = Field(
        default_factory=dict,
        description="The charges of cgroups that are not a pod's: those of the host's processes.",
    )
    unlisted: ResourceList = Field(
        default_factory=dict,
        description="The charges that the kernel counts and the charge list does not show.",
    )
    files: list[FileStatus] = Field(
        default_factory=list, description="The largest hugetlbfs files; not all of them."
    )
    mounts: list[MountStatus] = Field(
        default_factory=list, description="The hugetlbfs mounts of the host."
    )
    left_out: LeftOut | None = Field(
        default=None, description="What the report leaves out; absent: nothing."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Ready: the agent limits every pod to what the pod may use."
        " ChargeListReadable: the agent can read the kernel's charge list. MountsHaveRoom: no"
        " mount has reached its size=.",
    )


class HugeTLBNode(Model):
    """A HugeTLBNode reports the huge pages of a node, and the pods that use them."""

    api_version: str = Field(default="", description="Group and version of this kind.")
    kind: str = Field(default=KIND, description="HugeTLBNode.")
    metadata: ObjectMeta
    spec: HugeTLBNodeSpec = Field(default_factory=HugeTLBNodeSpec)
    status: HugeTLBNodeStatus = Field(default_factory=HugeTLBNodeStatus)
