"""From a quota up to the root of its tree, in the cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hugetlb_quota.accounting.forest import LONGEST_CHAIN, Forest, QuotaKey
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Some quotas as they were in the cache at one moment, and the forest that they form."""

    quotas: Mapping[QuotaKey, QuotaObject]
    forest: Forest


def climb(cache: QuotaCache, start: Iterable[QuotaObject]) -> Snapshot:
    """``start``, and all ancestors of these quotas that are in the cache.

    If an ancestor is not in the cache, the forest raises Detached for its chains.

    :raises InvalidQuota: if the spec of an ancestor is invalid.
    """
    quotas = {quota.key: quota for quota in start}
    level = list(quotas.values())
    # Each round climbs one level. The last round finds one quota more than the longest chain has,
    # so that the forest sees that the chain is too long.
    for _ in range(LONGEST_CHAIN):
        above = {key for quota in level for key in (quota.quota.parent, quota.quota.attached_to)}
        parents = above - quotas.keys() - {None}
        found = [cache.get(key) for key in parents if key is not None]
        level = []
        for quota in found:
            if isinstance(quota, InvalidQuota):
                raise quota
            if quota is not None:
                level.append(quota)
                quotas[quota.key] = quota
        if not level:
            break
    return Snapshot(quotas, Forest((each.quota for each in quotas.values()), cache.labels))
