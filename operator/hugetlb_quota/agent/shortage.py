"""Tells a pod's people that the kernel refused huge pages to it: an Event on the pod.

The kernel counts in ``hugetlb.<size>.events`` of a cgroup and of all above it each charge that did
not fit, reservations among them (mm/hugetlb_cgroup.c, __hugetlb_cgroup_charge_cgroup). A pod whose
limit is what it asks for sees nothing but ENOMEM of mmap, and mostly says nothing of it. Where
kubepods counted nothing more, no pod in it did.
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
#: Between two looks, in seconds.
PERIOD: Final = 5.0
#: Between two Events on one pod, in seconds: the later one has the number of all.
REST: Final = 600.0
#: Events in one look, at the most: the others are for the next.
MOST_EVENTS: Final = 8


@dataclass(slots=True)
class _Pod:
    """Of one pod's cgroup: what the kernel had counted, what was not told, and since when."""

    counted: dict[PageSize, int]
    untold: dict[PageSize, int] = field(default_factory=dict)
    told_at: float = float("-inf")


class Shortage:
    """Compares what the kernel counts with what was told.

    :param node: the name of this node.
    :param cgroups: the pods' cgroups that are known just now.
    :param roots: kubepods, wherever it is known just now.
    :param seen: which pod is of a cgroup, by the UID in the cgroup's name.
    :param clock: gives seconds.
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
        #: How often huge pages were refused since this agent began, by page size.
        self.refused = dict.fromkeys(self._sizes, 0)

    async def run(self, listed: asyncio.Event) -> None:
        """Look and tell for ever, beginning when ``listed`` is set: all cgroups are known."""
        await listed.wait()
        while True:
            await self.look()
            await asyncio.sleep(PERIOD)

    async def look(self) -> None:
        """Look once, and tell of pods that were refused something."""
        paths = [f"{root}/{size.cgroup}.events" for root in self._roots() for size in self._sizes]
        moved = self._of_roots.moved(paths)
        cgroups = tuple(self._cgroups())
        if moved or self._pods is None:
            # In a thread: of many pods it takes so long that limits would wait for it.
            counted = await asyncio.to_thread(self._count, cgroups)
            self._pods = self._compared(counted)
        there = [(each, pod) for each in cgroups if (pod := self._pods.get(each.path)) is not None]
        self._pods = {each.path: pod for each, pod in there}
        now = self._clock()
        owing = [each for each in there if each[1].untold and now >= each[1].told_at + REST]
        for cgroup_, pod in owing[:MOST_EVENTS]:
            await self._tell(cgroup_, pod)

    def _compared(self, counted: Mapping[Path, dict[PageSize, int]]) -> dict[Path, _Pod]:
        """The pods with what was ``counted`` now, and what is to be told of that."""
        pods: dict[Path, _Pod] = {}
        for path, counts in counted.items():
            # What was counted before this agent began was told by the one before it. What came
            # since then begins at nothing.
            pod = _Pod(counts) if self._pods is None else self._pods.get(path) or _Pod({})
            for size, count in counts.items():
                if more := count - pod.counted.get(size, 0):
                    self.refused[size] += more
                    pod.untold[size] = pod.untold.get(size, 0) + more
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
                continue  # gone, or not limited at all: that is told elsewhere

    async def _tell(self, cgroup_: PodCgroup, pod: _Pod) -> None:
        seen = self._seen().get(cgroup_.uid)
        if seen is None:
            return  # the API has not told of it yet
        told, pod.untold = pod.untold, {}
        pod.told_at = self._clock()
        for size, times in told.items():
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
    """What is told: ``times`` more than ``demand`` bytes of ``size`` were refused."""
    often = "once" if times == 1 else f"{times} times"
    if not demand:
        return (
            f"This pod tried {often} to take pages of {size.resource}, for which it does not ask:"
            f" mmap fails with ENOMEM, and programs that can go on with small pages. To get some,"
            f" set resources.limits.{size.resource}."
        )
    return (
        f"This pod tried {often} to reserve more than its {quantity.render(demand)} of"
        f" {size.resource}: mmap fails with ENOMEM, and programs that can go on with small pages."
        f" If it needs more, raise resources.limits.{size.resource}."
    )
