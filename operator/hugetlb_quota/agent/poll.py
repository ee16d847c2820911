"""Detects that pages were charged or given back, for which the kernel sends no event.

A thread compares counters a few times a second, on descriptors that stay open. The thread wakes the
event loop only after a change: each wake costs more than the comparison, and with many pods the
enforcer would wait.
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

#: The pause between two comparisons of the charge of kubepods and of the pools, in seconds.
PERIOD: Final = 0.25
#: Each fourth comparison includes every pod: two changes that cancel each other out change no sum.
PODS: Final = 4
#: Each twentieth comparison includes the lists of kubepods directories, mounts and pools.
THE_REST: Final = 20
_NOTHING: Final = b"0\n"


class Poll:
    """Compares counters, and sets ``due`` when one of them changed.

    :param parents: the directories that may hold kubepods; see :class:`kubepods.Parents`.
    :param pods: returns the cgroups of the pods that the watcher follows; called in any thread.
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
        self._rest: object = None

    async def run(self) -> None:
        """Compare forever."""
        loop, stop = asyncio.get_running_loop(), threading.Event()
        try:
            await asyncio.to_thread(self._compare_until, stop, loop)
        finally:
            stop.set()

    def _compare_until(self, stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        for number in count():
            if self.moved(number):
                loop.call_soon_threadsafe(self._due.set)
            if stop.wait(PERIOD):
                return

    def moved(self, number: int) -> bool:
        """Return True if something changed since the last call; ``number`` counts the calls."""
        with self._turn:
            moved = number % THE_REST == 0 and self._rest_changed()
            free = [self._unreserved(*pool) for pool in self._pools]
            if free != self._free:
                self._free, moved = free, True
            moved |= self._of_roots.moved(self._paths(self._roots, self._files))
            if number % PODS == 0:
                cgroups = (pod.path for pod in self._pods())
                moved |= self._of_pods.moved(self._paths(cgroups, self._charged()))
            return moved

    def compare_with_now(self) -> None:
        """Make the next comparison find every change from now on; call this before a pass reads.

        Without this call a pass may read a value between two comparisons that find equal values.
        The pass would report this value, and nothing would cause another pass.
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
        """Return the counter files of the page sizes that kubepods is charged for."""
        # If kubepods is charged nothing, no pod is.
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
        # A touch of a reserved page changes both counters but no charge, so compare the difference.
        return int(free.read() or 0) - int(reserved.read() or 0)

    def _rest_changed(self) -> bool:
        try:
            self._roots = list(kubepods.roots(self._parents))
            rest = (hugetlbfs.superblocks(self._host), pools(self._host))
        except (HostUnreadable, OSError):
            return True  # the next pass will say why
        changed, self._rest = rest != self._rest, rest
        return changed
