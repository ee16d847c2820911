"""Publishes an Event on a pod when the kernel has refused huge pages to the pod.

The kernel counts each refused charge in ``hugetlb.<size>.events`` of the cgroup and of all its
ancestors, also refused reservations (mm/hugetlb_cgroup.c, __hugetlb_cgroup_charge_cgroup). The
program itself sees only ENOMEM from mmap, and rarely logs this. If the count of kubepods has not
changed, the count of no pod has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hugetlb_quota import quantity
from hugetlb_quota.agent.pods import SeenPod
from hugetlb_quota.kube import events
from hugetlb_quota.kube.events import EventApi, Regarding
from hugetlb_quota.node import cgroup
from hugetlb_quota.node.cgroup import CgroupError
from hugetlb_quota.node.counters import Counters
from hugetlb_quota.node.kubepods import PodCgroup
from hugetlb_quota.page_size import PageSize

REASON: Final = "HugePagesRefused"
#: The pause between two looks, in seconds.
PERIOD: Final = 5.0
#: The pause between two Events on one pod, in seconds. The next Event counts all refusals since.
REST: Final = 600.0
#: The most pods that get Events in one look. The other pods wait for the next look.
MOST_EVENTS: Final = 8


@dataclass(slots=True)
class _Pod:
    """The refusals in one pod's cgroup.

    ``counted`` is the kernel's count at the last look. ``unpublished`` are the refusals since the
    last Event. ``published_at`` is the time of the last Event in seconds.
    """

    counted: dict[PageSize, int]
    unpublished: dict[PageSize, int] = field(default_factory=dict)
    published_at: float = float("-inf")


class Shortage:
    """Compares the kernel's counts with the refusals that were published.

    :param node: the name of this node.
    :param cgroups: returns the cgroups of the pods that the watcher follows.
    :param roots: returns the kubepods directories that the watcher has found.
    :param seen: returns the pods of this node, by the UID in the name of the cgroup.
    :param clock: returns seconds.
    """

    def __init__(
        self,
        connection: EventApi,
        node: str,
        cgroups: Callable[[], Iterable[PodCgroup]],
        roots: Callable[[], Iterable[Path]],
        sizes: Iterable[PageSize],
        seen: Callable[[], Mapping[str, SeenPod]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._node = node
        self._cgroups = cgroups
        self._roots = roots
        self._sizes = tuple(sizes)
        self._seen = seen
        self._clock = clock
        self._of_roots = Counters()
        self._pods: dict[Path, _Pod] | None = None
        #: The number of refusals since this agent started, by page size.
        self.refused = dict.fromkeys(self._sizes, 0)

    async def run(self, listed: asyncio.Event) -> None:
        """Look and publish forever; start when ``listed`` is set: all cgroups are found then."""
        await listed.wait()
        while True:
            await self.look()
            await asyncio.sleep(PERIOD)

    async def look(self) -> None:
        """Look once, and publish Events on the pods that have new refusals."""
        paths = [f"{root}/{size.cgroup}.events" for root in self._roots() for size in self._sizes]
        moved = self._of_roots.moved(paths)
        cgroups = tuple(self._cgroups())
        if moved or self._pods is None:
            # In a thread: with many pods this takes long, and the enforcer must not wait.
            counted = await asyncio.to_thread(self._count, cgroups)
            self._pods = self._compared(counted)
        present = [
            (each, pod) for each in cgroups if (pod := self._pods.get(each.path)) is not None
        ]
        self._pods = {each.path: pod for each, pod in present}
        now = self._clock()
        due = [
            (each, pod)
            for each, pod in present
            if pod.unpublished and now >= pod.published_at + REST
        ]
        for cgroup_, pod in due[:MOST_EVENTS]:
            await self._publish(cgroup_, pod)

    def _compared(self, counted: Mapping[Path, dict[PageSize, int]]) -> dict[Path, _Pod]:
        """Return the pods with the counts of now, and add the new refusals."""
        pods: dict[Path, _Pod] = {}
        for path, counts in counted.items():
            # At the first look the earlier agent has published what was counted before. A pod
            # that came later starts with a count of 0.
            pod = _Pod(counts) if self._pods is None else self._pods.get(path) or _Pod({})
            for size, count in counts.items():
                if more := count - pod.counted.get(size, 0):
                    self.refused[size] += more
                    pod.unpublished[size] = pod.unpublished.get(size, 0) + more
            pod.counted = counts
            pods[path] = pod
        return pods

    def _count(self, cgroups: Iterable[PodCgroup]) -> dict[Path, dict[PageSize, int]]:
        return {each.path: dict(self._counted(each.path)) for each in cgroups}

    def _counted(self, path: Path) -> Iterator[tuple[PageSize, int]]:
        for size in self._sizes:
            try:
                yield size, cgroup.read_refusals(path, size)
            except CgroupError:
                continue  # gone, or without the controller: then the condition Ready says so

    async def _publish(self, cgroup_: PodCgroup, pod: _Pod) -> None:
        seen = self._seen().get(cgroup_.uid)
        if seen is None:
            return  # the API has not shown the pod yet
        refused, pod.unpublished = pod.unpublished, {}
        pod.published_at = self._clock()
        for size, times in refused.items():
            await events.publish(
                self._connection,
                Regarding("v1", "Pod", seen.pod.namespace, seen.pod.name, seen.pod.uid),
                kind="Warning",
                reason=REASON,
                note=sentence(size, seen.pod.demand.of(size), times),
                program="agent",
                instance=self._node,
                action="Enforce",
            )


def sentence(size: PageSize, demand: int, times: int) -> str:
    """Return the note of an Event: more than ``demand`` bytes of ``size`` were refused."""
    often = "once" if times == 1 else f"{times} times"
    if not demand:
        return (
            f"This pod tried {often} to take pages of {size.resource}, which it does not ask for:"
            " mmap fails with ENOMEM, and some programs go on with small pages. If the pod needs"
            f" such pages, set resources.limits.{size.resource}."
        )
    return (
        f"This pod tried {often} to reserve more than its {quantity.render(demand)} of"
        f" {size.resource}: mmap fails with ENOMEM, and some programs go on with small pages."
        f" If the pod needs more, raise resources.limits.{size.resource}."
    )
