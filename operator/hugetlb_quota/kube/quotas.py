"""Read a HugeTLBQuota from the API, and write its status.

The spec is read strictly, because an unknown field may matter. The status is read leniently: an
unknown field of a newer release is kept, and a field that can't be read is ignored until its
owner writes it again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final, Self, TypeVar

from pydantic import ValidationError

from hugetlb_quota import duration, quantity
from hugetlb_quota.accounting import reservation
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.model import Condition, LabelSelector, Model, read_leniently
from hugetlb_quota.api.quota import (
    DELETED,
    KIND,
    NODES_REPORTING,
    HugeTLBQuotaSpec,
    RetainedFileStatus,
    RetainedSpec,
)
from hugetlb_quota.page_size import PageSize

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
class _AsRead:
    """The controller's fields of the status, as read; None for a charge that can't be read."""

    pods: Charge | None
    retained: Charge | None
    retained_files: tuple[RetainedFile, ...]
    conditions: tuple[Condition, ...]


_NOTHING_READ: Final = _AsRead(Charge(), Charge(), (), ())


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
    as_read: _AsRead = field(default=_NOTHING_READ, compare=False, repr=False)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], earlier: QuotaObject | None = None) -> Self:
        """From the API server's JSON.

        :param earlier: an earlier version of the object; an unchanged spec is not parsed again.
        :raises InvalidQuota: if the spec is invalid.
        """
        metadata = raw.get("metadata") or {}
        key = QuotaKey(metadata.get("namespace") or "", metadata.get("name") or "")
        quota = _read_spec(key, metadata, raw.get("spec"), earlier)
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
                gone = metadata.get("deletionTimestamp") is not None
                quota = replace(earlier.quota, terminating=gone)
            else:
                quota = _what_can_be_read(error.key, metadata, raw.get("spec"))
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
        read = _read_status(stored, earlier)
        reservations, unreadable = reservation.parse_all(stored.get("reservations"))
        if quota.attached_to != (attached_to := _read_attached_to(stored)):
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
            observed_generation=_integer(stored.get("observedGeneration")),
            counted_under=_integer(stored.get("countedUnder")),
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
        write("retainedFiles", self.retained_files, read.retained_files, _file_statuses)
        write("conditions", self.conditions, read.conditions, _to_json)
        if self.quota.attached_to != _read_attached_to(self.stored):
            status["attachedTo"] = str(self.quota.attached_to or "")
        if self.observed_generation != _integer(self.stored.get("observedGeneration")):
            status["observedGeneration"] = self.observed_generation
        if self.counted_under != _integer(self.stored.get("countedUnder")):
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


def quota_from_spec(
    key: QuotaKey,
    spec: HugeTLBQuotaSpec,
    *,
    uid: str = "",
    generation: int = 1,
    terminating: bool = False,
) -> Quota:
    """The forest's view of a spec."""
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
        reclaim_after=_reclaim_after(spec.retained),
        terminating=terminating,
        uid=uid,
        generation=generation,
    )


def _reclaim_after(retained: RetainedSpec | None) -> timedelta | None:
    if retained is None or retained.policy != "Truncate":
        return None
    return duration.parse(retained.after)


def summary(used: Charge, hard: Charge) -> str:
    """Use and limit of each page size: ``2Mi: 64Mi/256Mi, 1Gi: 0/8Gi``."""
    return ", ".join(
        f"{size}: {quantity.render(amount)}"
        f"/{quantity.render(hard[size]) if size in hard else 'unlimited'}"
        for size, amount in used.items()
    )


def explain(error: ValueError, *where: str) -> str:
    """The errors of each field in one line; ``where`` is the path of the validated part."""
    if not isinstance(error, ValidationError):
        return str(error)
    return " ".join(
        ": ".join(
            filter(
                None,
                (
                    ".".join(map(str, (*where, *each["loc"]))),
                    each["msg"].removeprefix("Value error, "),
                ),
            )
        )
        + ("" if each["msg"].endswith(".") else ".")
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    )


def _selector(selector: LabelSelector) -> Selector:
    return Selector.from_json(selector.to_json())


def _read_spec(
    key: QuotaKey, metadata: Mapping[str, Any], spec: Any, earlier: QuotaObject | None
) -> Quota:
    uid = metadata.get("uid") or ""
    generation = _integer(metadata.get("generation")) or 1
    terminating = metadata.get("deletionTimestamp") is not None
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
        parsed = HugeTLBQuotaSpec.model_validate(spec)
        return quota_from_spec(key, parsed, uid=uid, generation=generation, terminating=terminating)
    except ValueError as error:  # pydantic's ValidationError is one
        version = _integer(metadata.get("resourceVersion"))
        raise InvalidQuota(key, version, explain(error, "spec")) from error


def _what_can_be_read(key: QuotaKey, metadata: Mapping[str, Any], spec: Any) -> Quota:
    """The valid parts of a spec; an invalid podSelector selects every pod."""
    parts: Json = {"hard": {}}
    for name, part in spec.items() if isinstance(spec, dict) else ():
        try:
            HugeTLBQuotaSpec.model_validate({"hard": {}, name: part})
        except ValueError:
            continue
        parts[name] = part
    return quota_from_spec(
        key,
        HugeTLBQuotaSpec.model_validate(parts),
        uid=metadata.get("uid") or "",
        generation=_integer(metadata.get("generation")) or 1,
        terminating=metadata.get("deletionTimestamp") is not None,
    )


def _read_status(stored: Mapping[str, Any], earlier: QuotaObject | None) -> _AsRead:
    """The controller's fields; if they are those of ``earlier``, they are not parsed again."""
    fields = ("pods", "retained", "retainedFiles", "conditions")
    if earlier is not None and all(stored.get(name) == earlier.stored.get(name) for name in fields):
        return earlier.as_read
    return _AsRead(
        pods=_read_charge(stored.get("pods")),
        retained=_read_charge(stored.get("retained")),
        retained_files=_each(stored.get("retainedFiles"), _read_file),
        conditions=_each(stored.get("conditions"), _read_condition),
    )


def _read_attached_to(stored: Mapping[str, Any]) -> QuotaKey | None:
    text = stored.get("attachedTo")
    return QuotaKey.parse(text) if isinstance(text, str) and text else None


def _read_charge(resources: Any) -> Charge | None:
    """The charge, or None if it can't be read."""
    try:
        return Charge.from_sums(resources or {})
    except (ValueError, TypeError, AttributeError):
        return None


def _each(items: Any, read: Callable[[Any], _T]) -> tuple[_T, ...]:
    """The items that can be read."""
    found = []
    for item in items if isinstance(items, list) else ():
        try:
            found.append(read(item))
        except ValueError:  # the controller owns the field and will write it again
            continue
    return tuple(found)


def _integer(value: Any) -> int:
    """``value`` as an integer; 0 if it is not one."""
    try:
        return int(value or 0)
    except (ValueError, TypeError):
        return 0


def _read_condition(raw: Any) -> Condition:
    try:
        return _shared_condition(tuple(raw.items()))
    except (AttributeError, TypeError):  # not an object, or a value that has no hash
        return read_leniently(Condition, raw)


@lru_cache(maxsize=4096)
def _shared_condition(fields: tuple[tuple[str, Any], ...]) -> Condition:
    """One object for equal conditions: many quotas have equal conditions."""
    return read_leniently(Condition, dict(fields))


def _to_json(models: tuple[Model, ...]) -> list[Json]:
    return [each.to_json() for each in models]


def _read_file(raw: Any) -> RetainedFile:
    status = read_leniently(RetainedFileStatus, raw)
    return RetainedFile(
        node=status.node,
        path=status.path,
        pod=status.pod,
        size=PageSize.from_resource(status.page_size),
        charged=quantity.parse_sum(status.charged),
        quotas=frozenset(),  # the status does not say which quotas are charged directly
    )


def _file_statuses(files: tuple[RetainedFile, ...]) -> list[Json]:
    return _to_json(
        tuple(
            RetainedFileStatus(
                node=file.node,
                path=file.path,
                pod=file.pod,
                page_size=file.size.resource,
                charged=quantity.render(file.charged),
            )
            for file in files
        )
    )
