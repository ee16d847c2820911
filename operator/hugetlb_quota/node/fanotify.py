"""fanotify(7) as the kernel gives it: groups, marks, events with a descriptor, answers.

Only what works on hugetlbfs. A group that reports file handles instead of descriptors
can't mark a hugetlbfs superblock: its handles can't be decoded (EOPNOTSUPP,
fs/notify/fanotify/fanotify_user.c, ``fanotify_test_fid``). A group with descriptors gets
no event that has a directory entry and no path: create, unlink, rename, and ftruncate,
which comes through ``notify_change``. inotify sees those.
"""

from __future__ import annotations

import ctypes
import os
import struct
from enum import IntFlag
from types import TracebackType
from typing import Final, NamedTuple, Self

from hugetlb_quota.node.host import UnusableHost

_CLOEXEC: Final = 0x1
_NONBLOCK: Final = 0x2
_CLASS_CONTENT: Final = 0x4
_MARK_ADD: Final = 0x1
_MARK_REMOVE: Final = 0x2
_MARK_FILESYSTEM: Final = 0x100
_AT_FDCWD: Final = -100
_ALLOW: Final = 1
_EVENT: Final = struct.Struct("=IBBHQii")
_RESPONSE: Final = struct.Struct("=iI")
#: Events taken in one read. Each brings an open descriptor, and where none is left the
#: kernel answers a permission event with "deny": stay far below any RLIMIT_NOFILE.
BATCH: Final = 64

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = (
    *(ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int),
    ctypes.c_char_p,
)


class Mask(IntFlag):
    """What happened; the values of linux/fanotify.h that arrive for hugetlbfs."""

    #: fallocate, a punched hole, MADV_REMOVE: not ftruncate.
    MODIFY = 0x2
    #: The last descriptor and the last mapping of one open file are gone.
    CLOSE_WRITE = 0x8
    CLOSE_NOWRITE = 0x10
    OPEN = 0x20
    #: The kernel's queue was full: events were lost, and opens let through unseen.
    OVERFLOW = 0x4000
    #: The opener waits until the event is answered.
    OPEN_PERMISSION = 0x10000


class NoFanotify(UnusableHost):
    """The kernel gives no fanotify group."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"fanotify can't be used on this host ({os.strerror(number)}): it takes a kernel with"
            " CONFIG_FANOTIFY=y, CAP_SYS_ADMIN in the first user namespace, and room below the"
            " sysctl fs.fanotify.max_user_groups."
        )
        self.errno = number


class Event(NamedTuple):
    """One event. ``descriptor`` is the reader's to close, None for :attr:`Mask.OVERFLOW`.

    ``pid`` is the process as the PID namespace of the group's maker numbers it, 0 when it
    is not in there.
    """

    mask: Mask
    descriptor: int | None
    pid: int


class Fanotify:
    """A fanotify group that can ask for permission events; a context manager.

    While it is open and not read, openers of what it marked for
    :attr:`Mask.OPEN_PERMISSION` wait, unkillable by anything but SIGKILL. When its last
    descriptor closes, the kernel lets all of them through (``fanotify_release``).

    :raises NoFanotify: when the kernel gives no group.
    """

    def __init__(self) -> None:
        # Not FAN_UNLIMITED_QUEUE: the queue's limit also limits how many openers wait.
        descriptor: int = _libc.fanotify_init(
            _CLOEXEC | _NONBLOCK | _CLASS_CONTENT, os.O_RDONLY | os.O_CLOEXEC
        )
        if descriptor < 0:
            raise NoFanotify(ctypes.get_errno())
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def fileno(self) -> int:
        """The group's descriptor, for poll(2)."""
        return self._descriptor

    def mark(self, path: str, mask: Mask) -> None:
        """Ask for ``mask`` on the whole file system that ``path`` is on.

        Pins neither the mount nor anything on it. Marking again adds to the mask.

        :raises OSError: EINVAL where the kernel lacks permission events
            (CONFIG_FANOTIFY_ACCESS_PERMISSIONS), ENOSPC above fs.fanotify.max_user_marks.
        """
        self._mark(_MARK_ADD, path, mask)

    def unmark(self, path: str, mask: Mask) -> None:
        """Take ``mask`` back. An unmounted file system's mark goes by itself.

        :raises OSError: ENOENT when there is no such mark.
        """
        self._mark(_MARK_REMOVE, path, mask)

    def _mark(self, action: int, path: str, mask: Mask) -> None:
        done = _libc.fanotify_mark(
            self._descriptor, action | _MARK_FILESYSTEM, mask, _AT_FDCWD, os.fsencode(path)
        )
        if done != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)

    def read(self) -> list[Event]:
        """The events that are there, at most :data:`BATCH`; none when there are none.

        :raises OSError: when the kernel could open no descriptor for an event.
        """
        try:
            data = os.read(self._descriptor, BATCH * _EVENT.size)
        except BlockingIOError:
            return []
        events = []
        at = 0
        while at < len(data):
            length, _, _, _, mask, descriptor, pid = _EVENT.unpack_from(data, at)
            events.append(Event(Mask(mask), descriptor if descriptor >= 0 else None, pid))
            at += length
        return events

    def allow(self, event: Event) -> None:
        """Let the opener of a permission event go on.

        Its descriptor may be closed by then, if nothing was opened since: the kernel
        compares its number (fanotify_user.c, ``process_access_response``).
        """
        assert event.descriptor is not None
        os.write(self._descriptor, _RESPONSE.pack(event.descriptor, _ALLOW))
