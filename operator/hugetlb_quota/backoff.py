"""Waits between attempts that fail: each twice the one before, up to a longest."""

from __future__ import annotations


class Backoff:
    """How long to wait before the next attempt, in seconds.

    :param first: the first wait, and the first after :meth:`reset`.
    :param longest: no wait is longer.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def next(self) -> float:
        """The wait after one more failure."""
        wait = min(self._next, self._longest)
        self._next = 2 * wait
        return wait

    def reset(self) -> None:
        """An attempt succeeded: the next failure is a first one again."""
        self._next = self._first
