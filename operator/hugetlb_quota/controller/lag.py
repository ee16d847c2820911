"""Measures how long changes wait until the quotas show them."""

from __future__ import annotations

import time
from collections.abc import Callable


class Lag:
    """The age of the oldest change that the quotas do not show yet.

    ``counts``: the number of counts; ``took``: the seconds that they took together.

    :param clock: returns seconds since any fixed moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: When the oldest change came that no count has begun to take in.
        self._changed_at: float | None = None
        #: When the oldest change came that the counts up to now took in but did not show.
        self._counting_since: float | None = None
        self._began_at = 0.0
        self._has_failed = False
        self.counts = 0
        self.took = 0.0

    def changed(self) -> None:
        """Note a change that the next count takes in."""
        if self._changed_at is None:
            self._changed_at = self._clock()

    def begin(self) -> None:
        """Note that a count begins. It takes in all changes until now."""
        self._began_at = self._clock()
        self._has_failed = False
        if self._counting_since is None:
            self._counting_since = self._changed_at
        self._changed_at = None

    def failed(self) -> None:
        """Note that a read or a write of the present count failed."""
        self._has_failed = True

    def end(self) -> None:
        """Note that the count ends. Unless a part failed, the quotas show what it took in."""
        self.counts += 1
        self.took += self._clock() - self._began_at
        if not self._has_failed:
            self._counting_since = None

    def seconds(self) -> float:
        """The age of the oldest change that the quotas do not show; 0.0 if they show all."""
        since = self._changed_at if self._counting_since is None else self._counting_since
        return 0.0 if since is None else self._clock() - since
