"""The parts of a Connection that several modules need, as protocols."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from hugetlb_quota.kube.connection import REQUEST_TIMEOUT
from hugetlb_quota.kube.resources import Resource


class ObjectApi(Protocol):
    """Get and replace one object."""

    async def get(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """The object, by quorum read."""
        ...

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: dict[str, Any],
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """PUT the object; the object that the server returns."""
        ...


class PatchApi(Protocol):
    """Patch one object."""

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: dict[str, Any],
        namespace: str | None = None,
        *,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """Merge ``body`` into one object."""
        ...


class ListApi(Protocol):
    """List a collection."""

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
        """One page of a collection, by quorum read."""
        ...


class WatchApi(Protocol):
    """Watch a collection."""

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
