"""Reclaims the files of gone pods: removes each file if the controller asks for this.

The report says which files are due. The kernel says if a process still holds a file, at the moment
when the file is truncated (node/reclaim.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pydantic import ValidationError

from hugetlb_quota import duration
from hugetlb_quota.agent.read import HostReader
from hugetlb_quota.agent.reading import ChargedFile
from hugetlb_quota.agent.report import Entry, Report, printable
from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.node import KIND, ReclaimSpec
from hugetlb_quota.kube import events
from hugetlb_quota.kube.events import EventApi, Regarding
from hugetlb_quota.node import hugetlbfs
from hugetlb_quota.node.host import HostUnreadable
from hugetlb_quota.node.reclaim import AnotherFile, NotReclaimed, StillHeld, reclaim
from hugetlb_quota.program import about

#: The pause between two searches for files that are due, in seconds.
PERIOD: Final = 5.0

logger = logging.getLogger(__name__)


def project_waits(raw: Mapping[str, Any]) -> Mapping[str, timedelta]:
    """Return how long to keep a pod's files after its end, by UID, from a HugeTLBNode's JSON.

    A row of ``spec.reclaim`` that can't be parsed is left out: the files of this pod stay.
    """
    spec = raw.get("spec")
    rows = spec.get("reclaim") if isinstance(spec, dict) else None
    waits: dict[str, timedelta] = {}
    for row in rows if isinstance(rows, list) else ():
        try:
            wish = ReclaimSpec.model_validate(row)
            waits[wish.uid] = duration.parse(wish.after)
        except (ValidationError, duration.MalformedDuration) as error:
            logger.warning("A row of spec.reclaim of this node can't be read: %s", error)
    return waits


def due_pods(report: Report, waits: Mapping[str, timedelta], now: datetime) -> frozenset[str]:
    """Return the UIDs, in the names of cgroups, of the pods with files that are due ``now``.

    :param waits: how long to keep a pod's files after its end, by UID.
    """
    return frozenset(
        uid
        for uid, entry in report.entries.items()
        if not entry.live
        and entry.ended_at is not None
        and entry.charged
        and (wait := waits.get(entry.uid)) is not None
        and now - entry.ended_at >= wait
    )


def due_files(files: Iterable[ChargedFile], due: Collection[str]) -> Iterator[ChargedFile]:
    """Yield the files for which only pods in ``due`` are charged."""
    for file in files:
        if file.charged and all(owner in due for owner in file.charged):
            yield file


class Reclaimer:
    """Finds the files that are due, and reclaims each file that no process holds.

    :param node: the name of this node.
    :param report: returns the last report.
    :param waits: returns how long to keep a pod's files after its end, by UID.
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
        """A sentence for each file that could not be reclaimed."""
        return tuple(sorted(self._failed.values()))

    async def run(self, due: asyncio.Event) -> None:
        """Reclaim what is due, forever; set ``due`` if the report changes."""
        while True:
            await asyncio.sleep(PERIOD)
            before = self._failed
            try:
                done = await self.reclaim_due(datetime.now(UTC))
            except (HostUnreadable, OSError) as error:
                logger.warning("The agent can't look for files to reclaim: %s", error)
                continue
            if done or self._failed != before:
                due.set()

    async def reclaim_due(self, now: datetime) -> int:
        """Reclaim each file that is due ``now`` and not held; return the number of files."""
        report = self._report()
        gone = due_pods(report, self._waits(), now)
        files: list[ChargedFile] = []
        if gone:
            files = list(due_files((await self._host.read(None)).files, gone))
        found = {(file.device, file.inode) for file in files}
        self._failed = {file: why for file, why in self._failed.items() if file in found}
        done = 0
        for file in files:
            if file.mount is not None and file.linked:
                done += await self._reclaim(file, [report.entries[uid] for uid in file.charged])
        return done

    async def _reclaim(self, file: ChargedFile, pods: list[Entry]) -> bool:
        assert file.mount is not None
        path = f"{file.mount.point.rstrip('/')}/{file.path}"
        named = f"{printable(path)} on node {self._node}"
        if not hugetlbfs.is_within_reach(file.mount):
            self._fail(
                file,
                f"{named} can't be reclaimed: the agent does not see {printable(file.mount.point)}."
                " Add this directory, or a directory above, to the chart's agent.reclaimPaths, or"
                " remove the file.",
            )
            return False
        try:
            # In a thread: to give back many pages takes long.
            names = file.path.split("/")
            await asyncio.to_thread(reclaim, file.mount.path, names, file.device, file.inode)
        except (StillHeld, AnotherFile):
            self._failed.pop((file.device, file.inode), None)
            return False  # the next search decides again
        except NotReclaimed as error:
            self._fail(
                file,
                f"{named} can't be reclaimed: {error.why}. Install the chart with"
                " agent.reclaim=true, which gives the agent the rights, or remove the file.",
            )
            return False
        self._failed.pop((file.device, file.inode), None)
        logger.info("%s was reclaimed.", named, extra=about(node=self._node, file=printable(path)))
        gone = "its pod is gone" if len(pods) == 1 else "its pods are gone"
        note = f"{named} was truncated and removed: {gone} and no process held the file."
        for pod in pods:
            await self._publish(pod, note)
        return True

    def _fail(self, file: ChargedFile, why: str) -> None:
        key = (file.device, file.inode)
        if self._failed.get(key) != why:
            self._failed[key] = why
            logger.warning("%s", why, extra=about(node=self._node))

    async def _publish(self, pod: Entry, note: str) -> None:
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
