"""The writing of the report, HugeTLBNode, whenever there is something new to tell."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from hugetlb_quota import api
from hugetlb_quota.agent.conditions import exact_condition, ready_condition, room_condition
from hugetlb_quota.agent.observe import Observer, Snapshot
from hugetlb_quota.agent.waiting import wait_at_most
from hugetlb_quota.api.node import KIND
from hugetlb_quota.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from hugetlb_quota.kube.resources import HUGETLB_NODES, NODES, Resource
from hugetlb_quota.node.host import HostUnreadable
from hugetlb_quota.node.pools import Pool

Json = dict[str, Any]

#: At least between two writes, in seconds: a burst of changes is one.
COALESCE: Final = 0.2
#: Between two looks at what no event tells, pools and use, in seconds.
SAMPLE: Final = 5.0
#: At most between two writes, in seconds.
HEARTBEAT: Final = 60.0
#: Waits after an error, in seconds: doubled up to the last.
FIRST_BACKOFF: Final = 0.5
LONGEST_BACKOFF: Final = 15.0

logger = logging.getLogger(__name__)


class NodeApi(Protocol):
    """The part of a Connection that a Reporter needs."""

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


class Reporter:
    """Writes the HugeTLBNode of this node whenever a snapshot says something new."""

    def __init__(self, connection: NodeApi, node: str, boot_id: str, observer: Observer) -> None:
        self._connection = connection
        self._node = node
        self._boot_id = boot_id
        self._observer = observer
        self._nudged = asyncio.Event()
        self._metadata: Json | None = None
        self._written: Json | None = None
        self._written_ends = 0
        self._written_at = 0.0
        self._conditions: dict[str, Json] = {}

    def nudge(self) -> None:
        """Something changed that may have to be reported."""
        self._nudged.set()

    async def run(self, ready: asyncio.Event) -> None:
        """Report for ever, beginning when ``ready`` is set: pods and quotas are known."""
        await ready.wait()
        backoff = FIRST_BACKOFF
        adopted = False
        while True:
            self._nudged.clear()
            pause, wait = COALESCE, SAMPLE
            try:
                if not adopted:
                    self._observer.carry_over(await self._last_status())
                    adopted = True
                await self._observer.catch_up()
                await self._report(self._observer.snapshot())
                backoff = FIRST_BACKOFF
            except (ApiError, HostUnreadable, OSError) as error:
                logger.warning("HugeTLBNode %s is not up to date: %s", self._node, error)
                pause, wait = backoff, 0.0
                backoff = min(backoff * 2, LONGEST_BACKOFF)
            await asyncio.sleep(pause)
            if wait and not self._nudged.is_set():
                await wait_at_most(self._nudged, wait)

    async def _last_status(self) -> Mapping[str, Any] | None:
        """What the last report said, whoever wrote it; None when there is none."""
        try:
            found = await self._connection.get(HUGETLB_NODES, self._node)
        except NotFound:
            return None
        self._metadata = found["metadata"]
        status: Mapping[str, Any] = found.get("status") or {}
        self._conditions = {each["type"]: each for each in status.get("conditions") or ()}
        return status

    async def _report(self, snapshot: Snapshot) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = (
            ready_condition(snapshot.problems, self._conditions.get("Ready", {}), now),
            exact_condition(snapshot.doubts, self._conditions.get("Exact", {}), now),
            room_condition(snapshot.mounts, self._conditions.get("MountsHaveRoom", {}), now),
        )
        self._conditions = {each["type"]: each for each in conditions}
        content = {
            "bootID": self._boot_id,
            "pools": [_pool(pool) for pool in snapshot.pools],
            "pods": list(snapshot.pods),
            "settled": list(snapshot.settled),
            "retained": list(snapshot.retained),
            "files": list(snapshot.files),
            "mounts": list(snapshot.mounts),
            "system": snapshot.system.to_resources(),
            "conditions": list(conditions),
        }
        clock = asyncio.get_running_loop().time()
        if (
            content == self._written
            # An end may change nothing in the list, and its charge waits for the version.
            and snapshot.ends == self._written_ends
            and clock - self._written_at < HEARTBEAT
        ):
            return
        await self._write(
            {
                **content,
                "podsSince": str(snapshot.pods_since),
                "podsResourceVersion": str(snapshot.pods_resource_version),
                "reportedAt": now,
            }
        )
        self._written, self._written_ends, self._written_at = content, snapshot.ends, clock

    async def _write(self, status: Json) -> None:
        """PUT the status, compared by resourceVersion: no write may overtake a later one."""
        if self._metadata is None:
            self._metadata = await self._create()
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
            written = await self._connection.replace(
                HUGETLB_NODES, self._node, body, subresource="status"
            )
        except (Conflict, NotFound):
            # Deleted with its Node, or written past us: read it anew, or make it anew.
            self._metadata = None
            raise
        self._metadata = written["metadata"]

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


def _pool(pool: Pool) -> Json:
    status = {
        "pageSize": pool.size.resource,
        "numaNode": pool.numa_node,
        "total": pool.total,
        "free": pool.free,
        "reserved": pool.reserved,
        "surplus": pool.surplus,
    }
    return {name: value for name, value in status.items() if value is not None}
