"""Reads the quotas a decision needs, and how they stand to each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from hugetlb_quota.accounting.forest import LONGEST_CHAIN, Forest, QuotaKey
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.kube import errors, events
from hugetlb_quota.kube.connection import REQUEST_TIMEOUT
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject, project_quota
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS, NAMESPACES, Resource

_PAGE: Final = 500


class Api(events.SeriesApi, Protocol):
    """The part of a Connection that admission needs."""

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
        limit: int | None = None,
        continuation: str | None = None,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """One page of a collection by quorum read."""
        ...

    def watch(
        self,
        resource: Resource,
        resource_version: str,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """The events after ``resource_version``."""
        ...


class Quotas(Protocol):
    """The quotas that are known, and the labels of namespaces."""

    @property
    def labels(self) -> Mapping[str, Mapping[str, str]]:
        """Every namespace's labels, by its name."""
        ...

    def get(self, key: QuotaKey) -> QuotaObject | InvalidQuota | None:
        """The quota, None when it is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Quotas as they were known at one moment, and the forest they form."""

    quotas: Mapping[QuotaKey, QuotaObject]
    forest: Forest


def climb(cache: Quotas, start: Iterable[QuotaObject]) -> Snapshot:
    """``start``, and every ancestor of them that is known.

    An ancestor that is not known is left out: the forest tells of it.

    :raises InvalidQuota: when an ancestor can't be understood.
    """
    quotas = {quota.key: quota for quota in start}
    level = list(quotas.values())
    # Each round is one level up: up to one more than the longest chain has, so that
    # the forest sees that there is one more.
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


async def read_all(
    api: Api, deadline: Deadline
) -> tuple[tuple[QuotaObject, ...], Mapping[str, Mapping[str, str]]]:
    """All quotas of the cluster that can be understood, and all namespaces' labels."""
    quotas = [
        each
        async for raw in _items(api, HUGETLB_QUOTAS, None, deadline)
        if not isinstance(each := project_quota(raw), InvalidQuota)
    ]
    namespaces = {
        raw["metadata"]["name"]: raw["metadata"].get("labels") or {}
        async for raw in _items(api, NAMESPACES, None, deadline)
    }
    return tuple(quotas), namespaces


async def is_leaving(api: Api, namespace: str, deadline: Deadline) -> bool:
    """Whether ``namespace`` is being deleted, or gone."""
    try:
        raw = await api.get(NAMESPACES, namespace, timeout=deadline.timeout())
    except errors.NotFound:
        return True
    return "deletionTimestamp" in raw["metadata"]


async def _items(
    api: Api, resource: Resource, namespace: str | None, deadline: Deadline
) -> AsyncIterator[dict[str, Any]]:
    continuation: str | None = None
    while True:
        page = await api.list_page(
            resource,
            namespace,
            limit=_PAGE,
            continuation=continuation,
            timeout=deadline.timeout(),
        )
        for raw in page.get("items") or ():
            yield raw
        continuation = page["metadata"].get("continue")
        if not continuation:
            return
