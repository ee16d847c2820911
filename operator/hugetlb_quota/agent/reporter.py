"""Makes passes over the node, and writes the report as the status of the HugeTLBNode."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.conditions import (
    charge_list_condition,
    complete_condition,
    ready_condition,
    room_condition,
)
from hugetlb_quota.agent.fit import Fitted, fit
from hugetlb_quota.agent.last_report import adopt
from hugetlb_quota.agent.node_object import NodeApi, NodeObject
from hugetlb_quota.agent.pods import NodePods
from hugetlb_quota.agent.reading import Reading
from hugetlb_quota.agent.reconcile import LARGEST, reconcile
from hugetlb_quota.agent.report import NO_REPORT, Report
from hugetlb_quota.agent.status import mount_status, pool_status, summary, timestamp, too_low
from hugetlb_quota.agent.waiting import wait_at_most
from hugetlb_quota.api.node import LeftOut
from hugetlb_quota.backoff import Backoff
from hugetlb_quota.kube.errors import ApiError
from hugetlb_quota.node.host import HostUnreadable
from hugetlb_quota.program import about

Json = dict[str, Any]

#: The shortest pause between two passes, in seconds: a burst of changes causes one pass. The pause
#: doubles up to the longest while each pass finds something new. So the report has the first end of
#: a pod at once, and a node where pods come and go all the time does not load the API server more.
COALESCE: Final = 0.05
LONGEST_COALESCE: Final = 0.2
#: The pause after a reading that was not whole, in seconds. The pause doubles while nothing
#: changes: if a pod has more mappings than the reader looks at, no reading is ever whole.
AGAIN: Final = 1.0
#: The longest pause between two passes, and between two writes, in seconds.
HEARTBEAT: Final = 60.0
#: The pause after an error, in seconds. The pause doubles up to the longest.
FIRST_BACKOFF: Final = 0.5
LONGEST_BACKOFF: Final = 15.0
#: The most mounts in a report, because the size of an object is limited.
_MOUNTS: Final = 64

logger = logging.getLogger(__name__)


class Host(Protocol):
    """The part of a HostReader that a Reporter needs."""

    async def read(self, largest: int | None) -> Reading:
        """Read the host as it is now."""
        ...


@dataclass
class Latest:
    """The result of the last pass."""

    report: Report = NO_REPORT
    reading: Reading = field(default_factory=Reading)
    #: The number of passes by result.
    passes: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("whole", "moving", "failed"), 0)
    )
    #: The end of the last pass that did not fail, in seconds since 1970.
    passed_at: float = 0.0

    def passed(self) -> None:
        """Note that a pass succeeded; ``reading`` is the reading of this pass."""
        self.passes["whole" if self.reading.whole else "moving"] += 1
        self.passed_at = time.time()


class Reporter:
    """Makes one pass after the other, and writes each report that differs from the last.

    :param position: returns the resourceVersion up to which ``pods`` has all pods; 0 while the
        informer makes a new list.
    :param problems: returns a sentence for each problem that makes the node not Ready, beside the
        problems that a pass finds.
    :param notes: returns sentences for the condition Ready if there is no problem.
    :param before_read: called in a thread before each read of the host. A change after this call
        causes another pass.
    :param sleep: waits for a number of seconds between two passes.
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
        #: The podsResourceVersion of the last written report.
        self._proved = 0
        #: The pods in the last report, by the UID in the name of the cgroup.
        self._reported: frozenset[str] = frozenset()
        self._conditions: dict[str, Mapping[str, Any]] = {}
        self._written: Json | None = None
        self._written_ends = 0
        self._written_at = 0.0

    async def run(self, ready: asyncio.Event, due: asyncio.Event) -> None:
        """Report forever, from the moment when ``ready`` is set: all pods were listed then.

        A pass starts when ``due`` is set, and at each heartbeat.
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
                # A bug, or an unexpected value. The enforcer must go on.
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
        """Make the next pass write its report even if nothing changed: the object is gone."""
        self._written = None

    async def run_once(self) -> None:
        """Make one pass: read, reconcile, write.

        :raises ApiError: the report was not written.
        :raises HostUnreadable: the cgroups can't be seen.
        :raises OSError: the same.
        """
        # The order matters: first the position of the API, then the cgroups, then the charges.
        # While the informer makes a new list, it has no position: the last position still holds.
        self._seen_up_to = self._position() or self._seen_up_to
        last = self._latest.report
        self._pods.remember(last.static, last.real)
        seen, ends, demand = self._pods.seen(), self._pods.ends, self._pods.demand()
        await asyncio.to_thread(self._before_read)
        reading = await self._host.read(LARGEST)
        # In a thread: with many pods this takes long, and the enforcer must not wait.
        report = await asyncio.to_thread(reconcile, reading, seen, last, datetime.now(UTC))
        self._latest.report, self._latest.reading = report, reading
        self._pods.forget(report.entries.keys() | reading.populated.keys(), seen)
        await self._write(report, reading, demand, ends)

    def _adopt(self, status: Mapping[str, Any]) -> None:
        """Go on from the status that the last agent wrote."""
        conditions = status.get("conditions")
        self._conditions = {
            each["type"]: each
            for each in (conditions if isinstance(conditions, list) else ())
            if isinstance(each, dict) and "type" in each
        }
        self._latest.report = adopt(status, self._boot_id)
        if status.get("bootID") == self._boot_id:
            self._reported = frozenset(self._latest.report.entries)
            with suppress(ValueError, TypeError):
                self._proved = int(status.get("podsResourceVersion") or 0)

    async def _write(self, report: Report, reading: Reading, demand: Charge, ends: int) -> None:
        now = timestamp(datetime.now(UTC))
        fitted = await asyncio.to_thread(_fitted, report, self._reported)
        content = self._content(report, reading, fitted, demand, now)
        # A report that leaves out pods proves no end since the last report with all pods.
        proved = min(self._proved, self._seen_up_to) if fitted.left_out.pods else self._seen_up_to
        clock = asyncio.get_running_loop().time()
        if (
            content == self._written
            # The end of a pod may change nothing else, but its quota waits for the new version.
            and ends == self._written_ends
            and clock - self._written_at < HEARTBEAT
        ):
            return
        reported = frozenset(row.get("cgroup") or row["uid"] for row in fitted.pods)
        self._reported |= reported  # even if the write gets no answer
        await self._object.write({**content, "podsResourceVersion": str(proved), "reportedAt": now})
        self._written, self._written_ends, self._written_at = content, ends, clock
        self._proved, self._reported = proved, reported

    def _content(
        self, report: Report, reading: Reading, fitted: Fitted, demand: Charge, now: str
    ) -> Json:
        """Return the status without the fields that differ in each write."""
        mounts = [mount_status(each) for each in reading.mounts[:_MOUNTS]]
        problems = (*self._problems(), *too_low(reading.ceiling, demand))
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
        return content


def _fitted(report: Report, reported: Collection[str]) -> Fitted:
    return fit(
        [each.to_status().to_json() for each in report.entries.values()],
        [each.to_status().to_json() for each in report.files],
        reported,
    )
