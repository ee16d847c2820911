"""Giving back the pages of a file that nobody holds, and of no other.

Whether anybody has a file open or mapped can't be looked up without a race: somebody may
open it in the moment after. A write lease (fcntl(2), F_SETLEASE) is both the question and
the lock: the kernel grants it only while no other open file description of the inode is
there (``check_conflicting_open`` in fs/locks.c; a mapping holds its own), and who opens
the file from then on waits until the lease is given back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from pathlib import Path
from typing import Final

#: O_NONBLOCK: opening must not wait for somebody else's lease.
_OPEN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotReclaimed(Exception):
    """The file was left as it is; the sentence says why."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is left as it is: {why}.")
        self.path = path


class StillHeld(NotReclaimed):
    """Somebody has the file open or mapped."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "a process has it open or mapped")


class AnotherFile(NotReclaimed):
    """The name stands for another file by now, or for none."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "its name stands for another file, or for none")


def reclaim(path: Path, device: int, inode: int) -> None:
    """Truncate and remove the file ``path``, if it is still this one and nobody holds it.

    Killed half-way it leaves the file whole, or truncated, which a second call removes.
    Who opens it meanwhile waits, for microseconds, and then finds it empty.

    :param device: ``st_dev`` of the file that is meant, ``inode`` its ``st_ino``.
    :raises StillHeld: when somebody has it open or mapped.
    :raises AnotherFile: when the name stands for something else.
    :raises NotReclaimed: when the file can't be opened or emptied.
    """
    try:
        descriptor = os.open(path, _OPEN)
    except FileNotFoundError as error:
        raise AnotherFile(path) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise AnotherFile(path) from error
        if error.errno == errno.EWOULDBLOCK:
            raise StillHeld(path) from error
        raise NotReclaimed(path, error.strerror or str(error)) from error
    try:
        _lease(descriptor, path)
        found, named = os.fstat(descriptor), path.lstat()
        meant = (device, inode)
        if (found.st_dev, found.st_ino) != meant or (named.st_dev, named.st_ino) != meant:
            raise AnotherFile(path)
        if not stat.S_ISREG(found.st_mode):
            raise AnotherFile(path)
        os.ftruncate(descriptor, 0)
        path.unlink()
    except FileNotFoundError as error:
        raise AnotherFile(path) from error
    except OSError as error:
        raise NotReclaimed(path, error.strerror or str(error)) from error
    finally:
        os.close(descriptor)  # gives the lease back


def _lease(descriptor: int, path: Path) -> None:
    # An opener makes the kernel signal the lease's holder, with SIGIO unless told
    # otherwise, and that ends a process. SIGURG is ignored by default.
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise StillHeld(path) from error
        raise NotReclaimed(path, f"it can't be leased, {error.strerror}") from error
