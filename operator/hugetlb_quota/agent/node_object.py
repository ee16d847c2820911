"""The HugeTLBNode of this node: the agent reads the object once, and then writes its status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from hugetlb_quota import api
from hugetlb_quota.api.node import KIND
from hugetlb_quota.kube.errors import AlreadyExists, Conflict, NotFound
from hugetlb_quota.kube.resources import HUGETLB_NODES, NODES, Resource

Json = dict[str, Any]


class NodeApi(Protocol):
    """The part of a Connection that a NodeObject needs."""

    async def get(self, resource: Resource, name: str) -> Json:
        """GET one object."""
        ...

    async def create(self, resource: Resource, body: Json) -> Json:
        """POST one object."""
        ...

    async def replace(
        self, resource: Resource, name: str, body: Json, *, subresource: str | None = None
    ) -> Json:
        """PUT one object."""
        ...


class NodeObject:
    """Writes the status of ``node``'s HugeTLBNode, and creates the object if it is missing."""

    def __init__(self, connection: NodeApi, node: str) -> None:
        self._connection = connection
        self._node = node
        self._metadata: Json | None = None
        self._written: Any = None

    async def last_status(self) -> Mapping[str, Any] | None:
        """Return the status that the last agent wrote; None if the object is missing.

        :raises ApiError: the object can't be read.
        """
        try:
            found = await self._connection.get(HUGETLB_NODES, self._node)
        except NotFound:
            return None
        self._metadata = found["metadata"]
        status = found.get("status")
        return status if isinstance(status, dict) else {}

    async def write(self, status: Json) -> None:
        """PUT the status by compare-and-swap, so that no write replaces a later write.

        If only another part of the object has changed, such as the spec, the status is written
        all the same.

        :raises ApiError: the status was not written. After a Conflict the next call first reads
            the object again.
        """
        if self._metadata is None:
            self._metadata = await self._create()
        try:
            written = await self._put(status)
        except Conflict:
            self._metadata = await self._metadata_if_status_is_ours()
            if self._metadata is None:
                raise
            written = await self._put(status)
        self._metadata, self._written = written["metadata"], status["reportedAt"]

    async def _put(self, status: Json) -> Json:
        assert self._metadata is not None
        body = {
            "apiVersion": api.API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": self._node,
                "uid": self._metadata["uid"],
                "resourceVersion": self._metadata["resourceVersion"],
            },
            "status": status,
        }
        try:
            return await self._connection.replace(
                HUGETLB_NODES, self._node, body, subresource="status"
            )
        except (Conflict, NotFound):
            # The object was deleted with its Node, or another program wrote it.
            self._metadata = None
            raise

    async def _metadata_if_status_is_ours(self) -> Json | None:
        """Return the object's metadata now, or None if another program wrote its status."""
        status = await self.last_status() or {}
        if self._written is None or status.get("reportedAt") != self._written:
            return None
        return self._metadata

    async def _create(self) -> Json:
        """Create this node's HugeTLBNode if it is missing; return its metadata."""
        node = await self._connection.get(NODES, self._node)
        body = {
            "apiVersion": api.API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": self._node,
                # The garbage collector deletes the object with its Node.
                "ownerReferences": [
                    {
                        "apiVersion": "v1",
                        "kind": "Node",
                        "name": self._node,
                        "uid": node["metadata"]["uid"],
                    }
                ],
            },
        }
        try:
            made = await self._connection.create(HUGETLB_NODES, body)
        except AlreadyExists:
            made = await self._connection.get(HUGETLB_NODES, self._node)
        metadata: Json = made["metadata"]
        return metadata
