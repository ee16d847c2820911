"""How far the count is behind what has happened."""

from __future__ import annotations

import time
from collections.abc import Callable


class Lag:
    """Follows the oldest change that no count has taken in yet.

    :param clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed: float | None = None
        self._counting: float | None = None
        self._began = 0.0
        self._failed = False
        #: How many counts there were, and how many seconds they took together.
        self.counts = 0
        self.took = 0.0

    def changed(self) -> None:
        """Something happened that the next count takes in."""
        if self._changed is None:
            self._changed = self._clock()

    def begin(self) -> None:
        """A count begins: it takes in all that has happened until now."""
        self._began = self._clock()
        self._failed = False
        if self._counting is None:
            self._counting = self._changed
        self._changed = None

    def failed(self) -> None:
        """A part of the count that is under way could not be read or written."""
        self._failed = True

    def end(self) -> None:
        """The count is over; what it took in is shown by the quotas, unless a part failed."""
        self.counts += 1
        self.took += self._clock() - self._began
        if not self._failed:
            self._counting = None

    def seconds(self) -> float:
        """How long ago the oldest change was that the quotas do not show; 0.0 without any."""
        since = self._changed if self._counting is None else self._counting
        return 0.0 if since is None else self._clock() - since
