"""The process that answers openers: ``python -m hugetlb_quota.node.responder``.

A program that opens a file on a watched hugetlbfs waits until this has looked which
cgroup it is in. So this does nothing else, waits for nobody, and never outlives the
agent: every turn is timed by an alarm that kills, what the agent does not take is
counted and dropped, and with the process its fanotify group ends, which lets everybody
through. The standard library's small modules only: it runs on every node.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import mmap
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from hugetlb_quota.node.fanotify import Event, Fanotify, Mask, NoFanotify

#: A turn takes no longer, or the process ends; an idle turn is POLL_SECONDS.
TURN_SECONDS: Final = 1.0
POLL_SECONDS: Final = 0.25

_HEADER: Final = struct.Struct("=BHiQQ")
#: What a pipe takes whole or not at all.
_LONGEST: Final = select.PIPE_BUF - _HEADER.size
_COMMAND: Final = struct.Struct("=Q")
_REPLY: Final = struct.Struct("=i?")
_BEAT: Final = struct.Struct("=Q")
_PR_SET_PDEATHSIG: Final = 1
_CLONE_NEWCGROUP: Final = 0x02000000

_TOLD: Final = Mask.MODIFY | Mask.CLOSE_WRITE | Mask.CLOSE_NOWRITE

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Kind(IntEnum):
    """What a record tells."""

    OPENED = 1
    MODIFIED = 2
    CLOSED = 3
    #: Events were lost; nothing else is in the record.
    LOST = 4


class Record(NamedTuple):
    """One thing that happened. ``cgroup`` is empty where it is not known."""

    kind: Kind
    pid: int = 0
    device: int = 0
    inode: int = 0
    cgroup: bytes = b""

    def encoded(self) -> bytes:
        """As it goes through the pipe, in one piece."""
        # Of a cgroup path that is too long its beginning is told: that names the pod.
        cgroup = self.cgroup[:_LONGEST]
        return _HEADER.pack(self.kind, len(cgroup), self.pid, self.device, self.inode) + cgroup


def decoded(data: bytes) -> tuple[list[Record], bytes]:
    """The records that are whole in ``data``, and the rest."""
    records = []
    at = 0
    while len(data) - at >= _HEADER.size:
        kind, length, pid, device, inode = _HEADER.unpack_from(data, at)
        end = at + _HEADER.size + length
        if end > len(data):
            break
        records.append(Record(Kind(kind), pid, device, inode, data[at + _HEADER.size : end]))
        at = end
    return records, data[at:]


def watch_command(device: int, path: str) -> bytes:
    """Asks to watch the file system of ``device``, seen at ``path``."""
    return _COMMAND.pack(device) + os.fsencode(path)


class Reply(NamedTuple):
    """``errno`` 0: watched, with ``permission`` if openers wait to be seen."""

    errno: int
    permission: bool

    @classmethod
    def decoded(cls, data: bytes) -> Reply:
        """From what came through the socket."""
        return cls(*_REPLY.unpack(data))

    def encoded(self) -> bytes:
        """As it goes through the socket."""
        return _REPLY.pack(self.errno, self.permission)


def cgroup_of(proc: str, pid: int) -> bytes:
    """The cgroup2 path of ``pid``; empty when it is gone, or not in our PID namespace."""
    try:
        file = os.open(f"{proc}/{pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        text = os.read(file, 1 << 16)
    except OSError:
        return b""
    finally:
        os.close(file)
    # Hierarchy 0, beside cgroup v1's on a hybrid host. A cgroup's name holds no newline
    # (cgroup_mkdir), and may hold anything else.
    lines = text.split(b"\n")
    return next((line[3:] for line in lines if line.startswith(b"0::")), b"")


def beats(memory: mmap.mmap) -> int:
    """How many turns the responder has made that shares ``memory``."""
    (count,) = _BEAT.unpack_from(memory)
    return int(count)


class Responder:
    """Answers what ``group`` asks, tells of it through ``pipe``, obeys ``control``.

    :param proc: the host's /proc.
    :param ignored: processes that are let through and not told of.
    :param permission: whether openers shall wait to be seen.
    """

    def __init__(
        self,
        group: Fanotify,
        *,
        control: socket.socket,
        pipe: int,
        memory: mmap.mmap,
        proc: str,
        ignored: frozenset[int],
        permission: bool,
    ) -> None:
        self._group = group
        self._control = control
        self._pipe = pipe
        self._memory = memory
        self._proc = proc
        self._ignored = ignored
        self._permission = permission
        self._lost = False

    def run(self) -> None:
        """Answer until the agent closes its end of the control socket."""
        poll = select.poll()
        poll.register(self._group, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        turns = 0
        while True:
            # Nothing handles SIGALRM: the kernel ends us, whatever Python is doing.
            signal.setitimer(signal.ITIMER_REAL, TURN_SECONDS)
            turns += 1
            _BEAT.pack_into(self._memory, 0, turns)
            ready = {descriptor for descriptor, _ in poll.poll(POLL_SECONDS * 1000)}
            if self._group.fileno() in ready:
                self._answer()
            if self._control.fileno() in ready and not self._obey():
                return
            if self._lost:
                self._tell_of_loss()

    def _answer(self) -> None:
        try:
            events = self._group.read()
        except OSError:
            # No descriptor could be opened for an event, so it is lost.
            self._lost = True
            return
        for event in events:
            if event.descriptor is None:
                self._lost = True
                continue
            try:
                records = tuple(self._records(event, event.descriptor))
            finally:
                # Closed first: the opener finds nobody but itself there, as who wants a
                # lease must. The answer names the descriptor by its number alone.
                os.close(event.descriptor)
                if Mask.OPEN_PERMISSION in event.mask:
                    self._group.allow(event)
            for record in records:
                self._tell(record)

    def _records(self, event: Event, descriptor: int) -> Iterator[Record]:
        """What there is to tell; one event may be of several kinds, of the same process."""
        if event.pid in self._ignored:
            return
        state = os.fstat(descriptor)
        device, inode = state.st_dev, state.st_ino
        if event.mask & (Mask.OPEN | Mask.OPEN_PERMISSION):
            yield Record(Kind.OPENED, event.pid, device, inode, cgroup_of(self._proc, event.pid))
        if event.mask & Mask.MODIFY:
            # Who allocates is charged: fallocate by another than the opener. It does not
            # wait for us and may be gone.
            yield Record(Kind.MODIFIED, event.pid, device, inode, cgroup_of(self._proc, event.pid))
        if event.mask & (Mask.CLOSE_WRITE | Mask.CLOSE_NOWRITE):
            yield Record(Kind.CLOSED, event.pid, device, inode)

    def _tell(self, record: Record) -> None:
        # Once something is lost, nothing is told before that is.
        if self._lost and not self._tell_of_loss():
            return
        if not self._written(record):
            self._lost = True

    def _tell_of_loss(self) -> bool:
        self._lost = not self._written(Record(Kind.LOST))
        return not self._lost

    def _written(self, record: Record) -> bool:
        try:
            os.write(self._pipe, record.encoded())
        except BlockingIOError:
            return False
        return True

    def _obey(self) -> bool:
        """Carry out a command; False when the agent is gone."""
        try:
            command = self._control.recv(1 << 16)
        except ConnectionError:
            return False
        if not command:
            return False
        (device,) = _COMMAND.unpack_from(command)
        reply = self._watch(device, os.fsdecode(command[_COMMAND.size :]))
        self._control.send(reply.encoded(), socket.MSG_DONTWAIT)
        return True

    def _watch(self, device: int, path: str) -> Reply:
        try:
            if os.stat(path).st_dev != device:  # noqa: PTH116
                return Reply(errno.ENOENT, self._permission)
            if self._permission:
                try:
                    self._group.mark(path, _TOLD | Mask.OPEN_PERMISSION)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    # CONFIG_FANOTIFY_ACCESS_PERMISSIONS=n: see openers as they run on.
                    self._permission = False
            if not self._permission:
                self._group.mark(path, _TOLD | Mask.OPEN)
        except OSError as error:
            return Reply(error.errno or errno.EIO, self._permission)
        return Reply(0, self._permission)


def _die_with(parent: int) -> None:
    """Be killed when the agent ends, however it ends."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != parent:
        sys.exit("the agent is gone")


def _see_all_cgroups(proc: str) -> None:
    """Read cgroup paths from the root: in a container they begin at the container's own."""
    # What is above or beside our own root reads as /.. (cgroup_namespaces(7)).
    if not cgroup_of(proc, 1).startswith(b"/.."):
        return
    path = f"{proc}/1/ns/cgroup"
    try:
        namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if _libc.setns(namespace, _CLONE_NEWCGROUP) != 0:
            raise OSError(number := ctypes.get_errno(), os.strerror(number))
    except OSError as error:
        sys.exit(
            f"The cgroup namespace {path} can't be entered ({error.strerror}), and from our own"
            " the cgroups of openers have no names; it takes CAP_SYS_ADMIN and CAP_SYS_PTRACE."
        )
    os.close(namespace)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Started by the agent.")
    for number in ("parent", "control", "pipe", "memory"):
        parser.add_argument(f"--{number}", type=int, required=True)
    parser.add_argument("--proc", required=True)
    parser.add_argument("--ignore", type=int, action="append", default=[])
    parser.add_argument("--notify-only", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Answer openers until the agent ends."""
    options = _parse()
    _die_with(options.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's to obey
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    control = socket.socket(fileno=options.control)
    _see_all_cgroups(options.proc)
    try:
        group = Fanotify()
    except NoFanotify as error:
        control.send(Reply(error.errno, permission=False).encoded())
        return
    control.send(Reply(0, not options.notify_only).encoded())
    with group, mmap.mmap(options.memory, _BEAT.size) as memory:
        Responder(
            group,
            control=control,
            pipe=options.pipe,
            memory=memory,
            proc=options.proc,
            ignored=frozenset((os.getpid(), *options.ignore)),
            permission=not options.notify_only,
        ).run()


if __name__ == "__main__":
    main()
