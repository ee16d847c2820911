"""A HugeTLBQuota, read from the API and written back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import Any, Self

from pydantic import ValidationError

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter, Reservation
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile, Unreported
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.model import Condition, LabelSelector
from hugetlb_quota.api.quota import (
    KIND,
    HugeTLBQuota,
    HugeTLBQuotaSpec,
    HugeTLBQuotaStatus,
    ReservationStatus,
    RetainedFileStatus,
    UnreportedStatus,
)
from hugetlb_quota.page_size import PageSize


class InvalidQuota(ValueError):
    """A HugeTLBQuota that can't be understood, so nothing can be admitted under it.

    The CRD and the webhook keep such objects out; one may be older than they are.
    """

    reason = "Invalid"

    def __init__(self, key: QuotaKey, resource_version: int, why: str) -> None:
        super().__init__(f"HugeTLBQuota {key} is invalid: {why}")
        self.key = key
        self.resource_version = resource_version
        self.why = why


@dataclass(frozen=True, slots=True)
class QuotaObject:
    """A HugeTLBQuota as it was read, or as it is to be written.

    Change ``counter``, ``conditions`` and ``observed_generation`` with :meth:`with_counter`
    and ``dataclasses.replace``; :meth:`status` is what they make of the object's status.
    """

    key: QuotaKey
    uid: str
    resource_version: str
    generation: int
    quota: Quota
    counter: Counter
    retained_files: tuple[RetainedFile, ...] = ()
    unreported: tuple[Unreported, ...] = ()
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0
    stored: HugeTLBQuotaStatus = field(default_factory=HugeTLBQuotaStatus, compare=False)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """From the API server's JSON.

        :raises InvalidQuota: when its spec or status can't be understood.
        """
        metadata = raw.get("metadata") or {}
        key = QuotaKey(metadata.get("namespace", ""), metadata.get("name", ""))
        try:
            parsed = HugeTLBQuota.model_validate(raw)
            quota = quota_from_spec(
                key,
                parsed.spec,
                uid=parsed.metadata.uid,
                terminating=parsed.metadata.deletion_timestamp is not None,
            )
            counter = Counter(
                quota=key,
                hard=quota.hard,
                pods=Charge.from_resources(parsed.status.pods),
                retained=Charge.from_resources(parsed.status.retained),
                reservations=tuple(map(_reservation, parsed.status.reservations)),
            )
            files = tuple(map(_retained_file, parsed.status.retained_files))
            unreported = tuple(map(read_unreported, parsed.status.unreported))
        except ValueError as error:  # pydantic's ValidationError is one
            version = int(metadata.get("resourceVersion") or 0)
            raise InvalidQuota(key, version, explain(error)) from error
        return cls(
            key=key,
            uid=parsed.metadata.uid,
            resource_version=parsed.metadata.resource_version,
            generation=parsed.metadata.generation,
            quota=quota,
            counter=counter,
            retained_files=files,
            unreported=unreported,
            conditions=tuple(parsed.status.conditions),
            observed_generation=parsed.status.observed_generation,
            stored=parsed.status,
        )

    def with_counter(self, counter: Counter) -> Self:
        """The same with another counter."""
        return replace(self, counter=counter)

    def status(self) -> HugeTLBQuotaStatus:
        """The status that says what this object holds."""
        counter = self.counter
        return HugeTLBQuotaStatus(
            observed_generation=self.observed_generation,
            hard=counter.hard.to_resources(),
            used=counter.used.to_resources(),
            pods=counter.pods.named(counter.hard).to_resources(),
            retained=counter.retained.to_resources(),
            retained_files=[_retained_file_status(each) for each in self.retained_files],
            reservations=[_reservation_status(each) for each in counter.reservations],
            unreported=[_unreported_status(each) for each in self.unreported],
            summary=summary(counter),
            conditions=list(self.conditions),
        )

    @property
    def is_counted(self) -> bool:
        """Whether the controller has recounted it since its spec last changed."""
        return self.observed_generation >= self.generation

    @property
    def is_stored(self) -> bool:
        """Whether the status is in the API already, as it was read."""
        return self.status() == self.stored


def project_quota(raw: Mapping[str, Any]) -> QuotaObject | InvalidQuota:
    """For an informer: an invalid quota is kept as what is wrong with it."""
    try:
        return QuotaObject.from_json(raw)
    except InvalidQuota as invalid:
        return invalid


def status_body(quota: QuotaObject) -> dict[str, Any]:
    """The object to PUT to ``/status``: only the very object that was read is changed.

    The API server takes nothing but the status from it, and refuses it with a Conflict
    when resourceVersion or UID are no longer these.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "namespace": quota.key.namespace,
            "name": quota.key.name,
            "uid": quota.uid,
            "resourceVersion": quota.resource_version,
        },
        "status": quota.status().to_json(),
    }


def quota_from_spec(
    key: QuotaKey, spec: HugeTLBQuotaSpec, *, uid: str = "", terminating: bool = False
) -> Quota:
    """What the forest needs to know of a spec."""
    parent = spec.parent_ref
    return Quota(
        key=key,
        hard=Charge.from_resources(spec.hard),
        parent=None if parent is None else QuotaKey(parent.namespace, parent.name),
        pod_selector=_selector(spec.pod_selector),
        child_namespaces=(
            None if spec.child_namespaces is None else _selector(spec.child_namespaces)
        ),
        reparents=spec.deletion_policy == "Reparent",
        terminating=terminating,
        uid=uid,
    )


def summary(counter: Counter) -> str:
    """Use against limit by page size: ``2Mi: 64Mi/256Mi, 1Gi: 0/8Gi``."""
    return ", ".join(
        f"{size}: {quantity.render(amount)}"
        f"/{quantity.render(counter.hard[size]) if size in counter.hard else 'unlimited'}"
        for size, amount in counter.used.items()
    )


def explain(error: ValueError) -> str:
    """What is wrong with an object, field by field, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    return " ".join(
        ": ".join(
            filter(
                None, (".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, "))
            )
        )
        + ("" if each["msg"].endswith(".") else ".")
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    )


def _selector(selector: LabelSelector) -> Selector:
    return Selector.from_json(selector.to_json())


def _reservation(status: ReservationStatus) -> Reservation:
    expires = status.expires
    if expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    return Reservation(
        status.uid, status.pod, Charge.from_resources(status.charge), expires.astimezone(UTC)
    )


def _retained_file(status: RetainedFileStatus) -> RetainedFile:
    return RetainedFile(
        node=status.node,
        path=status.path,
        pod=status.pod,
        size=PageSize.from_resource(status.page_size),
        charged=quantity.parse(status.charged),
        quotas=frozenset(),  # known to the node's report; here only the quota itself matters
    )


def _retained_file_status(file: RetainedFile) -> RetainedFileStatus:
    return RetainedFileStatus(
        node=file.node,
        path=file.path,
        pod=file.pod,
        page_size=file.size.resource,
        charged=quantity.render(file.charged),
    )


def read_unreported(status: UnreportedStatus) -> Unreported:
    """An unreported pod of a quota's status.

    :raises ValueError: when its charge is none.
    """
    return Unreported(
        uid=status.uid,
        pod=status.pod,
        node=status.node,
        charge=Charge.from_resources(status.charge),
        quotas=frozenset(map(QuotaKey.parse, status.quotas)),
        cgroup=status.cgroup,
    )


def _unreported_status(pod: Unreported) -> UnreportedStatus:
    return UnreportedStatus(
        uid=pod.uid,
        pod=pod.pod,
        node=pod.node,
        charge=pod.charge.to_resources(),
        quotas=sorted(map(str, pod.quotas)),
        cgroup=pod.cgroup,
    )


def _reservation_status(reservation: Reservation) -> ReservationStatus:
    return ReservationStatus(
        uid=reservation.uid,
        pod=reservation.pod,
        charge=reservation.charge.to_resources(),
        expires=reservation.expires.astimezone(UTC),
    )
