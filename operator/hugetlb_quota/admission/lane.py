"""The queue of the requests for one tree of quotas, and how the queue forms batches."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Final

from hugetlb_quota.admission.batch import ChargeRequest

#: The largest number of requests in a batch; a write with more reservations becomes slow.
LARGEST_BATCH: Final = 128
#: The longest time that a batch waits for the clients that the last batch answered, in seconds.
LONGEST_RETURN: Final = 0.032
#: How long to gather requests after a Conflict, in seconds. The time doubles from the first to
#: the longest while Conflicts go on, so that replicas take turns with larger batches.
FIRST_GATHERING: Final = 0.002
LONGEST_GATHERING: Final = 0.016


class Lane:
    """The requests that wait for one tree, in a queue for each namespace.

    ``task``: commits the batches; None if no request waits. ``gathering``: how long to gather
    requests before the next batch, in seconds. ``batch_seconds``: how long a batch takes,
    estimated from the last ones.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[ChargeRequest]] = {}
        self.task: asyncio.Task[None] | None = None
        self.gathering = 0.0
        self.batch_seconds = 0.0
        self._writing = False
        #: The number of requests in the last answered batch, and the number that came in since.
        self._answered = 0
        self._came_since = 0
        #: The share of the answered clients that soon send another request.
        self._return_rate = 1.0
        #: The number of waiting requests at which a batch need not wait longer.
        self._expected = 0
        self._expected_came = asyncio.Event()

    async def gather(self) -> None:
        """Wait for the clients that the last batch answered, at most as long as a batch takes.

        Most clients send their next request as soon as they are answered, and a large batch costs
        the API server no more than a small one. Without this wait the clients of a tree split into
        two halves, and each half comes back while the other half is written. A single client
        never waits.
        """
        if len(self) < self._expected:
            self._expected_came.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(self.batch_seconds, LONGEST_RETURN)):
                    await self._expected_came.wait()
            self._expected = 0

    def answered(self, count: int, *, conflict: bool = False) -> None:
        """Note that a batch of ``count`` requests was written and answered.

        :param conflict: whether a write of the batch met a Conflict.
        """
        self._writing = False
        if conflict and count > 1:
            self.gathering = min(max(2 * self.gathering, FIRST_GATHERING), LONGEST_GATHERING)
        else:
            # A single client has nobody to wait for, and its Conflict is most often with the
            # controller's count.
            gathering = self.gathering / 2
            self.gathering = gathering if gathering >= FIRST_GATHERING / 4 else 0.0
        if self._answered:
            rate = min(self._came_since / self._answered, 1.0)
            self._return_rate = (self._return_rate + rate) / 2
        self._answered, self._came_since = count, 0
        expected = min(len(self) + round(count * self._return_rate), LARGEST_BATCH)
        # The others do not wait for a few late clients.
        self._expected = expected - expected // 8

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, request: ChargeRequest) -> None:
        """Put a request at the end of the queue of its namespace."""
        self._waiting.setdefault(request.namespace, deque()).append(request)
        self._came_since += 1
        if len(self) >= self._expected:
            self._expected_came.set()

    def expected_wait(self, namespace: str) -> float:
        """The estimated seconds until a new request of ``namespace`` would be answered."""
        if not (self._writing or self._waiting):
            return 0.0
        ahead = len(self._waiting.get(namespace, ()))
        others = sum(
            min(len(queue), ahead + 1) for name, queue in self._waiting.items() if name != namespace
        )
        return ((ahead + others) // LARGEST_BATCH + 2) * self.batch_seconds

    def take_batch(self) -> list[ChargeRequest]:
        """Remove the next batch from the queues; the batch without cancelled requests.

        A batch takes one request of each namespace in turn, so that a burst in one namespace does
        not delay the others.
        """
        batch: list[ChargeRequest] = []
        while self._waiting and len(batch) < LARGEST_BATCH:
            for namespace in list(self._waiting):
                queue = self._waiting[namespace]
                batch.append(queue.popleft())
                if not queue:
                    del self._waiting[namespace]
                if len(batch) == LARGEST_BATCH:
                    # The next batch begins with the namespace after this one.
                    if namespace in self._waiting:
                        self._waiting[namespace] = self._waiting.pop(namespace)
                    break
        self._writing = True
        return [request for request in batch if not request.done.done()]
