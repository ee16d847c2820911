"""The writing of the report, HugeTLBNode, whenever there is something new to tell."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.conditions import (
    charge_list_condition,
    complete_condition,
    ready_condition,
    room_condition,
)
from hugetlb_quota.agent.fit import Fitted, fit
from hugetlb_quota.agent.node_object import NodeApi, NodeObject
from hugetlb_quota.agent.pods import NodePods
from hugetlb_quota.agent.reading import MountUse, Reading
from hugetlb_quota.agent.reconcile import LARGEST, NO_REPORT, Report, adopt, printable, reconcile
from hugetlb_quota.agent.waiting import wait_at_most
from hugetlb_quota.api.node import LeftOut, MountStatus
from hugetlb_quota.backoff import Backoff
from hugetlb_quota.kube.errors import ApiError
from hugetlb_quota.node.host import HostUnreadable
from hugetlb_quota.node.pools import Pool
from hugetlb_quota.program import about

Json = dict[str, Any]

#: At least between two passes, in seconds: a burst of changes is one. Doubled while there is
#: something new after each, up to the longest: an end is told at once, and a node where pods
#: come and go without pause takes no more of the API server.
COALESCE: Final = 0.05
LONGEST_COALESCE: Final = 0.2
#: Between two passes where a reading was not whole, in seconds; doubled while nothing moves, as
#: it never is where a pod has more mappings than the reader looks at.
AGAIN: Final = 1.0
#: At most between two passes, and between two writes, in seconds.
HEARTBEAT: Final = 60.0
#: Waits after an error, in seconds: doubled up to the last.
FIRST_BACKOFF: Final = 0.5
LONGEST_BACKOFF: Final = 15.0
#: Mounts in a report: an object's size has a limit.
_MOUNTS: Final = 64

logger = logging.getLogger(__name__)


class Host(Protocol):
    """The part of a HostReader that this needs."""

    async def read(self, largest: int | None) -> Reading:
        """What there is now."""
        ...


@dataclass
class Latest:
    """What the last pass came to, for those who ask in between."""

    report: Report = NO_REPORT
    reading: Reading = field(default_factory=Reading)
    #: How many passes there were, by how they went.
    passes: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("whole", "moving", "failed"), 0)
    )
    #: When the last one ended that did not fail, in seconds since 1970.
    passed_at: float = 0.0

    def passed(self) -> None:
        """A pass is over, and ``reading`` is its own."""
        self.passes["whole" if self.reading.whole else "moving"] += 1
        self.passed_at = time.time()


class Reporter:
    """Passes over the node, one after the other, and writes what they come to if it is new.

    :param position: the resourceVersion up to which ``pods`` are known; 0 while that can't be
        told.
    :param problems: what keeps the node from being Ready beside what a pass finds, a sentence
        each; ``notes`` what is told where nothing does.
    :param before_read: called before each read of the host, in a thread: what moves later makes a
        pass due.
    :param sleep: waits so many seconds between two passes.
    """

    def __init__(
        self,
        connection: NodeApi,
        node: str,
        boot_id: str,
        host: Host,
        pods: NodePods,
        latest: Latest,
        *,
        position: Callable[[], int],
        problems: Callable[[], Iterable[str]] = tuple,
        notes: Callable[[], Iterable[str]] = tuple,
        before_read: Callable[[], object] = lambda: None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._object = NodeObject(connection, node)
        self._node = node
        self._boot_id = boot_id
        self._host = host
        self._pods = pods
        self._latest = latest
        self._position = position
        self._problems = problems
        self._notes = notes
        self._before_read = before_read
        self._sleep = sleep
        self._seen_up_to = 0
        self._proved = 0
        self._told: frozenset[str] = frozenset()
        self._conditions: dict[str, Mapping[str, Any]] = {}
        self._written: Json | None = None
        self._written_ends = 0
        self._written_at = 0.0

    async def run(self, ready: asyncio.Event, due: asyncio.Event) -> None:
        """Report for ever, beginning when ``ready`` is set: the pods are known.

        A pass is made when ``due`` is set, and now and then.
        """
        await ready.wait()
        backoff = Backoff(FIRST_BACKOFF, LONGEST_BACKOFF)
        again, pace = Backoff(AGAIN, HEARTBEAT), Backoff(COALESCE, LONGEST_COALESCE)
        adopted = False
        while True:
            due.clear()
            pause = pace.next()
            try:
                if not adopted:
                    self._adopt(await self._object.last_status() or {})
                    adopted = True
                await self.run_once()
                self._latest.passed()
                backoff.reset()
                wait = HEARTBEAT if self._latest.reading.whole else again.next()
            except (ApiError, HostUnreadable, OSError) as error:
                self._latest.passes["failed"] += 1
                logger.warning(
                    "HugeTLBNode %s is not up to date: %s",
                    *(self._node, error),
                    extra=about(node=self._node),
                )
                pause, wait = backoff.next(), 0.0
            except (ValueError, TypeError):
                # A bug, or a value that nobody foresaw: limits are kept all the same.
                self._latest.passes["failed"] += 1
                logger.exception(
                    "HugeTLBNode %s is not up to date.", self._node, extra=about(node=self._node)
                )
                pause, wait = backoff.next(), 0.0
            await self._sleep(pause)
            if not due.is_set():
                pace.reset()
            if wait:
                await wait_at_most(due, wait)
            if due.is_set():
                again.reset()

    def write_anew(self) -> None:
        """The object is gone: the next pass writes, whatever it says."""
        self._written = None

    async def run_once(self) -> None:
        """One pass: read, reconcile, report.

        :raises ApiError: when the report was not written.
        :raises HostUnreadable: when the cgroups can't be seen.
        :raises OSError: the same.
        """
        # The order matters: first what the API has told, then the cgroups, then the charges.
        # While a list is under way the informer has no position: what is known is still
        # what it was at the last.
        self._seen_up_to = self._position() or self._seen_up_to
        last = self._latest.report
        self._pods.remember(last.static, last.real)
        seen, ends, demand = self._pods.seen(), self._pods.ends, self._pods.demand()
        await asyncio.to_thread(self._before_read)
        reading = await self._host.read(LARGEST)
        # In a thread, as of many pods it takes so long that limits would wait for it.
        report = await asyncio.to_thread(reconcile, reading, seen, last, datetime.now(UTC))
        self._latest.report, self._latest.reading = report, reading
        self._pods.forget(report.entries.keys() | reading.there.keys(), seen)
        await self._write(report, reading, demand, ends)

    def _adopt(self, status: Mapping[str, Any]) -> None:
        conditions = status.get("conditions")
        self._conditions = {
            each["type"]: each
            for each in (conditions if isinstance(conditions, list) else ())
            if isinstance(each, dict) and "type" in each
        }
        self._latest.report = adopt(status, self._boot_id)
        if status.get("bootID") == self._boot_id:
            self._told = frozenset(self._latest.report.entries)
            with suppress(ValueError, TypeError):
                self._proved = int(status.get("podsResourceVersion") or 0)

    async def _write(self, report: Report, reading: Reading, demand: Charge, ends: int) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        mounts = [_mount_status(each) for each in reading.mounts[:_MOUNTS]]
        problems = (*self._problems(), *too_low(reading.ceiling, demand))
        fitted = await asyncio.to_thread(_fitted, report, self._told)
        before = self._conditions
        conditions = (
            ready_condition(problems, before.get("Ready", {}), now, tuple(self._notes())),
            charge_list_condition(reading.unreadable, before.get("ChargeListReadable", {}), now),
            room_condition(mounts, before.get("MountsHaveRoom", {}), now),
            complete_condition(fitted.left_out, before.get("ReportComplete", {}), now),
        )
        self._conditions = {each["type"]: each for each in conditions}
        content = {
            "bootID": self._boot_id,
            "summary": summary(reading.pools),
            "pools": [pool_status(pool) for pool in reading.pools],
            "pods": fitted.pods,
            "system": report.system.to_resources(),
            "unlisted": report.unlisted.to_resources(),
            "files": fitted.files,
            "mounts": [each.to_json() for each in mounts],
            "conditions": list(conditions),
        }
        if fitted.left_out != LeftOut():
            content["leftOut"] = fitted.left_out.to_json()
        # Without some pods the report proves no end since the last that had them all.
        proved = min(self._proved, self._seen_up_to) if fitted.left_out.pods else self._seen_up_to
        clock = asyncio.get_running_loop().time()
        if (
            content == self._written
            # An end may change nothing in the list, and its charge waits for the version.
            and ends == self._written_ends
            and clock - self._written_at < HEARTBEAT
        ):
            return
        told = frozenset(row.get("cgroup") or row["uid"] for row in fitted.pods)
        self._told |= told  # also by a write of which no answer comes
        await self._object.write({**content, "podsResourceVersion": str(proved), "reportedAt": now})
        self._written, self._written_ends, self._written_at = content, ends, clock
        self._proved, self._told = proved, told


def _fitted(report: Report, told: Collection[str]) -> Fitted:
    return fit(
        [each.to_status().to_json() for each in report.entries.values()],
        [each.to_status().to_json() for each in report.files],
        told,
    )


def too_low(ceiling: Charge, demand: Charge) -> Iterable[str]:
    """Sentences that tell which limits of kubepods itself are below what its pods ask for."""
    for size, limit in ceiling.items():
        if demand.of(size) > limit:
            yield (
                f"kubepods itself is limited to {quantity.render(limit)} of {size.resource}, and"
                f" its pods ask for {quantity.render(demand.of(size))}: beyond that mmap fails in"
                " all of them. Write max to its hugetlb limits, or restart kubelet once the node's"
                " huge pages are as they shall be."
            )


def _mount_status(each: MountUse) -> MountStatus:
    mount = each.mount
    return MountStatus(
        path=printable(mount.point),
        page_size=mount.size.resource,
        limit=None if mount.limit is None else quantity.render(mount.limit),
        minimum=quantity.render(mount.minimum) if mount.minimum else None,
        used=quantity.render(each.used),
    )


def summary(pools: Iterable[Pool]) -> str:
    """What is free of the whole node's pools, for people: ``2Mi: 96Mi/128Mi, 1Gi: 0/0``."""
    return ", ".join(
        f"{pool.size}: {quantity.render(pool.free * pool.size.bytes)}"
        f"/{quantity.render(pool.total * pool.size.bytes)}"
        for pool in pools
        if pool.numa_node is None
    )


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
