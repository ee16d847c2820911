"""Files of the kernel that count, read again and again on descriptors that stay open.

Opening is most of the cost of reading such a file. A descriptor keeps no cgroup from being
removed; reading it fails then (ENODEV).
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final, Self

_LONGEST: Final = 32


class Counter:
    """What the file at ``path`` says; None when there is none (any more)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def read(self) -> bytes | None:
        """What it says now: one line."""
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._descriptor, _LONGEST, 0)
        except OSError:
            # Made anew under its name it is another file.
            self.close()
            return None

    def close(self) -> None:
        """Close the descriptor; :meth:`read` opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Counters:
    """Tells whether any of several counters moved."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._values: dict[str, bytes | None] = {}

    def says(self, path: str) -> bytes | None:
        """What the counter at ``path`` said last; None when there was none."""
        return self._values.get(path)

    def moved(self, paths: Collection[str]) -> bool:
        """Whether one of the counters at ``paths`` says something else than the time before.

        One that was not among them then did; one that is not among them any more did not.
        """
        for path in self._counters.keys() - set(paths):
            self._counters.pop(path).close()
            del self._values[path]
        moved = False
        for path in paths:
            if path not in self._counters:
                self._counters[path] = Counter(path)
                self._values[path] = b""
            value = self._counters[path].read()
            if value != self._values[path]:
                self._values[path] = value
                moved = True
        return moved

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.moved(())
