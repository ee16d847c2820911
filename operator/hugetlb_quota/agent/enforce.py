"""Enforcement: every pod's limit files say what the plan says, whoever wrote them last.

Only what differs is written, so doing it again is free of effect. A pod whose cgroup
can't be read or written never keeps the others from theirs.
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

#: Between two passes over all pods, in seconds: for what no event told.
FULL_PASS: Final = 30.0
#: Between two attempts to lower a limit that is below use, in seconds: pages given back
#: raise no event.
RETRY: Final = 1.0
#: How often a limit is tried while its use keeps growing, before the next RETRY.
_ATTEMPTS: Final = 3
#: Pods done in one go, before other tasks get their turn.
_BATCH: Final = 4

_LIMITS: Final[tuple[Limit, Limit]] = ("rsvd.max", "max")

logger = logging.getLogger(__name__)


class Enforcer:
    """Keeps the limits of the pods that ``watcher`` finds.

    :param sizes: the huge page sizes of the host.
    :param allowance: what the pod may use whose cgroup has this UID; None: it asks for no huge
        pages, or is not known.
    :param moved: called when a pod's cgroup is new or gone, or when processes came to it or left.
    :param mirror: whether a pod without allowance gets kubelet's ``max`` as ``rsvd.max`` too.
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
        """Why pods are not limited, a sentence each."""
        return tuple(self._failures[uid] for uid in sorted(self._failures))

    @property
    def above(self) -> tuple[str, ...]:
        """Which pods use more than they may, a sentence each; their limit follows their use."""
        return tuple(self._above[uid] for uid in sorted(self._above))

    @property
    def by_pod_alone(self) -> tuple[str, ...]:
        """Containers that only their pod's limit holds, a sentence each."""
        return tuple(self._by_pod_alone[uid] for uid in sorted(self._by_pod_alone))

    def due(self) -> None:
        """Ask for a pass over all pods, soon."""
        self._due.set()

    def pod_changed(self, uid: str) -> None:
        """What is known of the pod has changed whose cgroup has this ``uid``."""
        if (pod := self._pods.get(uid)) is not None:
            self.enforce(pod)

    async def follow(self) -> None:
        """Enforce whatever happens to pods' cgroups, at once; for ever."""
        while True:
            try:
                async for event in self._watcher:
                    self._handle(event)
            except OSError as error:
                # What was read of events and not told yet is lost.
                logger.warning("Pods' cgroups can't be listed; trying again: %s", error)
                self.due()
                self._moved()
                await asyncio.sleep(RETRY)

    async def pass_now_and_then(self, first_done: asyncio.Event) -> None:
        """A pass over all pods when one is due, and every :data:`FULL_PASS`; for ever.

        ``first_done`` is set after the first.
        """
        while True:
            self._due.clear()
            whole = await self.full_pass()
            if whole:
                first_done.set()
            await wait_at_most(self._due, FULL_PASS if whole else RETRY)

    async def retry(self) -> None:
        """Lower the limits that were below use, as the use falls; for ever."""
        while True:
            await self._some_above.wait()
            await asyncio.sleep(RETRY)
            self._some_above.clear()
            for uid in list(self._above):
                self.pod_changed(uid)

    async def full_pass(self) -> bool:
        """Look at every pod, also at those of which no event told.

        :returns: whether all could be seen; if not, the log says why.
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
        """Make the files of ``pod`` say what the plan says.

        Synchronous, and a matter of microseconds a file: nothing may come between the
        event and the limit, since containers start soon after.
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
                    continue  # the pod's own limit holds
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
                " its limit falls as it gives them back, or end it."
            )
            self._some_above.set()
        else:
            self._above.pop(pod.uid, None)

    def _limit_at_once(self, pod: PodCgroup) -> None:
        """Set what fails mmap in a pod's new cgroup, and nothing else: others wait for theirs.

        Nothing is in it, so nothing is read. Whatever fails, :meth:`enforce` meets again.
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
        # One made anew under the same UID, elsewhere, is another.
        if self._pods.get(pod.uid) == pod:
            for known in (self._pods, self._failures, self._above, self._by_pod_alone):
                known.pop(pod.uid, None)

    def _set(self, path: Path, allowance: Allowance | None, container: str | None) -> set[str]:
        """Set the limits of one cgroup; where they can't be as low as wanted."""
        found: Limits = {
            (size, limit): cgroup.read_limit(path, size, limit)
            for size in self._sizes
            for limit in _LIMITS
        }
        wanted = plan(allowance, container, found, self._sizes, mirror=self._mirror)
        above, written = set[str](), list[str]()
        for (size, limit), value in wanted.items():
            # One that can't be lowered yet does not keep the next from it.
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
    """Write ``wanted``, or what is in use while that is more; the limit as it is then."""
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
