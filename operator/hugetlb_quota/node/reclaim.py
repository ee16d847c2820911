"""Removes a file that no process holds, and gives its pages back.

A check for open or mapped files alone has a race: a process may open the file a moment later. A
write lease (fcntl(2), F_SETLEASE) is both the check and a lock. The kernel grants the lease only
if the inode has no other open file description (``check_conflicting_open`` in fs/locks.c; a
mapping holds a description). A process that opens the file afterwards waits until the lease ends.

A user who can write to a directory can replace its subdirectories at any moment. So this module
resolves no path twice and follows no link: it opens each directory relative to the directory
above, and opens, compares and removes the file relative to the last directory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

#: O_NONBLOCK: open(2) must not wait for another process's lease.
_FILE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Errors of open(2) if the name is missing, or is not a file or directory as expected.
_OTHER: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO)


class NotReclaimed(Exception):
    """The file was not removed.

    ``why`` is a clause without the file's path: a path may have bytes that JSON can't hold.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class StillHeld(NotReclaimed):
    """A process has the file open or mapped."""

    def __init__(self) -> None:
        super().__init__("a process has it open or mapped")


class AnotherFile(NotReclaimed):
    """The path now names another file, or no file."""

    def __init__(self) -> None:
        super().__init__("its path now names another file, or no file")


def reclaim(mount: Path, names: Sequence[str], device: int, inode: int) -> None:
    """Truncate and remove a file, if the path still names this file and no process holds it.

    If the process is killed meanwhile, the file is whole or truncated, and a second call removes
    it. A process that opens the file meanwhile waits for microseconds and finds the file empty.

    :param mount: the mount point of the file's file system.
    :param names: the path below ``mount``: the names of the directories, then the file's name.
    :param device: the file's ``st_dev``.
    :param inode: the file's ``st_ino``.
    :raises StillHeld: a process has the file open or mapped.
    :raises AnotherFile: the path now names another file, or no file.
    :raises NotReclaimed: ``names`` don't lead down from ``mount``, or the file can't be opened,
        truncated or removed.
    """
    if not names or not all(_is_name(name) for name in names):
        raise NotReclaimed("its path does not lead down from its mount")
    *above, name = names
    try:
        with _directory(mount, above) as directory, _opened(name, directory) as descriptor:
            _lease(descriptor)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or not _is_same(found, device, inode):
                raise AnotherFile
            _check_same(name, directory, device, inode)
            os.ftruncate(descriptor, 0)
            _check_same(name, directory, device, inode)
            os.unlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno in _OTHER:
            raise AnotherFile from error
        raise NotReclaimed(_reason(error)) from error


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


@contextmanager
def _directory(mount: Path, names: Sequence[str]) -> Iterator[int]:
    directory = os.open(mount, _DIRECTORY)
    try:
        for name in names:
            below = os.open(name, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = below
        yield directory
    finally:
        os.close(directory)


@contextmanager
def _opened(name: str, directory: int) -> Iterator[int]:
    try:
        descriptor = os.open(name, _FILE, dir_fd=directory)
    except BlockingIOError as error:
        raise StillHeld from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # this also ends the lease


def _check_same(name: str, directory: int, device: int, inode: int) -> None:
    named = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not _is_same(named, device, inode):
        raise AnotherFile


def _is_same(found: os.stat_result, device: int, inode: int) -> bool:
    return (found.st_dev, found.st_ino) == (device, inode)


def _lease(descriptor: int) -> None:
    # When a process opens the file, the kernel sends a signal to the lease's holder. The default
    # SIGIO would end this process. SIGURG is ignored by default.
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError as error:
        raise StillHeld from error
    except OSError as error:
        raise NotReclaimed(f"the kernel grants no lease on it, {_reason(error)}") from error


def _reason(error: OSError) -> str:
    # Not str(error): that text contains the path.
    return error.strerror or type(error).__name__
