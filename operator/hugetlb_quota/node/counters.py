"""Counter files of the kernel, read often on descriptors that stay open.

Most of the cost of such a read is to open the file. A cgroup can be removed while its descriptors
are open; a read then fails with ENODEV.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final, Self

_LONGEST: Final = 32


class Counter:
    """A counter file at ``path``, which may come and go."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def read(self) -> bytes | None:
        """Return the line in the file now, or None if there is no file."""
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._descriptor, _LONGEST, 0)
        except OSError:
            # A later file at the same path is another file: open it then.
            self.close()
            return None

    def close(self) -> None:
        """Close the descriptor; :meth:`read` opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Counters:
    """Detects changes of a set of counter files."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._values: dict[str, bytes | None] = {}

    def last(self, path: str) -> bytes | None:
        """Return the last value read at ``path``, or None if there was no file."""
        return self._values.get(path)

    def moved(self, paths: Collection[str]) -> bool:
        """Read the counters at ``paths``; return True if a value differs from the last call.

        A path that is new in this call counts as a change. A path that is missing in this call
        does not, and its descriptor is closed.
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
