"""Gives back what gone pods left in files, where the controller asks for it.

The report says which files are due; whether anybody still holds one, the kernel says in the
moment in which it is emptied (node/reclaim.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import ValidationError

from hugetlb_quota import duration
from hugetlb_quota.agent.read import HostReader
from hugetlb_quota.agent.reading import ChargedFile
from hugetlb_quota.agent.reconcile import Entry, Report, due_files, due_pods, printable
from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.node import KIND, ReclaimSpec
from hugetlb_quota.kube import events
from hugetlb_quota.kube.events import EventApi, Regarding
from hugetlb_quota.node import hugetlbfs
from hugetlb_quota.node.host import HostUnreadable
from hugetlb_quota.node.reclaim import AnotherFile, NotReclaimed, StillHeld, reclaim
from hugetlb_quota.program import about

#: Between two looks for files that are due, in seconds.
PERIOD: Final = 5.0

logger = logging.getLogger(__name__)


def project_waits(raw: Mapping[str, Any]) -> Mapping[str, timedelta]:
    """From a HugeTLBNode's JSON, by UID how long a pod's files are kept after its end.

    What can't be understood is passed over: those files are kept.
    """
    spec = raw.get("spec")
    asked = spec.get("reclaim") if isinstance(spec, dict) else None
    waits: dict[str, timedelta] = {}
    for each in asked if isinstance(asked, list) else ():
        try:
            wish = ReclaimSpec.model_validate(each)
            waits[wish.uid] = duration.parse(wish.after)
        except (ValidationError, duration.MalformedDuration) as error:
            logger.warning("spec.reclaim of this node's HugeTLBNode: %s", error)
    return waits


class Reclaimer:
    """Looks for files that are due, and reclaims those that nobody holds.

    :param node: the name of this node.
    :param report: the latest.
    :param waits: by UID how long a pod's files are kept after its end.
    """

    def __init__(
        self,
        connection: EventApi,
        node: str,
        host: HostReader,
        report: Callable[[], Report],
        waits: Callable[[], Mapping[str, timedelta]],
    ) -> None:
        self._connection = connection
        self._node = node
        self._host = host
        self._report = report
        self._waits = waits
        self._failed: dict[tuple[int, int], str] = {}

    @property
    def failures(self) -> tuple[str, ...]:
        """Which files could not be reclaimed, a sentence each."""
        return tuple(sorted(self._failed.values()))

    async def run(self, due: asyncio.Event) -> None:
        """Reclaim what is due, for ever; set ``due`` when there is something new to report."""
        while True:
            await asyncio.sleep(PERIOD)
            before = self._failed
            try:
                done = await self.reclaim_due(datetime.now(UTC))
            except (HostUnreadable, OSError) as error:
                logger.warning("Nothing is reclaimed just now: %s", error)
                continue
            if done or self._failed != before:
                due.set()

    async def reclaim_due(self, now: datetime) -> int:
        """Reclaim every file that is due ``now`` and that nobody holds; how many."""
        report = self._report()
        gone = due_pods(report, self._waits(), now)
        files: list[ChargedFile] = []
        if gone:
            files = list(due_files((await self._host.read(None)).files, gone))
        known = {(file.device, file.inode) for file in files}
        self._failed = {file: why for file, why in self._failed.items() if file in known}
        done = 0
        for file in files:
            if file.mount is not None and file.linked:
                done += await self._reclaim(file, [report.entries[uid] for uid in file.charged])
        return done

    async def _reclaim(self, file: ChargedFile, pods: list[Entry]) -> bool:
        assert file.mount is not None
        path = f"{file.mount.point.rstrip('/')}/{file.path}"
        told = f"{printable(path)} on node {self._node}"
        if not hugetlbfs.is_within_reach(file.mount):
            self._fail(
                file,
                f"{told} can't be reclaimed: the agent does not see {printable(file.mount.point)}."
                " Name it, or a directory above it, in the chart's agent.reclaimPaths, or remove"
                " the file.",
            )
            return False
        try:
            # In a thread: giving back many pages takes its time.
            names = file.path.split("/")
            await asyncio.to_thread(reclaim, file.mount.path, names, file.device, file.inode)
        except (StillHeld, AnotherFile):
            self._failed.pop((file.device, file.inode), None)
            return False  # held, or gone: the next look tells
        except NotReclaimed as error:
            self._fail(
                file,
                f"{told} can't be reclaimed: {error.why}. Install the chart with"
                " agent.reclaim=true, which gives the agent the rights to, or remove the file.",
            )
            return False
        self._failed.pop((file.device, file.inode), None)
        logger.info("%s was reclaimed.", told, extra=about(node=self._node, file=printable(path)))
        note = f"{told} was truncated and removed: its pods are gone and no process held it."
        for pod in pods:
            await self._tell(pod, note)
        return True

    def _fail(self, file: ChargedFile, why: str) -> None:
        key = (file.device, file.inode)
        if self._failed.get(key) != why:
            self._failed[key] = why
            logger.warning("%s", why, extra=about(node=self._node))

    async def _tell(self, pod: Entry, note: str) -> None:
        regarding = Regarding("v1", "Pod", pod.namespace, pod.name, pod.uid)
        if not pod.name:
            regarding = Regarding(API_VERSION, KIND, "", self._node)
        await events.publish(
            self._connection,
            regarding,
            kind="Normal",
            reason="Reclaimed",
            note=note,
            program="agent",
            instance=self._node,
        )
