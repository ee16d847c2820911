"""Read a HugeTLBQuota from the API, and write its status.

The spec is read strictly, the status leniently. An unknown field of a newer release in the
status is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

from hugetlb_quota.accounting import reservation
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.model import Condition
from hugetlb_quota.api.quota import DELETED, KIND, NODES_REPORTING
from hugetlb_quota.kube.quota_spec import read_spec, read_valid_parts
from hugetlb_quota.kube.quota_status import (
    NOTHING_READ,
    ControllerFields,
    has_same_controller_fields,
    read_attached_to,
    read_controller_fields,
    read_integer,
    render_files,
    render_models,
    summary,
)

_T = TypeVar("_T")
Json = dict[str, Any]


class InvalidQuota(ValueError):
    """The spec of a HugeTLBQuota is invalid, so admission admits nothing under the quota.

    The CRD and the webhook refuse such a quota, but a quota can be older than they are.
    """

    reason = "Invalid"

    def __init__(self, key: QuotaKey, resource_version: int, why: str) -> None:
        super().__init__(f"HugeTLBQuota {key} is invalid: {why}")
        self.key = key
        self.resource_version = resource_version
        self.why = why


@dataclass(frozen=True, slots=True)
class QuotaObject:
    """A HugeTLBQuota as read or as the programs will write it.

    To change the status, change ``counter`` (:meth:`with_counter`), ``conditions`` or
    ``observed_generation`` (``dataclasses.replace``); then :meth:`status` is the new status.
    ``counted_under``: the term of the last count. ``invalid``: why the spec is invalid, else "";
    then ``quota`` has only the valid parts, and nobody may write the object.
    ``labelled``: whether the object has the label of deleted quotas.
    """

    key: QuotaKey
    uid: str
    resource_version: str
    generation: int
    quota: Quota
    counter: Counter
    retained_files: tuple[RetainedFile, ...] = ()
    conditions: tuple[Condition, ...] = ()
    observed_generation: int = 0
    counted_under: int = 0
    invalid: str = ""
    finalizers: tuple[str, ...] = ()
    labelled: bool = False
    spec: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    stored: Mapping[str, Any] = field(default_factory=dict, compare=False)
    as_read: ControllerFields = field(default=NOTHING_READ, compare=False, repr=False)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], earlier: QuotaObject | None = None) -> Self:
        """From the API server's JSON.

        :param earlier: an earlier version of the object; an unchanged spec is not parsed again.
        :raises InvalidQuota: if the spec is invalid.
        """
        metadata = raw.get("metadata") or {}
        key = QuotaKey(metadata.get("namespace") or "", metadata.get("name") or "")
        quota = _read_quota(key, metadata, raw.get("spec"), earlier)
        return cls._of(raw, metadata, quota, earlier)

    @classmethod
    def to_count(cls, raw: Mapping[str, Any], earlier: QuotaObject | None = None) -> Self:
        """Like :meth:`from_json`, for the controller, which must count an invalid quota too.

        A quota with an invalid spec has the last valid spec (that of ``earlier``) or, without
        ``earlier``, the valid parts of its spec.
        """
        try:
            return cls.from_json(raw, earlier)
        except InvalidQuota as error:
            metadata = raw["metadata"]
            if earlier is not None and earlier.uid == (metadata.get("uid") or ""):
                quota = replace(earlier.quota, terminating=_is_terminating(metadata))
            else:
                quota = read_valid_parts(
                    error.key,
                    raw.get("spec"),
                    uid=metadata.get("uid") or "",
                    generation=_generation(metadata),
                    terminating=_is_terminating(metadata),
                )
            return replace(cls._of(raw, metadata, quota, earlier), invalid=error.why)

    @classmethod
    def _of(
        cls,
        raw: Mapping[str, Any],
        metadata: Mapping[str, Any],
        quota: Quota,
        earlier: QuotaObject | None,
    ) -> Self:
        key = quota.key
        status = raw.get("status")
        stored: Mapping[str, Any] = status if isinstance(status, dict) else {}
        # Unchanged fields are not parsed again.
        if earlier is not None and has_same_controller_fields(stored, earlier.stored):
            read = earlier.as_read
        else:
            read = read_controller_fields(stored)
        reservations, unreadable = reservation.parse_all(stored.get("reservations"))
        if quota.attached_to != (attached_to := read_attached_to(stored)):
            quota = replace(quota, attached_to=attached_to)
        counter = Counter(
            quota=key,
            hard=quota.hard,
            pods=read.pods or Charge(),
            retained=read.retained or Charge(),
            reservations=reservations,
            unreadable=unreadable,
        )
        return cls(
            key=key,
            uid=quota.uid,
            resource_version=metadata.get("resourceVersion") or "",
            generation=quota.generation,
            quota=quota,
            counter=counter,
            retained_files=read.retained_files,
            conditions=read.conditions,
            observed_generation=read_integer(stored.get("observedGeneration")),
            counted_under=read_integer(stored.get("countedUnder")),
            finalizers=tuple(map(sys.intern, metadata.get("finalizers") or ())),
            labelled=DELETED in (metadata.get("labels") or ()),
            spec=raw.get("spec"),
            stored=stored,
            as_read=read,
        )

    def with_counter(self, counter: Counter) -> Self:
        """A copy with another counter."""
        return replace(self, counter=counter)

    def attached(self, to: QuotaKey | None) -> Self:
        """A copy that is attached to the parent ``to``."""
        if to == self.quota.attached_to:
            return self
        return replace(self, quota=replace(self.quota, attached_to=to))

    def status(self) -> Json:
        """The new status as JSON.

        A field that did not change stays as stored, also a field of a newer release.
        """
        counter, read = self.counter, self.as_read
        used = counter.used
        status: Json = {
            **self.stored,
            "hard": counter.hard.to_resources(),
            "used": used.to_resources(),
            "reservations": [*counter.unreadable, *(each.line for each in counter.reservations)],
            "summary": summary(used, counter.hard),
        }

        def write(name: str, now: _T, before: _T | None, render: Callable[[_T], Any]) -> None:
            if now != before or name not in self.stored:
                status[name] = render(now)

        write("pods", counter.pods.named(counter.hard), read.pods, Charge.to_resources)
        write("retained", counter.retained, read.retained, Charge.to_resources)
        write("retainedFiles", self.retained_files, read.retained_files, render_files)
        write("conditions", self.conditions, read.conditions, render_models)
        if self.quota.attached_to != read_attached_to(self.stored):
            status["attachedTo"] = str(self.quota.attached_to or "")
        if self.observed_generation != read_integer(self.stored.get("observedGeneration")):
            status["observedGeneration"] = self.observed_generation
        if self.counted_under != read_integer(self.stored.get("countedUnder")):
            status["countedUnder"] = str(self.counted_under)
        return status

    @property
    def is_readable(self) -> bool:
        """Whether all charges in the status can be read."""
        read = self.as_read
        return read.pods is not None and read.retained is not None and not self.counter.unreadable

    @property
    def is_counted(self) -> bool:
        """Whether the controller has counted the quota since the spec last changed."""
        return self.observed_generation >= self.generation and self.is_readable

    @property
    def silence(self) -> str:
        """The message of a False NodesReporting condition; "" if no charge waits for a report."""
        for condition in self.conditions:
            if condition.type == NODES_REPORTING and condition.status == "False":
                return condition.message
        return ""

    @property
    def is_stored(self) -> bool:
        """Whether the new status is equal to the status that was read."""
        return self.status() == self.stored


def project_quota(
    raw: Mapping[str, Any], earlier: QuotaObject | InvalidQuota | None = None
) -> QuotaObject | InvalidQuota:
    """Project a quota for an informer; for an invalid quota, the error is the value.

    :param earlier: an earlier version of the object; an unchanged spec is not parsed again.
    """
    try:
        return QuotaObject.from_json(raw, earlier if isinstance(earlier, QuotaObject) else None)
    except InvalidQuota as invalid:
        return invalid


def status_body(quota: QuotaObject) -> dict[str, Any]:
    """The object to PUT to ``/status``.

    The API server uses only the status, and returns Conflict if the resourceVersion or the UID
    has changed since the read.
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
        "status": quota.status(),
    }


def _read_quota(
    key: QuotaKey, metadata: Mapping[str, Any], spec: Any, earlier: QuotaObject | None
) -> Quota:
    """The quota of the spec; an unchanged spec is not parsed again."""
    uid, generation = metadata.get("uid") or "", _generation(metadata)
    terminating = _is_terminating(metadata)
    if (
        earlier is not None
        and not earlier.invalid
        and (earlier.uid, earlier.generation) == (uid, generation)
        and earlier.quota.terminating == terminating
        # After a restore of etcd, the same generation can have another spec.
        and earlier.spec == spec
    ):
        return earlier.quota
    try:
        return read_spec(key, spec, uid=uid, generation=generation, terminating=terminating)
    except ValueError as error:
        version = read_integer(metadata.get("resourceVersion"))
        raise InvalidQuota(key, version, str(error)) from error


def _generation(metadata: Mapping[str, Any]) -> int:
    return read_integer(metadata.get("generation")) or 1


def _is_terminating(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("deletionTimestamp") is not None
