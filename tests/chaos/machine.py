"""The machine of a simulated node: which pods have a cgroup, and what its kernel holds."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Final

from tests.chaos.observer import Ledger, Pod

ENDS_BY_ITSELF: Final = 0.5
"""The share of pods that end without a request."""
LEAVES_PAGES: Final = 0.5
"""The share of pods that leave pages in a file."""
TRUNCATED: Final = 0.05
"""The probability that a file is truncated, for each look of kubelet."""
PAGE: Final = 2 << 20
"""In bytes."""


class Machine:
    """The memory of a node. The machine writes into the ledger what the kernel holds.

    `seen`: counts what happened. `boot`: the number of the present boot.
    """

    def __init__(
        self, name: str, ledger: Ledger, chance: random.Random, seen: Counter[str]
    ) -> None:
        self.name = name
        self.chance = chance
        self.seen = seen
        self.boot = 0
        self.powered = False
        self.quiet = False
        """Whether pods and files change only after a request to the API."""
        self.running: dict[str, float] = {}
        """The time at which each running pod ends by itself, by UID."""
        self.ended: set[str] = set()
        """The UIDs of the pods that ended in this boot, and that this boot never starts again."""
        self.left: dict[str, int] = {}
        """The bytes that ended pods left in files, by UID."""
        self._emptied: dict[str, float] = {}
        """The time at which the cgroup of each ended pod is removed, by UID."""
        self._ledger = ledger

    @property
    def boot_id(self) -> str:
        """The boot ID of the kernel."""
        return f"{self.name}-boot-{self.boot}"

    def pods(self) -> list[Pod]:
        """The pods of this node, also those that are no longer in the API."""
        gone = [pod for pod in self._ledger.gone.values() if pod.node == self.name]
        return [*self._ledger.bound_to(self.name), *gone]

    def power_on(self) -> None:
        """Run: from now on, the pods of this node may start."""
        self.powered = True
        self._ledger.off.discard(self.name)
        self.settle()

    def power_off(self) -> None:
        """Lose all memory at once."""
        self.powered = False
        self._ledger.off.add(self.name)
        for memory in (self.running, self.ended, self.left, self._emptied):
            memory.clear()
        for pod in self.pods():
            self._ledger.held.pop(pod.uid, None)

    def start(self, pod: Pod) -> None:
        """Make the cgroup and run the program, which takes all pages at once."""
        ends = self.chance.random() < ENDS_BY_ITSELF
        self.running[pod.uid] = now() + self.chance.uniform(0.5, 8) if ends else float("inf")
        self.seen["started"] += 1

    def is_over(self, pod: Pod) -> bool:
        """Whether the program of a running pod has ended by itself."""
        return self.running[pod.uid] <= now() and not self.quiet

    def end(self, pod: Pod) -> None:
        """End the pod's processes; its cgroup and a file may stay."""
        if self.running.pop(pod.uid, None) is not None:
            self._emptied[pod.uid] = now() + self.chance.uniform(0, 1)
            if self.chance.random() < LEAVES_PAGES:
                self.left[pod.uid] = PAGE * self.chance.randint(1, pod.pages // PAGE)
                self.seen["left pages"] += 1
            self.seen["ended"] += 1
        self.ended.add(pod.uid)
        self.settle()

    def has_cgroup(self, uid: str) -> bool:
        """Whether the pod's cgroup exists."""
        return uid in self.running or self._emptied.get(uid, 0) > now()

    def charged(self, pod: Pod) -> int:
        """The bytes that the kernel charges to the pod's cgroup, also after its removal."""
        return pod.pages if pod.uid in self.running else self.left.get(pod.uid, 0)

    def truncate(self) -> None:
        """Truncate some files."""
        for uid, left in list(self.left.items()):
            if left and self.chance.random() < TRUNCATED and not self.quiet:
                self.left[uid] = self.chance.choice((0, left // PAGE // 2 * PAGE))
                self.seen["truncated"] += 1
        self.settle()

    def settle(self) -> None:
        """Write into the ledger what the kernel holds.

        A pod that may still start counts as if it had all its pages already.
        """
        gone = self._ledger.gone
        for pod in self.pods():
            may_start = not (pod.uid in gone or pod.uid in self.ended or pod.finished)
            self._ledger.held[pod.uid] = pod.pages if may_start else self.charged(pod)


def now() -> float:
    """The time of the event loop, in seconds."""
    return asyncio.get_running_loop().time()
