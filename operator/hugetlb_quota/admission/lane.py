"""The queue of the requests that wait for one tree of quotas, in which batches they leave it."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.kube.quotas import QuotaObject

#: Requests a batch: as many as one write can carry without becoming slow.
LARGEST_BATCH: Final = 128
#: How long a batch waits at most for clients that the last batch answered, in seconds.
LONGEST_RETURN: Final = 0.032
#: How long requests are gathered after a conflict, in seconds: doubled from the first to the
#: longest while conflicts go on, so that replicas take turns with larger batches.
FIRST_GATHERING: Final = 0.002
LONGEST_GATHERING: Final = 0.016


@dataclass(eq=False, slots=True)
class Wanted:
    """A request that waits: what it was decided on, and what it reserves."""

    chain: tuple[QuotaObject, ...]
    reservation: Reservation
    deadline: Deadline
    done: asyncio.Future[int]
    errors: list[Exception] = field(default_factory=list)
    held: set[QuotaKey] = field(default_factory=set)
    written: int = 0

    def decided(self, key: QuotaKey) -> QuotaObject:
        """The quota ``key`` as it was when the request was decided on."""
        return next(each for each in self.chain if each.key == key)


class Lane:
    """Those that wait for one tree, by the namespaces that their pods are in."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Wanted]] = {}
        self.task: asyncio.Task[None] | None = None
        self.gathering = 0.0
        self.batch_seconds = 0.0
        self._writing = False
        self._answered = 0
        self._came = 0
        self._return_rate = 1.0
        self._expected = 0
        self._full = asyncio.Event()

    async def gather(self) -> None:
        """Wait for the clients that the last batch answered, at most for the time of a batch.

        A client that was answered mostly sends its next request at once, and a large batch
        costs the API server the same as a small one. Without this wait the clients of a tree
        part into two halves for good, each of which comes back while the other is written. A
        single client never waits here.
        """
        if len(self) < self._expected:
            self._full.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self.batch_seconds, LONGEST_RETURN)):
                    await self._full.wait()
            self._expected = 0

    def answered(self, count: int, *, conflict: bool = False) -> None:
        """A batch of ``count`` requests was written and answered.

        :param conflict: whether its write met another's.
        """
        self._writing = False
        if conflict and count > 1:
            self.gathering = min(max(2 * self.gathering, FIRST_GATHERING), LONGEST_GATHERING)
        else:
            # A single client would wait for nobody, and mostly it met the controller's count.
            gathering = self.gathering / 2
            self.gathering = gathering if gathering >= FIRST_GATHERING / 4 else 0.0
        if self._answered:
            rate = min(self._came / self._answered, 1.0)
            self._return_rate = (self._return_rate + rate) / 2
        self._answered, self._came = count, 0
        expected = min(len(self) + round(count * self._return_rate), LARGEST_BATCH)
        # For a few that are late, all others do not wait.
        self._expected = expected - expected // 8

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, wanted: Wanted) -> None:
        """Put a request at the end of the queue of its pod's namespace."""
        namespace = wanted.reservation.pod.partition("/")[0]
        self._waiting.setdefault(namespace, deque()).append(wanted)
        self._came += 1
        if len(self) >= self._expected:
            self._full.set()

    def wait_for(self, namespace: str) -> float:
        """Seconds until one more request of ``namespace`` would be answered, as things go."""
        if not (self._writing or self._waiting):
            return 0.0
        ahead = len(self._waiting.get(namespace, ()))
        others = sum(
            min(len(queue), ahead + 1) for name, queue in self._waiting.items() if name != namespace
        )
        return ((ahead + others) // LARGEST_BATCH + 2) * self.batch_seconds

    def take(self) -> list[Wanted]:
        """The next batch: one of each namespace in turn, so that none waits for another's burst."""
        batch: list[Wanted] = []
        while self._waiting and len(batch) < LARGEST_BATCH:
            for namespace in list(self._waiting):
                queue = self._waiting[namespace]
                batch.append(queue.popleft())
                if not queue:
                    del self._waiting[namespace]
                if len(batch) == LARGEST_BATCH:
                    # Who was passed over is first in the next.
                    if namespace in self._waiting:
                        self._waiting[namespace] = self._waiting.pop(namespace)
                    break
        self._writing = True
        return [wanted for wanted in batch if not wanted.done.done()]
