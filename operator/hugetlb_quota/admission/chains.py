"""Reads the quotas a decision needs, and how they stand to each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from hugetlb_quota.accounting.forest import LONGEST_CHAIN, Forest, QuotaKey
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.kube import errors, status
from hugetlb_quota.kube.connection import REQUEST_TIMEOUT
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject, project_quota
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS, NAMESPACES, Resource

_PAGE: Final = 500


class Api(status.QuotaApi, Protocol):
    """The part of a Connection that admission needs."""

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        limit: int | None = None,
        continuation: str | None = None,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """One page of a collection by quorum read."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Quotas as they were read one after the other, and the forest they form."""

    quotas: Mapping[QuotaKey, QuotaObject]
    forest: Forest


async def read_namespace(api: Api, namespace: str, deadline: Deadline) -> tuple[QuotaObject, ...]:
    """All quotas of ``namespace``.

    :raises InvalidQuota: when one can't be understood: it may be the one that matters.
    """
    items = _items(api, HUGETLB_QUOTAS, namespace, deadline)
    return tuple([QuotaObject.from_json(raw) async for raw in items])


async def climb(
    api: Api, known: Iterable[QuotaObject], start: Iterable[QuotaKey], deadline: Deadline
) -> Snapshot:
    """``known`` quotas, and every ancestor of those of them named by ``start``.

    An ancestor that does not exist is left out: the forest tells of it. Namespace labels
    are read only where a link crosses namespaces, as only there they matter.

    :raises InvalidQuota: when an ancestor can't be understood.
    """
    quotas = {quota.key: quota for quota in known}
    namespaces: dict[str, Mapping[str, str]] = {}
    climbed: set[QuotaKey] = set()
    level = {key for key in start if key in quotas}
    # Each round reads one level up: up to one more than the longest chain has, so that
    # the forest sees that there is one more.
    for _ in range(LONGEST_CHAIN):
        climbed |= level
        links = [(key, quotas[key].quota.parent) for key in level]
        parents = {parent for _, parent in links if parent is not None}
        crossing = {
            key.namespace
            for key, parent in links
            if parent is not None and parent.namespace != key.namespace
        }
        found, labels = await asyncio.gather(
            asyncio.gather(*(_find(api, key, deadline) for key in parents - quotas.keys())),
            asyncio.gather(
                *(_labels(api, name, deadline) for name in crossing - namespaces.keys())
            ),
        )
        quotas |= {quota.key: quota for quota in found if quota is not None}
        namespaces |= dict(labels)
        level = (parents & quotas.keys()) - climbed
        if not level:
            break
    return Snapshot(quotas, Forest((each.quota for each in quotas.values()), namespaces))


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
        raw = await api.get(NAMESPACES, namespace, timeout=max(deadline.left(), 0.001))
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
            timeout=max(deadline.left(), 0.001),
        )
        for raw in page.get("items") or ():
            yield raw
        continuation = page["metadata"].get("continue")
        if not continuation:
            return


async def _find(api: Api, key: QuotaKey, deadline: Deadline) -> QuotaObject | None:
    try:
        return await status.read(api, key, timeout=max(deadline.left(), 0.001))
    except errors.NotFound:
        return None


async def _labels(api: Api, name: str, deadline: Deadline) -> tuple[str, Mapping[str, str]]:
    raw = await api.get(NAMESPACES, name, timeout=max(deadline.left(), 0.001))
    return name, raw["metadata"].get("labels") or {}
