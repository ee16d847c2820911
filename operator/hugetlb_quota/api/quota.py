"""HugeTLBQuota: a limit on huge pages, and its place in the hierarchy."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, field_validator

from hugetlb_quota import duration, quantity
from hugetlb_quota.api.model import Condition, LabelSelector, Model, ObjectMeta
from hugetlb_quota.page_size import PageSize

KIND: Final = "HugeTLBQuota"
PLURAL: Final = "hugetlbquotas"
#: Keeps a quota that is deleted until nothing is charged to it; the controller's.
FINALIZER: Final = "hugetlb.dev/charged"

#: The condition that is False while charges are held for want of a node's report.
NODES_REPORTING: Final = "NodesReporting"
#: Amounts by resource name, as in ResourceQuota: {"hugepages-2Mi": "4Gi"}.
ResourceList = dict[str, str]


class ParentRef(Model):
    """The quota above, of which this one is a part."""

    namespace: str = Field(min_length=1, max_length=63, description="Namespace of the parent.")
    name: str = Field(min_length=1, max_length=253, description="Name of the parent.")


class RetainedSpec(Model):
    """What becomes of the files that pods left behind."""

    policy: Literal["Keep", "Truncate"] = Field(
        default="Keep",
        description="Keep leaves them to people; Truncate removes a file that no process has open"
        " or mapped, when all pods charged for it are long enough gone.",
    )
    after: str = Field(
        default="10m",
        pattern=duration.PATTERN,
        max_length=16,
        description='How long the pods must be gone, such as "10m" or "1h30m"; 10m by default.',
    )


class HugeTLBQuotaSpec(Model):
    """What an administrator writes."""

    hard: ResourceList = Field(
        description="The limit of each huge page size, for the pods it selects and all quotas"
        ' below it together: {"hugepages-2Mi": "4Gi"}. A whole multiple of the page size; a size'
        " not named is not limited here.",
    )
    parent_ref: ParentRef | None = Field(
        default=None,
        description="The quota above; without one, this quota is a root. What is charged here is"
        " charged to every quota above, and each can refuse.",
    )
    pod_selector: LabelSelector = Field(
        default_factory=LabelSelector,
        description="Which pods of its own namespace are charged to it; all of them by default.",
    )
    child_namespaces: LabelSelector | None = Field(
        default=None,
        description="The namespaces beside its own whose quotas may name this one as their parent,"
        " by namespace labels; none by default, and {} is every namespace.",
    )

    deletion_policy: Literal["Refuse", "Reparent", "Wait"] = Field(
        default="Refuse",
        description="What becomes of a request to delete this quota while something is charged to"
        " it. Refuse refuses it. Reparent refuses it while there are pods, and charges pages that"
        " pods left in shared files to the quota above. Wait accepts it: the quota takes no more"
        " pods, and goes once nothing is charged to it; for a quota that is installed and removed"
        " together with its pods, as in a Helm chart.",
    )

    retained: RetainedSpec | None = Field(
        default=None, description="What becomes of files that its pods left; kept by default."
    )

    @field_validator("hard", mode="before")
    @classmethod
    def _whole_pages(cls, hard: Any) -> Any:
        if not isinstance(hard, dict):
            return hard
        return {name: _whole_pages(name, amount) for name, amount in hard.items()}


class RetainedFileStatus(Model):
    """A shared file in which a pod that is gone left pages."""

    node: str = Field(description="Name of the Node that it is on.")
    path: str = Field(description="On the node, or what the kernel calls it.")
    pod: str = Field(description="namespace/name of the pod that is gone.")
    page_size: str = Field(description="hugepages-2Mi, as Kubernetes names it.")
    charged: str = Field(description="Bytes charged for it, as a quantity.")


class HugeTLBQuotaStatus(Model):
    """What is charged; written by admission (reservations) and the controller (the rest)."""

    observed_generation: int = Field(
        default=0,
        description="The metadata.generation of the spec that was counted last. While it is lower"
        " than the spec's own, no pod is admitted.",
    )
    counted_under: str = Field(
        default="",
        description="resourceVersion of the controllers' Lease when the one that counted came to"
        " lead: a count under an earlier one never replaces this.",
    )
    attached_to: str = Field(
        default="",
        description="namespace/name of the quota above that its charges go to. It stays while"
        " anything is charged, also when that quota does not let this one attach any more.",
    )
    hard: ResourceList = Field(default_factory=dict, description="The limits in force.")
    used: ResourceList = Field(
        default_factory=dict,
        description="All that is charged, quotas below included: pods, retained and reservations.",
    )
    pods: ResourceList = Field(
        default_factory=dict, description="Charged for pods that were seen, quotas below included."
    )
    retained: ResourceList = Field(
        default_factory=dict,
        description="Charged still for what pods that are gone left in shared files, until these"
        " are truncated or removed, quotas below included.",
    )
    retained_files: list[RetainedFileStatus] = Field(
        default_factory=list, description="The largest of the files that hold what is retained."
    )
    reservations: list[str] = Field(
        default_factory=list,
        description="Admitted for pods that were not yet seen, one line each: UID NAMESPACE/NAME"
        " CHARGE EXPIRES REQUEST SINCE. UID and NAMESPACE/NAME are the pod's, or those of a quota"
        ' that moves here. CHARGE is "2Mi:64Mi,1Gi:2Gi", page size and amount. EXPIRES is when no'
        " request that creates the pod can be under way any more. REQUEST is the UID of the"
        " admission request that reserved, which alone takes the reservation back. SINCE is the"
        " resourceVersion of the pod that was relabelled, or the generation of the quota that"
        " moved; 0 for a new pod. A seventh word makes it an identity: the pod is counted under"
        " pods, nothing is reserved, and the line says who it is until its node reports it. The"
        " word is the node, - before it has one, or ? where the pod was never seen. Further words"
        " are of newer releases.",
    )
    summary: str = Field(default="", description="Use against limit by page size, for people.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Ready: attached up to a root, and pods are admitted. WithinLimits: no more is"
        " charged than the limits allow. NodesReporting: nothing stays charged for want of a"
        " node's report.",
    )


class HugeTLBQuota(Model):
    """A HugeTLBQuota object."""

    api_version: str = Field(default="", description="Group and version of this kind.")
    kind: str = Field(default=KIND, description="HugeTLBQuota.")
    metadata: ObjectMeta
    spec: HugeTLBQuotaSpec
    status: HugeTLBQuotaStatus = Field(default_factory=HugeTLBQuotaStatus)


def _whole_pages(name: str, amount: Any) -> str:
    size = PageSize.from_resource(name)
    limit = quantity.parse(amount)
    if limit < 0:
        raise ValueError(f"the limit of {name} is {amount}; it can't be negative.")
    if limit % size.bytes:
        below = quantity.render(limit // size.bytes * size.bytes)
        above = quantity.render(-(-limit // size.bytes) * size.bytes)
        raise ValueError(
            f"the limit of {name} is {amount}, which is no multiple of {size};"
            f" use {below} or {above}."
        )
    return str(amount)
