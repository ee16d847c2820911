"""Keeps the limit files of every pod as the plan says, whatever else writes to them.

The enforcer writes only the files that differ, so a repeated pass changes nothing. An error of one
pod's cgroup does not stop the other pods.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from hugetlb_quota import quantity
from hugetlb_quota.accounting.plan import Allowance, Limits, admissible, plan
from hugetlb_quota.agent.waiting import wait_at_most
from hugetlb_quota.node import cgroup, kubepods
from hugetlb_quota.node.cgroup import (
    CgroupError,
    CgroupGone,
    Limit,
    LimitBelowUse,
    NotControlled,
    OwnNamespace,
)
from hugetlb_quota.node.kubepods import PodCgroup
from hugetlb_quota.node.watcher import (
    CgroupEvent,
    Changed,
    Created,
    KubepodsWatcher,
    Overflowed,
    Populated,
    Removed,
)
from hugetlb_quota.page_size import PageSize
from hugetlb_quota.program import about

#: The pause between two passes over all pods, in seconds. A pass finds changes without an event.
FULL_PASS: Final = 30.0
#: The pause between two attempts to lower a limit below the use, in seconds. There is no event when
#: a pod gives pages back.
RETRY: Final = 1.0
#: The most attempts to write a limit while the use grows, before the next RETRY.
_ATTEMPTS: Final = 3
#: The number of pods in a pass before other tasks get a turn.
_BATCH: Final = 4

_LIMITS: Final[tuple[Limit, Limit]] = ("rsvd.max", "max")

logger = logging.getLogger(__name__)


class Enforcer:
    """Keeps the limits of the pods that ``watcher`` finds.

    :param sizes: the huge page sizes of the host.
    :param allowance: returns what a pod may use, by the UID in the name of its cgroup; None if the
        API has not shown the pod.
    :param moved: called when a pod's cgroup is created or removed, or when processes enter or
        leave.
    :param mirror: True to copy kubelet's ``max`` to ``rsvd.max`` for a pod without allowance.
    """

    def __init__(
        self,
        watcher: KubepodsWatcher,
        sizes: Iterable[PageSize],
        allowance: Callable[[str], Allowance | None],
        moved: Callable[[], None],
        *,
        mirror: bool = True,
    ) -> None:
        self._watcher = watcher
        self._sizes = tuple(sizes)
        self._allowance = allowance
        self._moved = moved
        self._mirror = mirror
        self._pods: dict[str, PodCgroup] = {}
        self._failures: dict[str, str] = {}
        self._above: dict[str, str] = {}
        self._by_pod_alone: dict[str, str] = {}
        self._due, self._some_above = asyncio.Event(), asyncio.Event()

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence for each pod that is not limited."""
        return tuple(self._failures[uid] for uid in sorted(self._failures))

    @property
    def above(self) -> tuple[str, ...]:
        """A sentence for each pod that uses more than it may. Its limit falls with its use."""
        return tuple(self._above[uid] for uid in sorted(self._above))

    @property
    def by_pod_alone(self) -> tuple[str, ...]:
        """A sentence for each pod with a container that only the pod's own limit holds."""
        return tuple(self._by_pod_alone[uid] for uid in sorted(self._by_pod_alone))

    def due(self) -> None:
        """Make a pass over all pods soon."""
        self._due.set()

    def pod_changed(self, uid: str) -> None:
        """Enforce the pod again, because the API's pod has changed.

        :param uid: the UID in the name of the pod's cgroup.
        """
        if (pod := self._pods.get(uid)) is not None:
            self.enforce(pod)

    async def follow(self) -> None:
        """Enforce at each event of the watcher, forever."""
        while True:
            try:
                async for event in self._watcher:
                    self._handle(event)
            except OSError as error:
                # Events that the watcher has read but not yielded are lost.
                logger.warning("Pods' cgroups can't be listed; trying again: %s", error)
                self.due()
                self._moved()
                await asyncio.sleep(RETRY)

    async def pass_now_and_then(self, first_done: asyncio.Event) -> None:
        """Make a pass over all pods when a pass is due, and every :data:`FULL_PASS`; forever.

        :param first_done: set after the first pass that saw all pods.
        """
        while True:
            self._due.clear()
            whole = await self.full_pass()
            if whole:
                first_done.set()
            await wait_at_most(self._due, FULL_PASS if whole else RETRY)

    async def retry(self) -> None:
        """Lower the limits of the pods that use more than they may, as their use falls; forever."""
        while True:
            await self._some_above.wait()
            await asyncio.sleep(RETRY)
            self._some_above.clear()
            for uid in list(self._above):
                self.pod_changed(uid)

    async def full_pass(self) -> bool:
        """Enforce every pod, also pods without an event.

        :returns: False if not all cgroups can be listed; the log says why.
        """
        whole = True
        try:
            for done, event in enumerate(self._watcher.scan_by_pod()):
                if isinstance(event, Removed):
                    self._handle(event)
                if done % _BATCH == 0:
                    await asyncio.sleep(0)
        except OSError as error:
            logger.warning("Pods' cgroups can't be listed; trying again: %s", error)
            whole = False
        for done, pod in enumerate(self._watcher.pods):
            if done % _BATCH == 0:
                await asyncio.sleep(0)
            self.enforce(pod)
        return whole

    def enforce(self, pod: PodCgroup) -> None:
        """Write the plan into the limit files of ``pod``.

        This function is synchronous and takes microseconds for a file. No other task may run
        between the event and the limit, because the containers start soon after the event.
        """
        self._pods[pod.uid] = pod
        allowance = self._allowance(pod.uid)
        by_pod_alone = ""
        try:
            above = self._set(pod.path, allowance, None)
            for container in kubepods.containers(pod):
                try:
                    above |= self._set(container.path, allowance, container.id)
                except (CgroupGone, NotControlled):
                    continue  # the pod's limit holds
                except OwnNamespace as error:
                    by_pod_alone = f"{error} The limit of its pod {pod.uid} holds."
        except CgroupGone:
            self._forget(pod)
            return
        except (CgroupError, OSError) as error:
            if self._failures.get(pod.uid) != str(error):
                logger.error("Pod %s is not limited: %s", pod.uid, error, extra=about(uid=pod.uid))
            self._failures[pod.uid] = str(error)
            return
        self._failures.pop(pod.uid, None)
        if by_pod_alone:
            self._by_pod_alone[pod.uid] = by_pod_alone
        else:
            self._by_pod_alone.pop(pod.uid, None)
        if above:
            self._above[pod.uid] = (
                f"Pod {pod.uid} uses more huge pages than it may: {', '.join(sorted(above))};"
                " the limit falls when the pod gives pages back. Or delete the pod."
            )
            self._some_above.set()
        else:
            self._above.pop(pod.uid, None)

    def _limit_at_once(self, pod: PodCgroup) -> None:
        """Write only ``rsvd.max`` of a pod's new cgroup, because other new pods wait.

        The cgroup is empty, so nothing has to be read. :meth:`enforce` follows, and reports errors.
        """
        allowance = self._allowance(pod.uid)
        if allowance is None:
            return
        wanted = plan(allowance, None, {}, self._sizes, mirror=self._mirror)
        with contextlib.suppress(CgroupError, OSError):
            for (size, limit), value in wanted.items():
                if limit == "rsvd.max":
                    cgroup.write_limit(pod.path, size, limit, value)

    def _handle(self, event: CgroupEvent) -> None:
        match event:
            case Created(pod):
                self._limit_at_once(pod)
            case Changed(pod):
                if pod.uid not in self._pods:
                    self._moved()
                self.enforce(pod)
            case Populated():
                self._moved()
            case Removed(pod):
                self._forget(pod)
                self._moved()
            case Overflowed():
                self.due()

    def _forget(self, pod: PodCgroup) -> None:
        # A cgroup with the same UID at another place is a different one.
        if self._pods.get(pod.uid) == pod:
            for by_uid in (self._pods, self._failures, self._above, self._by_pod_alone):
                by_uid.pop(pod.uid, None)

    def _set(self, path: Path, allowance: Allowance | None, container: str | None) -> set[str]:
        """Set the limits of one cgroup; return a clause for each limit that is still too high."""
        found: Limits = {
            (size, limit): cgroup.read_limit(path, size, limit)
            for size in self._sizes
            for limit in _LIMITS
        }
        wanted = plan(allowance, container, found, self._sizes, mirror=self._mirror)
        above, written = set[str](), list[str]()
        for (size, limit), value in wanted.items():
            # If one limit can't be lowered yet, go on with the others.
            before = found[size, limit]
            now = _written(path, size, limit, value, before)
            if now != value:
                above.add(f"{_text(now)} of {size.resource}, allowed {_text(value)}")
            if now != before:
                written.append(f"{size.cgroup}.{limit}={_text(now)} (was {_text(before)})")
        if written:
            logger.info("%s: %s", path, ", ".join(written), extra=about(cgroup=path))
        return above


def _written(
    path: Path, size: PageSize, limit: Limit, wanted: int | None, found: int | None
) -> int | None:
    """Write ``wanted``, or the use if the use is more; return the limit as it is then."""
    value = wanted
    for _ in range(_ATTEMPTS):
        if value == found:
            break
        try:
            cgroup.write_limit(path, size, limit, value)
        except LimitBelowUse:
            use = cgroup.read_use(path, size)
            value = admissible(wanted, use.reserved if limit == "rsvd.max" else use.faulted)
        else:
            return value
    return found


def _text(value: int | None) -> str:
    return "max" if value is None else quantity.render(value)
