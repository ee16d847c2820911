"""Which files of a hugetlbfs are made, resized, removed, renamed: inotify on its directories.

fanotify on the file system tells of none of that on hugetlbfs (see ``fanotify.py``).
Nothing tells of a file that grows by mmap, nor of faults. A watch pins neither the
directory's mount nor its name; it goes with the directory.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from asyncinotify import Event, InitFlags, Inotify, Mask, Watch

from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.node.watcher import NoInotify

logger = logging.getLogger(__name__)

_MASK: Final = (
    Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.MODIFY | Mask.ONLYDIR
)
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class FileChanged:
    """Look at the file ``path`` (relative to the superblock's root) again.

    It is new, gone, another one, or has another size or other pages.
    """

    device: int
    path: str


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Look at all files of the superblock again; ``device`` None: of all superblocks."""

    device: int | None


Change = FileChanged | LookAgain


class FileChanges:
    """Watches the directories of superblocks; a context manager, iterable once entered."""

    def __init__(self) -> None:
        self._watches: dict[Path, tuple[Watch, Superblock]] = {}

    def __enter__(self) -> Self:
        """Make the inotify instance.

        :raises NoInotify: when the kernel gives none.
        """
        try:
            self._inotify = Inotify(flags=InitFlags.CLOEXEC, cache_size=_BATCH)
        except OSError as error:
            raise NoInotify(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inotify.close()

    def watch(self, superblock: Superblock) -> None:
        """Tell of ``superblock`` from now on; what is there already is not told of."""
        self._enter(superblock, superblock.path)

    def forget(self, superblock: Superblock) -> None:
        """``superblock`` is gone, or of no interest any more."""
        self._drop([path for path, (_, owner) in self._watches.items() if owner == superblock])

    async def __aiter__(self) -> AsyncIterator[Change]:
        async for event in self._inotify:
            for change in self._tell(event):
                yield change

    def _tell(self, event: Event) -> Iterator[Change]:
        if Mask.Q_OVERFLOW in event.mask:
            logger.warning("The kernel dropped inotify events; all files are looked at again.")
            for superblock in {owner for _, owner in self._watches.values()}:
                self.forget(superblock)
                self.watch(superblock)
            yield LookAgain(None)
            return
        known = self._watches.get(event.watch.path) if event.watch is not None else None
        if known is None or known[0] is not event.watch:
            return  # of a directory that was removed or renamed since
        watch, superblock = known
        if Mask.IGNORED in event.mask:
            del self._watches[watch.path]
        elif event.name is not None:
            yield from self._tell_of(superblock, watch.path / event.name, event.mask)

    def _tell_of(self, superblock: Superblock, path: Path, mask: Mask) -> Iterator[Change]:
        if Mask.ISDIR not in mask:
            if Mask.MOVED_FROM in mask:
                return  # its new name is told of next, and until then it is not gone
            yield FileChanged(superblock.device, str(path.relative_to(superblock.path)))
        elif Mask.CREATE in mask:
            files: list[str] = []
            self._enter(superblock, path, files)
            for file in files:
                yield FileChanged(superblock.device, os.path.relpath(file, superblock.path))
        elif mask & (Mask.MOVED_FROM | Mask.MOVED_TO):
            # All below has another path, and the watches would go on telling the old.
            self._drop([known for known in self._watches if known.is_relative_to(path)])
            if Mask.MOVED_TO in mask:
                self._enter(superblock, path)
            yield LookAgain(superblock.device)

    def _enter(
        self, superblock: Superblock, directory: Path, files: list[str] | None = None
    ) -> None:
        """Watch ``directory`` and all below; add the paths of what is there to ``files``.

        First watched and then listed: what comes in between is seen at least once.
        """
        pending = [directory]
        while pending:
            current = pending.pop()
            if not self._add(superblock, current):
                continue
            try:
                with os.scandir(current) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(Path(entry))
                        elif files is not None:
                            files.append(entry.path)
            except (FileNotFoundError, NotADirectoryError):
                continue

    def _add(self, superblock: Superblock, directory: Path) -> bool:
        try:
            if directory.stat().st_dev != superblock.device:
                return False  # another file system is mounted there
            watch = self._inotify.add_watch(directory, _MASK)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            logger.warning(
                "%s can't be watched (%s): files truncated and removed in it are noticed late; %s.",
                directory,
                error.strerror,
                "raise the sysctl fs.inotify.max_user_watches"
                if error.errno == errno.ENOSPC
                else "it takes CAP_DAC_READ_SEARCH to look into a directory of another user",
            )
            return error.errno == errno.ENOSPC
        self._watches[directory] = (watch, superblock)
        return True

    def _drop(self, directories: list[Path]) -> None:
        for directory in directories:
            watch, _ = self._watches.pop(directory)
            try:
                self._inotify.rm_watch(watch)
            except (OSError, ValueError):
                continue  # gone with the directory
