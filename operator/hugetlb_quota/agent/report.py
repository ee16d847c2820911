"""The writing of the report, HugeTLBNode, whenever there is something new to tell."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, Final

from hugetlb_quota.agent.conditions import exact_condition, ready_condition, room_condition
from hugetlb_quota.agent.node_object import NodeApi, NodeObject
from hugetlb_quota.agent.observe import Observer, Snapshot
from hugetlb_quota.agent.waiting import wait_at_most
from hugetlb_quota.backoff import Backoff
from hugetlb_quota.kube.errors import ApiError
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


class Reporter:
    """Writes the HugeTLBNode of this node whenever a snapshot says something new."""

    def __init__(self, connection: NodeApi, node: str, boot_id: str, observer: Observer) -> None:
        self._object = NodeObject(connection, node)
        self._node = node
        self._boot_id = boot_id
        self._observer = observer
        self._nudged = asyncio.Event()
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
        backoff = Backoff(FIRST_BACKOFF, LONGEST_BACKOFF)
        adopted = False
        while True:
            self._nudged.clear()
            pause, wait = COALESCE, SAMPLE
            try:
                if not adopted:
                    last = await self._object.last_status()
                    self._conditions = {
                        each["type"]: each for each in (last or {}).get("conditions") or ()
                    }
                    self._observer.carry_over(last)
                    adopted = True
                await self._observer.catch_up()
                await self._report(self._observer.snapshot())
                backoff.reset()
            except (ApiError, HostUnreadable, OSError) as error:
                logger.warning("HugeTLBNode %s is not up to date: %s", self._node, error)
                pause, wait = backoff.next(), 0.0
            await asyncio.sleep(pause)
            if wait and not self._nudged.is_set():
                await wait_at_most(self._nudged, wait)

    async def _report(self, snapshot: Snapshot) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = (
            ready_condition(
                snapshot.problems, self._conditions.get("Ready", {}), now, snapshot.notes
            ),
            exact_condition(snapshot.doubts, self._conditions.get("Exact", {}), now),
            room_condition(snapshot.mounts, self._conditions.get("MountsHaveRoom", {}), now),
        )
        self._conditions = {each["type"]: each for each in conditions}
        content = {
            "bootID": self._boot_id,
            "pools": [pool_status(pool) for pool in snapshot.pools],
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
        await self._object.write(
            {
                **content,
                "podsSince": str(snapshot.pods_since),
                "podsResourceVersion": str(snapshot.pods_resource_version),
                "reportedAt": now,
            }
        )
        self._written, self._written_ends, self._written_at = content, snapshot.ends, clock


def pool_status(pool: Pool) -> Json:
    """A pool as HugeTLBNode tells of it."""
    status = {
        "pageSize": pool.size.resource,
        "numaNode": pool.numa_node,
        "total": pool.total,
        "free": pool.free,
        "reserved": pool.reserved,
        "surplus": pool.surplus,
    }
    return {name: value for name, value in status.items() if value is not None}
