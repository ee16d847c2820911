"""Decides whether a pod may be created, or relabelled, under the quotas that govern it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import shortfalls
from hugetlb_quota.accounting.demand import MalformedDemand, demand
from hugetlb_quota.accounting.forest import Detached, QuotaKey
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, Reservation, is_word
from hugetlb_quota.admission import chains, refusal
from hugetlb_quota.admission.chains import Snapshot
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.reservations import (
    NoRoom,
    PlaceChanged,
    Reservations,
    TooManyReservations,
)
from hugetlb_quota.admission.review import (
    ALLOW,
    AdmissionRequest,
    Decision,
    MalformedReview,
    deny,
    mapping,
    strings,
    text,
)
from hugetlb_quota.kube.pods import CONFIG_MIRROR, FINISHED_PHASES
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject

#: How long a request waits for the controller's first count of a quota, and how often
#: it looks, in seconds.
COUNT_TIMEOUT: Final = 3.0
COUNT_PERIOD: Final = 0.1
_NODES_GROUP: Final = "system:nodes"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a decision needs to know of the pod, and which request asks.

    ``since``: the resourceVersion of the pod that is changed, 0 for a new one.
    """

    uid: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    old_labels: Mapping[str, str] | None
    settled: bool
    mirror: bool
    request: str
    since: int

    @classmethod
    def of(cls, request: AdmissionRequest) -> Self:
        """The pod of ``request``.

        :raises MalformedReview: for what no API server sends.
        """
        metadata = mapping(request.new, "metadata", "request.object")
        status = mapping(request.new, "status", "request.object")
        changes = request.operation == "UPDATE"
        old = mapping(request.old, "metadata", "request.oldObject") if changes else {}
        name = text(metadata, "name") or text(metadata, "generateName") or request.name
        uid = text(metadata, "uid")
        namespace = request.namespace or text(metadata, "namespace")
        if not (name and namespace):
            raise MalformedReview("the pod has no namespace and name.")
        for identity in filter(None, (uid, request.uid)):
            if not is_word(identity):
                raise MalformedReview(f"{identity[:200]!r} is no UID.")
        return cls(
            uid=uid,
            namespace=namespace,
            name=name,
            labels=strings(metadata, "labels", "request.object.metadata"),
            old_labels=strings(old, "labels", "request.oldObject.metadata") if changes else None,
            settled=status.get("phase") in FINISHED_PHASES or "deletionTimestamp" in metadata,
            mirror=CONFIG_MIRROR in mapping(metadata, "annotations", "request.object.metadata")
            and _NODES_GROUP in request.user_info.groups,
            request=request.uid,
            since=_version(text(old, "resourceVersion")),
        )

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class PodAdmission:
    """Decides on pods; what it grants is reserved before it answers."""

    def __init__(
        self, api: chains.Api, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._api = api
        self._now = now
        self._reservations = Reservations(api)

    async def close(self) -> None:
        """Wait until all that was refused is taken back."""
        await self._reservations.close()

    async def decide(self, request: AdmissionRequest, deadline: Deadline) -> Decision:
        """The decision on a CREATE or UPDATE of a pod.

        :raises ApiError: when the API can't be asked; TimeoutError is the caller's.
        :raises MalformedReview: when there is no pod in it.
        """
        if request.operation not in ("CREATE", "UPDATE"):
            return ALLOW
        pod = _Subject.of(request)
        # A finished or leaving pod takes no new pages. A mirror pod shows what kubelet
        # runs already from a file: refusing it would hide it, and the recount counts it.
        if pod.settled or pod.mirror:
            return ALLOW
        try:
            wanted = _demand(request.new)
            if not wanted:
                return ALLOW
            return await self._decide(pod, wanted, deadline, dry_run=bool(request.dry_run))
        except MalformedDemand as error:
            return deny(refusal.malformed_demand(str(pod), error))
        except InvalidQuota as error:
            return deny(refusal.invalid_quota(str(pod), error))
        except Detached as error:
            return deny(refusal.detached(str(pod), error))
        except NoRoom as error:
            return deny(refusal.over_quota(str(pod), error.shortfalls, error.files))
        except TooManyReservations as error:
            return deny(refusal.too_many_reservations(str(pod), error.counter))

    async def _decide(
        self, pod: _Subject, wanted: Charge, deadline: Deadline, *, dry_run: bool
    ) -> Decision:
        while True:
            chain = await self._to_charge(pod, deadline)
            if not chain:
                return ALLOW
            if not pod.uid:
                return deny(refusal.no_uid(str(pod)))
            for quota in chain:
                if quota.quota.terminating:
                    return deny(refusal.terminating(str(pod), quota.key))
            if uncounted := [quota.key for quota in chain if not quota.is_counted]:
                # What runs under it already is not in its counter. A quota and a pod in
                # one `kubectl apply` come here, so it is worth a moment.
                if deadline.seconds - deadline.left() < min(COUNT_TIMEOUT, deadline.seconds / 2):
                    await asyncio.sleep(COUNT_PERIOD)
                    continue
                return deny(refusal.uncounted(str(pod), uncounted))
            # All of them first, so that the refusal names every quota that refuses.
            counters = (quota.counter for quota in chain)
            if short := shortfalls(counters, wanted, pod.uid):
                await self._forget(pod, chain, wanted, deadline, dry_run=dry_run)
                raise NoRoom(short, {quota.key: quota.retained_files for quota in chain})
            if dry_run:
                return ALLOW
            try:
                await self._reservations.reserve(
                    chain, self._reservation(pod, wanted, deadline), deadline
                )
            except PlaceChanged as changed:
                logger.info("pod %s: HugeTLBQuota %s changed; deciding again", pod, changed)
                continue
            return ALLOW

    async def _forget(
        self,
        pod: _Subject,
        chain: tuple[QuotaObject, ...],
        wanted: Charge,
        deadline: Deadline,
        *,
        dry_run: bool,
    ) -> None:
        """Take back what an earlier attempt of this very request may have left."""
        reserved = self._reservation(pod, wanted, deadline)
        held = [quota.key for quota in chain if quota.counter.holds(reserved.id)]
        if held and not dry_run:
            await self._reservations.release(held, reserved, deadline)

    async def _to_charge(self, pod: _Subject, deadline: Deadline) -> tuple[QuotaObject, ...]:
        """The quotas that are to be charged, each before its ancestors.

        Of a relabelled pod only those it was not charged to before.

        :raises Detached: when a chain does not reach its root.
        """
        quotas = await chains.read_namespace(self._api, pod.namespace, deadline)
        now = _selecting(quotas, pod.labels)
        before = set() if pod.old_labels is None else _selecting(quotas, pod.old_labels)
        if not now - before:
            return ()
        snapshot = await chains.climb(self._api, quotas, now | before, deadline)
        charged = _attached(snapshot, before)
        union = snapshot.forest.union_of_chains(sorted(now - before))
        return tuple(snapshot.quotas[each.key] for each in union if each.key not in charged)

    def _reservation(self, pod: _Subject, wanted: Charge, deadline: Deadline) -> Reservation:
        # From the last moment at which this answer may go out.
        lifetime = RESERVATION_LIFETIME + timedelta(seconds=deadline.left())
        return Reservation(
            uid=pod.uid,
            pod=str(pod),
            charge=wanted,
            expires=self._now() + lifetime,
            request=pod.request,
            since=pod.since,
        )


def _demand(raw: Mapping[str, Any]) -> Charge:
    """What the pod asks for.

    :raises MalformedDemand: when that can't be counted.
    :raises MalformedReview: for what no API server sends.
    """
    try:
        return demand(mapping(raw, "spec", "request.object"))
    except (TypeError, AttributeError) as error:
        raise MalformedReview(f"request.object.spec is no pod's: {error}.") from error


def _version(resource_version: str) -> int:
    return int(resource_version) if resource_version.isascii() and resource_version.isdigit() else 0


def _selecting(quotas: tuple[QuotaObject, ...], labels: Mapping[str, Any]) -> set[QuotaKey]:
    return {each.key for each in quotas if each.quota.pod_selector.matches(labels)}


def _attached(snapshot: Snapshot, keys: set[QuotaKey]) -> set[QuotaKey]:
    return {link.key for key in keys for link in snapshot.forest.attached(key)}
