"""The API server as admission uses it, and consistent reads for decisions about quotas."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, Protocol

from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.kube import errors, events
from hugetlb_quota.kube.api import ListApi, WatchApi
from hugetlb_quota.kube.pages import PAGE, pages
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject, project_quota
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS, NAMESPACES, Resource


class Api(events.SeriesApi, ListApi, WatchApi, Protocol):
    """The part of a Connection that admission needs."""


async def read_all(
    api: Api, deadline: Deadline
) -> tuple[tuple[QuotaObject, ...], Mapping[str, Mapping[str, str]]]:
    """All valid quotas of the cluster, and the labels of all namespaces by name.

    :raises ApiError: if a read fails.
    """
    quotas = [
        quota
        async for raw in _objects(api, HUGETLB_QUOTAS, deadline)
        if not isinstance(quota := project_quota(raw), InvalidQuota)
    ]
    labels = {
        raw["metadata"]["name"]: raw["metadata"].get("labels") or {}
        async for raw in _objects(api, NAMESPACES, deadline)
    }
    return tuple(quotas), labels


async def is_leaving(api: Api, namespace: str, deadline: Deadline) -> bool:
    """Whether ``namespace`` is being deleted, or is gone.

    :raises ApiError: if the read fails.
    """
    try:
        raw = await api.get(NAMESPACES, namespace, timeout=deadline.timeout())
    except errors.NotFound:
        return True
    return "deletionTimestamp" in raw["metadata"]


async def _objects(
    api: Api, resource: Resource, deadline: Deadline
) -> AsyncIterator[dict[str, Any]]:
    def read(continuation: str | None) -> Awaitable[dict[str, Any]]:
        return api.list_page(
            resource, limit=PAGE, continuation=continuation, timeout=deadline.timeout()
        )

    async for page in pages(read):
        for raw in page.get("items") or ():
            yield raw
