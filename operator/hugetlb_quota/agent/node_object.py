"""The HugeTLBNode of this node, as the agent reads it once and writes it from then on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from hugetlb_quota import api
from hugetlb_quota.api.node import KIND
from hugetlb_quota.kube.errors import AlreadyExists, Conflict, NotFound
from hugetlb_quota.kube.resources import HUGETLB_NODES, NODES, Resource

Json = dict[str, Any]


class NodeApi(Protocol):
    """The part of a Connection that this needs."""

    async def get(self, resource: Resource, name: str) -> Json:
        """One object."""
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
    """Writes the status of ``node``'s HugeTLBNode, which is made when it is not there."""

    def __init__(self, connection: NodeApi, node: str) -> None:
        self._connection = connection
        self._node = node
        self._metadata: Json | None = None
        self._written: Any = None

    async def last_status(self) -> Mapping[str, Any] | None:
        """What the last report said, whoever wrote it; None when there is none.

        :raises ApiError: when it can't be told.
        """
        try:
            found = await self._connection.get(HUGETLB_NODES, self._node)
        except NotFound:
            return None
        self._metadata = found["metadata"]
        status = found.get("status")
        return status if isinstance(status, dict) else {}

    async def write(self, status: Json) -> None:
        """PUT the status, compared by resourceVersion: no write may overtake a later one.

        Where only something else of the object has changed, as its spec does, it is written
        all the same.

        :raises ApiError: when it was not written; after a Conflict the next call reads anew.
        """
        if self._metadata is None:
            self._metadata = await self._create()
        try:
            written = await self._put(status)
        except Conflict:
            last = await self._last_but_for_status()
            self._metadata = last
            if last is None:
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
            # Deleted with its Node, or written past us: read it anew, or make it anew.
            self._metadata = None
            raise

    async def _last_but_for_status(self) -> Json | None:
        """The object's metadata as they are, if its status is the one that was written here."""
        status = await self.last_status() or {}
        if self._written is None or status.get("reportedAt") != self._written:
            self._metadata = None
        return self._metadata

    async def _create(self) -> Json:
        """The metadata of this node's HugeTLBNode, which is made when it is not there."""
        node = await self._connection.get(NODES, self._node)
        body = {
            "apiVersion": api.API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": self._node,
                # Deleted with its Node, by garbage collection.
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
