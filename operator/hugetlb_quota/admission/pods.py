"""Decide whether a pod may be created or updated, and reserve its demand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import shortfalls
from hugetlb_quota.accounting.demand import MalformedDemand
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, Reservation
from hugetlb_quota.admission import pod_sentences, request_sentences
from hugetlb_quota.admission.batch import ChainChanged, NoRoom, TooManyReservations
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.commit import Committer, Overloaded
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.governing import PodRefused, governing_quotas, quotas_to_charge
from hugetlb_quota.admission.requested_pod import RequestedPod, demand_of
from hugetlb_quota.admission.review import ALLOW, AdmissionRequest, Decision, deny
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.pods import CONFIG_MIRROR
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.program import about

#: How long a request waits for the controller's first count of a quota, and how often the request
#: looks for the count, in seconds.
COUNT_TIMEOUT: Final = 3.0
COUNT_PERIOD: Final = 0.1
#: The group of the kubelets' users.
_NODES_GROUP: Final = "system:nodes"

logger = logging.getLogger(__name__)


class PodAdmission:
    """Decides on pods from the cache, and reserves the demand of an allowed pod.

    A charge is its own proof that the cache was new enough (:meth:`_confirm`). Before a refusal,
    and before a pod is treated as ungoverned, the API server is read.

    :param now: returns the present time.
    :param lifetime: how long a create request may run after admission's answer.
    :param require_quota: whether to refuse a pod with a demand that no quota governs.
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

        :raises ApiError: if a read or a write fails.
        :raises MalformedReview: if the request has no valid pod.
        """
        if request.operation not in ("CREATE", "UPDATE"):
            return ALLOW
        pod = RequestedPod.of(request)
        # A finished pod takes no new pages. A pod that is being deleted may still take pages.
        if pod.finished and not self._require_quota:
            return ALLOW
        if pod.mirror and request.operation == "CREATE":
            # A mirror pod shows a static pod that kubelet runs already, and the controller counts
            # it. Agents trust its annotation, so only a kubelet may create it.
            is_kubelet = _NODES_GROUP in request.user_info.groups
            return (
                ALLOW if is_kubelet else deny(pod_sentences.forged_mirror(str(pod), CONFIG_MIRROR))
            )
        try:
            demand = demand_of(request)
            if not demand:
                return ALLOW
            await self._cache.ready()
            await self._admit(pod, demand, deadline, dry_run=request.dry_run)
        except MalformedDemand as error:
            return deny(pod_sentences.malformed_demand(str(pod), error))
        except PodRefused as refused:
            by = refused.by or tuple(refused.quotas)
            return deny(refused.message, by=by, cause=refused.cause)
        except TooManyReservations as error:
            message = pod_sentences.too_many_reservations(str(pod), error.counter)
            return deny(message, retry_after=5, by=(error.counter.quota,), cause="full")
        except Overloaded as error:
            message = request_sentences.overloaded(f"pod {pod}", error.waiting, error.seconds)
            return deny(message, retry_after=1, cause="overloaded")
        return ALLOW

    async def _admit(
        self, pod: RequestedPod, demand: Charge, deadline: Deadline, *, dry_run: bool
    ) -> None:
        """Charge the pod to all quotas on its chains; returns if the pod is allowed.

        :raises PodRefused: if the pod is refused, also after a read of the API server.
        """
        # The quotas and the namespaces' labels that were read for this request, and whether all
        # quotas of the pod's namespace were read.
        read: set[QuotaKey | str] = set()
        namespace_read = False
        attempt = 1
        while True:
            try:
                # The pages that a finished pod left need no room, but they need a quota that pays.
                chain = () if pod.finished else await self._counted(pod, deadline)
                if not chain:
                    if namespace_read:
                        self._refuse_ungoverned(pod)
                        return
                    await self._cache.read_namespace(pod.namespace)
                    namespace_read = True
                    continue
                if not pod.uid:
                    raise PodRefused(pod_sentences.no_uid(str(pod)), frozenset())
                if not dry_run:
                    await self._charge(pod, demand, chain, deadline, attempt)
                    return
                self._refuse_shortfalls(pod, demand, chain)
                # A dry run writes nothing that would prove that the cache is new enough.
                keys = {quota.key for quota in chain}
                if namespace_read and keys <= read:
                    return
                await self._cache.read_namespace(pod.namespace)
                await self._cache.read(keys)
                namespace_read = True
                read |= keys
            except PodRefused as refused:
                if refused.quotas | refused.namespaces <= read:
                    raise
                await self._cache.read(refused.quotas, refused.namespaces)
                read |= refused.quotas | refused.namespaces
            except ChainChanged as changed:
                attempt += 1
                logger.info(
                    "Pod %s: HugeTLBQuota %s changed; deciding again.",
                    *(pod, changed),
                    extra=about(pod=pod, uid=pod.uid, quota=changed),
                )

    async def _charge(
        self,
        pod: RequestedPod,
        demand: Charge,
        chain: tuple[QuotaObject, ...],
        deadline: Deadline,
        attempt: int,
    ) -> None:
        """Reserve the demand on all of ``chain``, and confirm that no quota was missed.

        :param attempt: the number of this attempt; the first is 1.
        :raises PodRefused: if a quota has no room.
        :raises ChainChanged: if other quotas govern the pod now; then nothing stays reserved.
        """
        reservation = self._reservation(pod, demand, attempt)
        try:
            version = await self._committer.charge(chain, reservation, deadline)
        except NoRoom as error:
            raise PodRefused.over_quota(pod, error) from error
        except InvalidQuota as error:
            raise PodRefused.by_invalid_quota(pod, error) from error
        try:
            await self._confirm(pod, chain, version)
        except BaseException:
            self._committer.uncharge(chain, reservation)
            raise

    async def _confirm(
        self, pod: RequestedPod, chain: tuple[QuotaObject, ...], version: int
    ) -> None:
        """Confirm that the charge went to all quotas that govern the pod.

        The compare-and-swap write was made on the current quota. When the watch has reached the
        write, the cache has every quota, selector and parent that was written before. If the same
        quotas still govern the pod, no other quota governed the pod when the request came.

        :param version: the highest resourceVersion of the writes.
        :raises ChainChanged: if other quotas govern the pod.
        """
        changed = ChainChanged(str(chain[0].key))
        try:
            await self._cache.wait_for(version)
            now = quotas_to_charge(self._cache, pod)
        except (errors.Gone, PodRefused) as error:
            raise changed from error
        if [(quota.key, quota.uid) for quota in now] != [(each.key, each.uid) for each in chain]:
            raise changed

    async def _counted(self, pod: RequestedPod, deadline: Deadline) -> tuple[QuotaObject, ...]:
        """The quotas to charge; waits until the controller has counted them.

        The counter of an uncounted quota lacks the pods that run already. The wait helps a pod
        that comes in one ``kubectl apply`` with its quota.

        :raises PodRefused: if a quota is being deleted, or is not counted in time.
        """
        while True:
            chain = quotas_to_charge(self._cache, pod)
            for quota in chain:
                if quota.quota.terminating:
                    message = pod_sentences.terminating(str(pod), quota.key)
                    raise PodRefused(message, frozenset([quota.key]))
            uncounted = frozenset(quota.key for quota in chain if not quota.is_counted)
            if not uncounted:
                return chain
            if deadline.seconds - deadline.left() >= min(COUNT_TIMEOUT, deadline.seconds / 2):
                message = pod_sentences.uncounted(str(pod), sorted(uncounted))
                raise PodRefused(message, uncounted, cause="uncounted")
            await asyncio.sleep(COUNT_PERIOD)

    def _refuse_ungoverned(self, pod: RequestedPod) -> None:
        """Refuse a pod without a quota if quotas are required.

        An update of a pod that had no quota before is allowed.

        :raises PodRefused: if the pod is refused.
        """
        if not self._require_quota or governing_quotas(self._cache, pod.namespace, pod.labels):
            return
        if pod.old_labels is None or governing_quotas(self._cache, pod.namespace, pod.old_labels):
            raise PodRefused(pod_sentences.ungoverned(str(pod), pod.namespace), frozenset())

    def _refuse_shortfalls(
        self, pod: RequestedPod, demand: Charge, chain: tuple[QuotaObject, ...]
    ) -> None:
        """:raises PodRefused: if a quota of ``chain`` has no room in the cache."""
        counters = (quota.counter for quota in chain)
        if short := shortfalls(counters, demand, pod.uid):
            raise PodRefused.over_quota(pod, NoRoom.of(short, chain))

    def _reservation(self, pod: RequestedPod, demand: Charge, attempt: int) -> Reservation:
        # Each attempt has its own ID, because the reservation of the attempt before is being
        # taken back at the same time.
        request = pod.request if attempt == 1 else f"{pod.request}.{attempt}"
        reservation = Reservation(
            uid=pod.uid,
            pod=str(pod),
            charge=demand,
            expires=self._now() + self._lifetime,
            request=request,
            since=pod.since,
        )
        # Render the line once: each quota of the chain needs the line several times.
        return replace(reservation, text=reservation.line)
