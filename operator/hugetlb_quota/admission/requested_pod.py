"""The pod in an admission request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.demand import demand
from hugetlb_quota.accounting.reservation import is_word
from hugetlb_quota.admission.review import (
    AdmissionRequest,
    MalformedReview,
    mapping,
    resource_version,
    strings,
    text,
)
from hugetlb_quota.kube.pods import CONFIG_MIRROR, FINISHED_PHASES


@dataclass(frozen=True, slots=True)
class RequestedPod:
    """The fields of a pod, and of the request about the pod, that a decision needs.

    ``name``: for a pod without a name its ``generateName``. ``old_labels``: the labels before an
    update; None for a new pod. ``finished``: whether the pod had finished before the update.
    ``mirror``: whether the pod claims to be the mirror of a static pod. ``request``: the UID of
    the request. ``since``: the resourceVersion of the pod that is updated; 0 for a new pod.
    """

    uid: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    old_labels: Mapping[str, str] | None
    finished: bool
    mirror: bool
    request: str
    since: int

    @classmethod
    def of(cls, request: AdmissionRequest) -> Self:
        """The pod of ``request``.

        :raises MalformedReview: if a field has a type or a value that no API server sends.
        """
        metadata = mapping(request.new, "metadata", "request.object")
        is_update = request.operation == "UPDATE"
        old = mapping(request.old, "metadata", "request.oldObject") if is_update else {}
        namespace, name = request.namespace_and_name(metadata)
        uid = text(metadata, "uid")
        if not (name and namespace):
            raise MalformedReview("the pod has no namespace and name.")
        for word in filter(None, (uid, request.uid)):
            if not is_word(word):
                raise MalformedReview(f"{word[:200]!r} is not a UID.")
        return cls(
            uid=uid,
            namespace=namespace,
            name=name,
            labels=strings(metadata, "labels", "request.object.metadata"),
            old_labels=strings(old, "labels", "request.oldObject.metadata") if is_update else None,
            finished=is_update
            and mapping(request.old, "status", "request.oldObject").get("phase") in FINISHED_PHASES,
            mirror=CONFIG_MIRROR in mapping(metadata, "annotations", "request.object.metadata"),
            request=request.uid,
            since=resource_version(old),
        )

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def demand_of(request: AdmissionRequest) -> Charge:
    """The demand of the new pod in ``request``.

    :raises MalformedDemand: if a resource request for huge pages is invalid.
    :raises MalformedReview: if the spec has a form that no API server sends.
    """
    try:
        return demand(mapping(request.new, "spec", "request.object"))
    except (TypeError, AttributeError) as error:
        raise MalformedReview(f"request.object.spec is not the spec of a pod: {error}.") from error
