"""Tells when something may have been charged or given back: no event does.

Counters are compared a few times a second, on descriptors that stay open, in a thread of their
own: to wake the event loop is most of what a look costs where nothing has moved, and with many
pods limits would wait for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Final

from hugetlb_quota.node import hugetlbfs, kubepods
from hugetlb_quota.node.counters import Counter, Counters
from hugetlb_quota.node.host import HostRoot, HostUnreadable
from hugetlb_quota.node.kubepods import PodCgroup
from hugetlb_quota.node.pools import pools
from hugetlb_quota.page_size import PageSize

#: Between two looks at what all of kubepods is charged, and at what the pools have, in seconds.
PERIOD: Final = 0.25
#: Every so many of them, at each pod: two that made up for each other move no sum.
PODS: Final = 4
#: And at what kubepods, mounts and pools there are.
THE_REST: Final = 20
_NOTHING: Final = b"0\n"


class Poll:
    """Compares counters, and sets ``due`` when one moved.

    :param parents: where kubepods is, as :class:`kubepods.Parents` tells.
    :param pods: the pods' cgroups that are known just now; called in any thread.
    """

    def __init__(
        self,
        host: HostRoot,
        parents: Iterable[Path],
        sizes: Iterable[PageSize],
        pods: Callable[[], Iterable[PodCgroup]],
        due: asyncio.Event,
    ) -> None:
        self._host = host
        self._parents = parents
        self._files = [f"{size.cgroup}.rsvd.current" for size in sizes]
        self._pods = pods
        self._due = due
        folder = str(host.at("/sys/kernel/mm/hugepages"))
        self._pools = [
            tuple(Counter(f"{folder}/{size.sysfs}/{name}_hugepages") for name in ("free", "resv"))
            for size in sizes
        ]
        self._turn = threading.Lock()
        self._of_roots, self._of_pods = Counters(), Counters()
        self._roots: list[Path] = []
        self._free: list[int] = []
        self._others: object = None

    async def run(self) -> None:
        """Compare, for ever."""
        loop, over = asyncio.get_running_loop(), threading.Event()
        try:
            await asyncio.to_thread(self._look_on, over, loop)
        finally:
            over.set()

    def _look_on(self, over: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        for number in count():
            if self.moved(number):
                loop.call_soon_threadsafe(self._due.set)
            if over.wait(PERIOD):
                return

    def moved(self, number: int) -> bool:
        """Whether something moved since the look before; ``number`` counts the looks."""
        with self._turn:
            moved = number % THE_REST == 0 and self._others_changed()
            free = [self._unreserved(*pool) for pool in self._pools]
            if free != self._free:
                self._free, moved = free, True
            moved |= self._of_roots.moved(self._paths(self._roots, self._files))
            if number % PODS == 0:
                cgroups = (pod.path for pod in self._pods())
                moved |= self._of_pods.moved(self._paths(cgroups, self._charged()))
            return moved

    def compare_with_now(self) -> None:
        """Let the next look find what moves from now on; to be called before a pass reads.

        What moved and moved back between two looks is found by neither. A pass that read in
        between has seen the middle, and reported that.
        """
        self.moved(PODS)

    def close(self) -> None:
        """Close all descriptors."""
        with self._turn:
            for counters in (self._of_roots, self._of_pods):
                counters.moved(())
            for pool in self._pools:
                for counter in pool:
                    counter.close()

    def _charged(self) -> list[str]:
        """The files of the sizes of which kubepods is charged something: else no pod is."""
        return [
            file
            for file in self._files
            if any(self._of_roots.last(f"{root}/{file}") != _NOTHING for root in self._roots)
        ]

    @staticmethod
    def _paths(cgroups: Iterable[Path], files: Iterable[str]) -> list[str]:
        return [f"{cgroup}/{file}" for cgroup in cgroups for file in files]

    @staticmethod
    def _unreserved(free: Counter, reserved: Counter) -> int:
        # A page that is promised and then touched is in neither any more: that moves no charge.
        return int(free.read() or 0) - int(reserved.read() or 0)

    def _others_changed(self) -> bool:
        try:
            self._roots = list(kubepods.roots(self._parents))
            others = (hugetlbfs.superblocks(self._host), pools(self._host))
        except (HostUnreadable, OSError):
            return True  # the pass that is due tells
        changed, self._others = others != self._others, others
        return changed
