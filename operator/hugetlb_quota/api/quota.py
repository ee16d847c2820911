"""HugeTLBQuota: a limit on huge pages, and its place in the hierarchy."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field, field_validator

from hugetlb_quota import duration, quantity
from hugetlb_quota.api.model import Condition, LabelSelector, Model, ObjectMeta
from hugetlb_quota.page_size import PageSize

KIND: Final = "HugeTLBQuota"
PLURAL: Final = "hugetlbquotas"
#: The controller's finalizer, which keeps a deleted quota until nothing is charged to it.
FINALIZER: Final = "hugetlb.dev/charged"
#: The label of those that are deleted and have it still; the controller's.
DELETED: Final = "hugetlb.dev/deleted"

#: The condition that is False while a charge waits for a node's report.
NODES_REPORTING: Final = "NodesReporting"
#: Amounts by resource name, as in ResourceQuota: {"hugepages-2Mi": "4Gi"}.
ResourceList = dict[str, str]


class ParentRef(Model):
    """A reference to the parent quota."""

    namespace: str = Field(min_length=1, max_length=63, description="Namespace of the parent.")
    name: str = Field(min_length=1, max_length=253, description="Name of the parent.")


class RetainedSpec(Model):
    """What the agent does with files that gone pods left."""

    policy: Literal["Keep", "Truncate"] = Field(
        default="Keep",
        description="Keep leaves the files for an administrator. Truncate removes a file when no"
        " process has it open or mapped and all pods charged for it are gone for long enough.",
    )
    after: str = Field(
        default="10m",
        pattern=duration.PATTERN,
        max_length=16,
        description='How long the pods must be gone, such as "10m" or "1h30m"; 10m by default.',
    )


class HugeTLBQuotaSpec(Model):
    """The desired state of a quota, written by an administrator."""

    hard: ResourceList = Field(
        description="The limit of each huge page size, for the selected pods and all quotas"
        ' below together: {"hugepages-2Mi": "4Gi"}. The amount is a multiple of the page size.'
        " This quota does not limit a size that hard does not name.",
    )
    parent_ref: ParentRef | None = Field(
        default=None,
        description="The parent quota. Without a parent, this quota is a root. A charge to this"
        " quota is also a charge to every quota above, and each of them can refuse.",
    )
    pod_selector: LabelSelector = Field(
        default_factory=LabelSelector,
        description="Selects the pods of the quota's namespace that the quota governs; by default"
        " all of them.",
    )
    child_namespaces: LabelSelector | None = Field(
        default=None,
        description="Selects, by labels, other namespaces: their quotas may name this quota as"
        " parent. The default is no namespace; {} selects every namespace. A quota of"
        " the same namespace may always do so.",
    )

    deletion_policy: Literal["Refuse", "Reparent", "Wait"] = Field(
        default="Refuse",
        description="How to answer a request to delete this quota while something is charged to"
        " it. Refuse: refuse the request. Reparent: refuse the request while pods are charged;"
        " when only pages in shared files are charged, charge them to the parent. Wait: accept"
        " the request; the quota admits no more pods, and disappears when nothing is charged to"
        " it. Wait is for a quota that is installed and removed together with its pods, as in a"
        " Helm chart.",
    )

    retained: RetainedSpec | None = Field(
        default=None,
        description="What to do with files that the quota's pods left. By default the agent keeps"
        " them.",
    )

    @field_validator("hard", mode="before")
    @classmethod
    def _whole_pages(cls, hard: Any) -> Any:
        if not isinstance(hard, dict):
            return hard
        return {name: _whole_pages(name, amount) for name, amount in hard.items()}


class RetainedFileStatus(Model):
    """A shared file in which a gone pod left pages."""

    node: str = Field(description="The name of the Node that has the file.")
    path: str = Field(
        description="The path on the node, or the kernel's name of a file without a path."
    )
    pod: str = Field(description="namespace/name of the gone pod.")
    page_size: str = Field(description="The page size as in Kubernetes: hugepages-2Mi.")
    charged: str = Field(description="The bytes that are charged for the file, as a quantity.")


class HugeTLBQuotaStatus(Model):
    """The charges of a quota. Admission writes reservations, the controller the other fields."""

    observed_generation: int = Field(
        default=0,
        description="The metadata.generation of the spec at the last count. While this is lower"
        " than metadata.generation, admission admits no pod.",
    )
    counted_under: str = Field(
        default="",
        description="The term of the last count: the resourceVersion of the controllers' Lease"
        " when the controller that counted came to lead. A count under an earlier term never"
        " replaces one under a later term.",
    )
    attached_to: str = Field(
        default="",
        description="namespace/name of the parent that is charged for this quota. The value stays"
        " while something is charged, even if the parent no longer lets this quota attach.",
    )
    hard: ResourceList = Field(default_factory=dict, description="The limits in force.")
    used: ResourceList = Field(
        default_factory=dict,
        description="All charges, with those of the quotas below: pods, retained and reservations.",
    )
    pods: ResourceList = Field(
        default_factory=dict,
        description="The charges of pods that the controller has counted, with those of the"
        " quotas below.",
    )
    retained: ResourceList = Field(
        default_factory=dict,
        description="The charges of gone pods for pages that they left in shared files, with those"
        " of the quotas below. Such a charge ends when the file is truncated or removed.",
    )
    retained_files: list[RetainedFileStatus] = Field(
        default_factory=list, description="The largest files that hold the retained charges."
    )
    reservations: list[str] = Field(
        default_factory=list,
        description="The reservations of admitted pods that the controller has not counted yet."
        " Each is one line of words: UID NAMESPACE/NAME CHARGE EXPIRES REQUEST SINCE. UID and"
        " NAMESPACE/NAME are those of the pod, or of a quota that moves here. CHARGE has page"
        ' sizes and amounts: "2Mi:64Mi,1Gi:2Gi". At EXPIRES, by the clock of admission, the API'
        " request that creates the pod ends at the latest; 1970-01-01T00:00:00Z says that it has"
        " ended. REQUEST is the UID of the admission request; only that request"
        " takes the reservation back. SINCE is the resourceVersion of a relabelled pod, the"
        " generation of a moved quota, or 0 for a new pod. A line with a seventh word is an"
        " identity: the controller has counted the pod, and the line reserves nothing; the line"
        " says which pod has the UID until the pod's node reports the pod. The seventh word is"
        " the name of the node, - if the pod has no node yet, or ? if the controller never saw"
        " the pod. Newer releases may add further words.",
    )
    summary: str = Field(default="", description="Use and limit of each page size, for people.")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Ready: the quota is attached up to a root, and admission admits pods."
        " WithinLimits: the charges are within the limits. NodesReporting: no charge waits for a"
        " node's report.",
    )


class HugeTLBQuota(Model):
    """A HugeTLBQuota limits huge pages of pods and of the quotas below it."""

    api_version: str = Field(default="", description="Group and version of this kind.")
    kind: str = Field(default=KIND, description="HugeTLBQuota.")
    metadata: ObjectMeta
    spec: HugeTLBQuotaSpec
    status: HugeTLBQuotaStatus = Field(default_factory=HugeTLBQuotaStatus)


def _whole_pages(name: str, amount: Any) -> str:
    size = PageSize.from_resource(name)
    limit = quantity.parse(amount)
    if limit < 0:
        raise ValueError(f"the limit of {name} is {amount}; it must not be negative.")
    if limit % size.bytes:
        below = quantity.render(limit // size.bytes * size.bytes)
        above = quantity.render(-(-limit // size.bytes) * size.bytes)
        raise ValueError(
            f"the limit of {name} is {amount}, which is not a multiple of {size};"
            f" use {below} or {above}."
        )
    return str(amount)
