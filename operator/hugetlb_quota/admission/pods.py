"""Decides whether a pod may be created, or relabelled, under the quotas that govern it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import shortfalls
from hugetlb_quota.accounting.demand import MalformedDemand, demand
from hugetlb_quota.accounting.forest import Detached, QuotaKey
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, Reservation, is_word
from hugetlb_quota.admission import chains, refusal
from hugetlb_quota.admission.batch import NoRoom, PlaceChanged, TooManyReservations
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.chains import Snapshot
from hugetlb_quota.admission.commit import Committer, Overloaded
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.review import (
    ALLOW,
    AdmissionRequest,
    Cause,
    Decision,
    MalformedReview,
    deny,
    mapping,
    resource_version,
    strings,
    text,
)
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.pods import CONFIG_MIRROR, FINISHED_PHASES
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.program import about

#: How long a request waits for the controller's first count of a quota, and how often
#: it looks, in seconds.
COUNT_TIMEOUT: Final = 3.0
COUNT_PERIOD: Final = 0.1
_NODES_GROUP: Final = "system:nodes"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a decision needs to know of the pod, and which request asks.

    ``since``: the resourceVersion of the pod that is changed, 0 for a new one. ``finished``:
    before the request. ``mirror``: it claims to show what a kubelet runs from elsewhere.
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

        :raises MalformedReview: for what no API server sends.
        """
        metadata = mapping(request.new, "metadata", "request.object")
        changes = request.operation == "UPDATE"
        old = mapping(request.old, "metadata", "request.oldObject") if changes else {}
        namespace, name = request.namespace_and_name(metadata)
        uid = text(metadata, "uid")
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
            finished=changes
            and mapping(request.old, "status", "request.oldObject").get("phase") in FINISHED_PHASES,
            mirror=CONFIG_MIRROR in mapping(metadata, "annotations", "request.object.metadata"),
            request=request.uid,
            since=resource_version(old),
        )

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class _Refusal(Exception):
    """Why the pod is refused by what is known: ``keys`` and ``namespaces`` are what that is.

    ``by``: the quotas that refuse; all of ``keys`` when empty.
    """

    message: str
    keys: frozenset[QuotaKey]
    namespaces: frozenset[str] = frozenset()
    by: tuple[QuotaKey, ...] = ()
    cause: Cause = "rule"


class PodAdmission:
    """Decides on pods; what it grants is reserved before it answers.

    It decides from a cache. A charge proves itself: see :meth:`_confirm`. A refusal, and
    that nothing governs a pod, are proved by reading.

    :param require_quota: refuse a pod that no quota governs.
    """

    def __init__(
        self,
        cache: QuotaCache,
        committer: Committer,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        lifetime: timedelta = RESERVATION_LIFETIME,
        require_quota: bool = False,
    ) -> None:
        self._require_quota = require_quota
        self._cache = cache
        self._committer = committer
        self._now = now
        self._lifetime = lifetime

    async def decide(self, request: AdmissionRequest, deadline: Deadline) -> Decision:
        """The decision on a CREATE or UPDATE of a pod.

        :raises ApiError: when the API can't be asked; TimeoutError is the caller's.
        :raises MalformedReview: when there is no pod in it.
        """
        if request.operation not in ("CREATE", "UPDATE"):
            return ALLOW
        pod = _Subject.of(request)
        # A finished pod takes no new pages; one that leaves holds what it has until it has left.
        if pod.finished:
            return ALLOW
        if pod.mirror and request.operation == "CREATE":
            # It shows what kubelet runs already from a file: refusing it would hide it, and
            # the recount counts it. Agents believe which cgroup it names, so nobody else may.
            kubelet = _NODES_GROUP in request.user_info.groups
            return ALLOW if kubelet else deny(refusal.forged_mirror(str(pod), CONFIG_MIRROR))
        try:
            wanted = _demand(request.new)
            if not wanted:
                return ALLOW
            await self._cache.ready()
            await self._admit(pod, wanted, deadline, dry_run=request.dry_run)
        except MalformedDemand as error:
            return deny(refusal.malformed_demand(str(pod), error))
        except _Refusal as refused:
            return deny(refused.message, by=refused.by or tuple(refused.keys), cause=refused.cause)
        except TooManyReservations as error:
            message = refusal.too_many_reservations(str(pod), error.counter)
            return deny(message, retry_after=5, by=(error.counter.quota,), cause="full")
        except Overloaded as error:
            message = refusal.overloaded(f"pod {pod}", error.waiting, error.seconds)
            return deny(message, retry_after=1, cause="overloaded")
        return ALLOW

    async def _admit(
        self, pod: _Subject, wanted: Charge, deadline: Deadline, *, dry_run: bool
    ) -> None:
        """Charge the pod to all that governs it.

        :raises _Refusal: going by what was read after the request came.
        """
        read: set[QuotaKey | str] = set()
        proved = False
        attempt = 1
        while True:
            try:
                chain = await self._counted(pod, deadline)
                if not chain:
                    if proved:
                        self._refuse_ungoverned(pod)
                        return
                    await self._cache.read_namespace(pod.namespace)
                    proved = True
                    continue
                if not pod.uid:
                    raise _Refusal(refusal.no_uid(str(pod)), frozenset())
                if not dry_run:
                    await self._charge(pod, wanted, chain, deadline, attempt)
                    return
                self._refuse_shortfalls(pod, wanted, chain)
                # Nothing is written that would prove it.
                keys = {quota.key for quota in chain}
                if proved and keys <= read:
                    return
                await self._cache.read_namespace(pod.namespace)
                await self._cache.read(keys)
                proved = True
                read |= keys
            except _Refusal as refused:
                if refused.keys | refused.namespaces <= read:
                    raise
                await self._cache.read(refused.keys, refused.namespaces)
                read |= refused.keys | refused.namespaces
            except PlaceChanged as changed:
                attempt += 1
                logger.info(
                    "Pod %s: HugeTLBQuota %s changed; deciding again.",
                    *(pod, changed),
                    extra=about(pod=pod, uid=pod.uid, quota=changed),
                )

    async def _charge(
        self,
        pod: _Subject,
        wanted: Charge,
        chain: tuple[QuotaObject, ...],
        deadline: Deadline,
        attempt: int,
    ) -> None:
        """Reserve on all of ``chain``, and make sure that this is what governs the pod.

        :param attempt: how often this request was decided on, this time included.
        :raises _Refusal: when a quota has no room, by what is known.
        :raises PlaceChanged: when another chain governs it; nothing is held then.
        """
        reservation = self._reservation(pod, wanted, deadline, attempt)
        try:
            version = await self._committer.charge(chain, reservation, deadline)
        except NoRoom as error:
            message = refusal.over_quota(str(pod), error.shortfalls, error.files, error.silent)
            raise _Refusal(message, frozenset(each.quota for each in error.shortfalls)) from error
        except InvalidQuota as error:
            raise _Refusal(
                refusal.invalid_quota(str(pod), error), frozenset([error.key])
            ) from error
        try:
            await self._confirm(pod, chain, version)
        except BaseException:
            self._committer.uncharge(chain, reservation)
            raise

    async def _confirm(self, pod: _Subject, chain: tuple[QuotaObject, ...], version: int) -> None:
        """The charge is its own fence.

        What was written was current. When the watch has reached that write, it has told of
        every quota, selector and parent that was written before: if still the same quotas
        govern the pod, no other did when the request came.

        :raises PlaceChanged: when others do.
        """
        try:
            await self._cache.wait_for(version)
        except errors.Gone as error:
            raise PlaceChanged("of a lost history") from error
        try:
            now = self._to_charge(pod)
        except (_Refusal, InvalidQuota) as error:
            raise PlaceChanged(str(chain[0].key)) from error
        if [(quota.key, quota.uid) for quota in now] != [(each.key, each.uid) for each in chain]:
            raise PlaceChanged(str(chain[0].key))

    async def _counted(self, pod: _Subject, deadline: Deadline) -> tuple[QuotaObject, ...]:
        """The quotas to charge, once the controller has counted what runs under them.

        :raises _Refusal: by what is known.
        """
        while True:
            chain = self._to_charge(pod)
            for quota in chain:
                if quota.quota.terminating:
                    message = refusal.terminating(str(pod), quota.key)
                    raise _Refusal(message, frozenset([quota.key]))
            uncounted = frozenset(quota.key for quota in chain if not quota.is_counted)
            if not uncounted:
                return chain
            # What runs under it already is not in its counter. A quota and a pod in
            # one `kubectl apply` come here, so it is worth a moment.
            if deadline.seconds - deadline.left() >= min(COUNT_TIMEOUT, deadline.seconds / 2):
                message = refusal.uncounted(str(pod), sorted(uncounted))
                raise _Refusal(message, uncounted, cause="uncounted")
            await asyncio.sleep(COUNT_PERIOD)

    def _to_charge(self, pod: _Subject) -> tuple[QuotaObject, ...]:
        """The quotas that are to be charged, each before its ancestors.

        Of a relabelled pod only those it was not charged to before.

        :raises _Refusal: when a chain does not reach its root, or can't be understood.
        """
        try:
            now = self._selecting(pod.namespace, pod.labels)
            before = (
                {} if pod.old_labels is None else self._selecting(pod.namespace, pod.old_labels)
            )
            new = sorted(now.keys() - before.keys())
            if not new:
                return ()
            snapshot = chains.climb(self._cache, {**now, **before}.values())
        except InvalidQuota as error:
            message = refusal.invalid_quota(str(pod), error)
            raise _Refusal(message, frozenset([error.key])) from error
        try:
            union = snapshot.forest.union_of_chains(new)
        except Detached as error:
            raise _Refusal(
                refusal.detached(str(pod), error),
                frozenset([*snapshot.quotas, error.parent]),
                frozenset([error.quota.namespace]),
                by=(error.quota,),
            ) from error
        charged = _attached(snapshot, before)
        return tuple(snapshot.quotas[each.key] for each in union if each.key not in charged)

    def _selecting(self, namespace: str, labels: Mapping[str, str]) -> dict[QuotaKey, QuotaObject]:
        found = {}
        for quota in self._cache.in_namespace(namespace):
            if isinstance(quota, InvalidQuota):
                raise quota  # it may be the one that matters
            if quota.quota.pod_selector.matches(labels):
                found[quota.key] = quota
        return found

    def _refuse_ungoverned(self, pod: _Subject) -> None:
        """:raises _Refusal: where a quota is required, and the pod has none, or leaves its last."""
        if not self._require_quota or self._selecting(pod.namespace, pod.labels):
            return
        if pod.old_labels is None or self._selecting(pod.namespace, pod.old_labels):
            raise _Refusal(refusal.ungoverned(str(pod), pod.namespace), frozenset())

    def _refuse_shortfalls(
        self, pod: _Subject, wanted: Charge, chain: tuple[QuotaObject, ...]
    ) -> None:
        counters = (quota.counter for quota in chain)
        if short := shortfalls(counters, wanted, pod.uid):
            files = {quota.key: quota.retained_files for quota in chain}
            message = refusal.over_quota(str(pod), short, files)
            raise _Refusal(message, frozenset(each.quota for each in short))

    def _reservation(
        self, pod: _Subject, wanted: Charge, deadline: Deadline, attempt: int
    ) -> Reservation:
        # Each attempt reserves anew: what the one before reserved is being taken back, and may
        # look as if it were held still.
        request = pod.request if attempt == 1 else f"{pod.request}.{attempt}"
        made = Reservation(
            uid=pod.uid,
            pod=str(pod),
            charge=wanted,
            expires=deadline.request_ends(self._now(), self._lifetime),
            request=request,
            since=pod.since,
        )
        # Each quota of the chain asks for the line several times.
        return replace(made, text=made.line)


def _demand(raw: Mapping[str, Any]) -> Charge:
    """What the pod asks for.

    :raises MalformedDemand: when that can't be counted.
    :raises MalformedReview: for what no API server sends.
    """
    try:
        return demand(mapping(raw, "spec", "request.object"))
    except (TypeError, AttributeError) as error:
        raise MalformedReview(f"request.object.spec is no pod's: {error}.") from error


def _attached(snapshot: Snapshot, keys: Iterable[QuotaKey]) -> set[QuotaKey]:
    return {link.key for key in keys for link in snapshot.forest.attached(key)}
