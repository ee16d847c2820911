"""Giving back the pages of a file that nobody holds, and of no other.

Whether anybody has a file open or mapped can't be looked up without a race: somebody may
open it in the moment after. A write lease (fcntl(2), F_SETLEASE) is both the question and
the lock: the kernel grants it only while no other open file description of the inode is
there (``check_conflicting_open`` in fs/locks.c; a mapping holds its own), and who opens
the file from then on waits until the lease is given back.

Who can write a directory can put another directory in the place of one in it, at any
moment. So no path is resolved twice, and no link is followed: each directory is opened in
the one above it, and the file is opened, compared and removed in the last of them.
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

#: O_NONBLOCK: opening must not wait for somebody else's lease.
_FILE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: What opening says where there is another thing than a file, or than a directory.
_OTHER: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO)


class NotReclaimed(Exception):
    """The file was not removed.

    ``why`` is a clause that does not name the file: a path may have bytes that no JSON can.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class StillHeld(NotReclaimed):
    """Somebody has the file open or mapped."""

    def __init__(self) -> None:
        super().__init__("a process has it open or mapped")


class AnotherFile(NotReclaimed):
    """The name stands for another file by now, or for none."""

    def __init__(self) -> None:
        super().__init__("its name stands for another file, or for none")


def reclaim(mount: Path, names: Sequence[str], device: int, inode: int) -> None:
    """Truncate and remove a file, if it is still this one and nobody holds it.

    Killed half-way it leaves the file whole, or truncated, which a second call removes.
    Who opens it meanwhile waits, for microseconds, and then finds it empty.

    :param mount: the directory where its file system is mounted.
    :param names: of the directories below ``mount``, from the top, and last of the file.
    :param device: ``st_dev`` of the file that is meant, ``inode`` its ``st_ino``.
    :raises StillHeld: when somebody has it open or mapped.
    :raises AnotherFile: when the name stands for something else.
    :raises NotReclaimed: when ``names`` don't lead down from ``mount``, or when the file
        can't be opened, emptied or removed.
    """
    if not names or not all(_is_name(name) for name in names):
        raise NotReclaimed("its path does not lead down from its mount")
    *above, name = names
    try:
        with _directory(mount, above) as directory, _opened(name, directory) as descriptor:
            _lease(descriptor)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or not _is(found, device, inode):
                raise AnotherFile
            _compare(name, directory, device, inode)
            os.ftruncate(descriptor, 0)
            _compare(name, directory, device, inode)
            os.unlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno in _OTHER:
            raise AnotherFile from error
        raise NotReclaimed(_why(error)) from error


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
        os.close(descriptor)  # gives the lease back


def _compare(name: str, directory: int, device: int, inode: int) -> None:
    named = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not _is(named, device, inode):
        raise AnotherFile


def _is(found: os.stat_result, device: int, inode: int) -> bool:
    return (found.st_dev, found.st_ino) == (device, inode)


def _lease(descriptor: int) -> None:
    # An opener makes the kernel signal the lease's holder, with SIGIO unless told
    # otherwise, and that ends a process. SIGURG is ignored by default.
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError as error:
        raise StillHeld from error
    except OSError as error:
        raise NotReclaimed(f"it can't be leased, {_why(error)}") from error


def _why(error: OSError) -> str:
    # Not str(error), which has the path.
    return error.strerror or type(error).__name__
