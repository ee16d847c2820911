"""Find the quotas that govern a pod, and the quotas that a request must charge; from the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from hugetlb_quota.accounting.forest import Detached, QuotaKey
from hugetlb_quota.admission import pod_sentences
from hugetlb_quota.admission.batch import NoRoom
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.chains import climb
from hugetlb_quota.admission.requested_pod import RequestedPod
from hugetlb_quota.admission.review import Cause
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject


@dataclass(frozen=True, slots=True)
class PodRefused(Exception):
    """The pod is refused, as far as the cache shows; the cache may be old.

    ``message``: why, and what to do. ``quotas`` and ``namespaces``: the refusal depends on these
    quotas, and on the labels of these namespaces; read them before the answer. ``by``: the quotas
    that refuse; if empty, all of ``quotas`` do.
    """

    message: str
    quotas: frozenset[QuotaKey]
    namespaces: frozenset[str] = frozenset()
    by: tuple[QuotaKey, ...] = ()
    cause: Cause = "rule"

    @classmethod
    def by_invalid_quota(cls, pod: RequestedPod, error: InvalidQuota) -> Self:
        """A quota that may govern the pod, or an ancestor, is invalid."""
        return cls(pod_sentences.invalid_quota(str(pod), error), frozenset([error.key]))

    @classmethod
    def over_quota(cls, pod: RequestedPod, error: NoRoom) -> Self:
        """Quotas have no room for the pod."""
        shortfalls = error.shortfalls
        message = pod_sentences.over_quota(str(pod), shortfalls, error.files, error.silent)
        return cls(message, frozenset(each.quota for each in shortfalls))


def governing_quotas(
    cache: QuotaCache, namespace: str, labels: Mapping[str, str]
) -> dict[QuotaKey, QuotaObject]:
    """The quotas of ``namespace`` that select a pod with ``labels``.

    :raises InvalidQuota: if a quota of the namespace is invalid, because it may select the pod.
    """
    found = {}
    for quota in cache.in_namespace(namespace):
        if isinstance(quota, InvalidQuota):
            raise quota
        if quota.quota.pod_selector.matches(labels):
            found[quota.key] = quota
    return found


def quotas_to_charge(cache: QuotaCache, pod: RequestedPod) -> tuple[QuotaObject, ...]:
    """The quotas on the chains of all quotas that govern the pod, each before its ancestors.

    For an updated pod, only the quotas that the pod is not charged to by its old labels.

    :raises PodRefused: if a chain does not reach a root, or has an invalid quota.
    """
    try:
        now = governing_quotas(cache, pod.namespace, pod.labels)
        before = (
            {} if pod.old_labels is None else governing_quotas(cache, pod.namespace, pod.old_labels)
        )
        new = sorted(now.keys() - before.keys())
        if not new:
            return ()
        snapshot = climb(cache, {**now, **before}.values())
    except InvalidQuota as error:
        raise PodRefused.by_invalid_quota(pod, error) from error
    try:
        union = snapshot.forest.union_of_chains(new)
    except Detached as error:
        raise PodRefused(
            pod_sentences.detached(str(pod), error),
            frozenset([*snapshot.quotas, error.parent]),
            frozenset([error.quota.namespace]),
            by=(error.quota,),
        ) from error
    charged = {link.key for key in before for link in snapshot.forest.attached(key)}
    return tuple(snapshot.quotas[each.key] for each in union if each.key not in charged)
