"""Exponential backoff between failed attempts."""

from __future__ import annotations


class Backoff:
    """The wait before each next attempt, in seconds; each wait is twice the one before.

    :param first: the first wait, and the first wait after :meth:`reset`.
    :param longest: the upper bound of a wait.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def next(self) -> float:
        """The wait after another failure, in seconds."""
        wait = min(self._next, self._longest)
        self._next = 2 * wait
        return wait

    def reset(self) -> None:
        """Begin again with the first wait; call this after a successful attempt."""
        self._next = self._first
