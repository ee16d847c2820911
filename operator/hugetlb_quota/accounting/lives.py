"""How long a program has watched each reservation or note, by the program's own clock."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import timedelta

from hugetlb_quota.accounting.reservation import ReservationId

#: The ID of a reservation, or the text of a line: one that is not a reservation, or of a note.
LineId = ReservationId | str


class Lives:
    """Since when this program has seen each reservation, and which lives are over.

    No clocks are compared: ``now`` is always the monotonic clock of this program, in seconds.
    The program sees a reservation after the API request began, so ``lifetime`` after that
    moment the request has ended.
    """

    def __init__(self, lifetime: timedelta) -> None:
        self._lifetime = lifetime.total_seconds()
        self._first_seen: dict[LineId, float] = {}

    def note(self, lines: Iterable[LineId], now: float) -> None:
        """Take in which lines there are; forget all others."""
        self._first_seen = {each: self._first_seen.get(each, now) for each in lines}

    def is_over(self, line: LineId, now: float) -> bool:
        """Whether this program has watched ``line`` for its whole life."""
        return self.end(line) <= now

    def end(self, line: LineId) -> float:
        """When the life of ``line`` is over; infinity if this program has not seen it."""
        return self._first_seen.get(line, math.inf) + self._lifetime

    def ends(self) -> Iterable[float]:
        """When each life is over."""
        return (seen + self._lifetime for seen in self._first_seen.values())
