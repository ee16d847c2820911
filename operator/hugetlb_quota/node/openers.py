"""Who opens files on hugetlbfs, and who allocates in them, closes them, is done with them.

The openers are met by a small process of its own (``responder.py``), so that nothing the
agent does or fails to do makes a program on the node wait. What is bounded, and by what:

- The agent is slow, stopped or stuck: openers are answered as ever; the pipe to the agent
  fills, and what does not fit is one :class:`Overflow`.
- The agent ends, however: the kernel kills the responder with it (PR_SET_PDEATHSIG).
- The responder ends: the kernel lets everybody through. It is started again, ever more
  slowly where it ends soon, and
  :class:`Overflow` is told once all file systems are watched as before.
- The responder hangs: its alarm kills it after a second; stopped (SIGSTOP), the agent does.
- More openers wait than fs.fanotify.max_queued_events: the kernel lets the others through
  unseen, and :class:`Overflow` is told.

What remains: agent and responder both stopped at the same time, as a frozen cgroup or a
CPU limit that is used up stops them. Openers then wait until either goes on, or is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import mmap
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from hugetlb_quota.backoff import Backoff
from hugetlb_quota.node import responder as protocol
from hugetlb_quota.node.fanotify import NoFanotify
from hugetlb_quota.node.host import HostRoot, UnusableHost
from hugetlb_quota.node.hugetlbfs import Superblock

logger = logging.getLogger(__name__)


class ResponderEnded(UnusableHost):
    """The process that answers openers ended, or did not answer."""

    def __init__(self) -> None:
        super().__init__(
            "The process that answers openers ended as it was started; its own words are in"
            f" the log (python -m {protocol.__name__})."
        )


#: What the pipe holds for an agent that is busy: some ten thousand events.
_PIPE_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 16
#: Looks at the responder's beat that may find it unchanged before it is killed.
_LOOKS: Final = round(protocol.TURN_SECONDS / protocol.POLL_SECONDS)
_REPLY_SECONDS: Final = 10.0
#: Waits before a responder that failed is started again, doubled up to the last.
_AGAIN_SECONDS: Final = 1.0
_AGAIN_LONGEST: Final = 300.0
#: One that lived for so long is started again at once.
_LIVED_SECONDS: Final = 60.0
#: Ended responders of which the pipe is still to be read.
_STREAMS: Final = 3


@dataclass(frozen=True, slots=True)
class Opened:
    """``pid`` opened the file; ``cgroup`` is its path below the cgroup2 mount, from ``/`` on.

    ``cgroup`` is None, and ``pid`` may be 0, when the opener could not be looked at: gone
    before its notification was read, or outside of the agent's PID namespace.
    """

    device: int
    inode: int
    pid: int
    cgroup: str | None


@dataclass(frozen=True, slots=True)
class Modified:
    """``pid`` allocated pages (fallocate) or gave them back (punched a hole, MADV_REMOVE)."""

    device: int
    inode: int
    pid: int
    cgroup: str | None


@dataclass(frozen=True, slots=True)
class Closed:
    """Of one open(2), no descriptor and no mapping is left; ``pid`` had the last."""

    device: int
    inode: int
    pid: int


@dataclass(frozen=True, slots=True)
class Overflow:
    """Events were lost: look at all files again."""


Happening = Opened | Modified | Closed | Overflow


class Openers:
    """Watches file systems for openers; an async context manager, and iterable once entered.

    .. code-block:: python

        async with Openers(host) as openers:
            await openers.watch(superblock)
            async for happening in openers: ...

    Memory is bounded whether or not anybody iterates.

    :param permission: whether openers wait until they are seen. Without, one that is gone
        before its turn is told of with no cgroup.
    :param ignore: processes whose opens are not told of, beside this one and the responder.
    :param tell: told why openers go unseen, a sentence; "" when they are seen again.
    """

    def __init__(
        self,
        host: HostRoot,
        *,
        permission: bool = True,
        ignore: Iterable[int] = (),
        tell: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._host = host
        self._permission = permission
        self._ignore = (os.getpid(), *ignore)
        self._tell = tell
        self._watched: dict[int, Superblock] = {}
        self._responder: _Responder | None = None
        self._streams: deque[_Stream] = deque()
        self._changed = asyncio.Condition()
        self._supervisor: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start the responder.

        :raises NoFanotify: when the kernel gives it no fanotify group.
        :raises ResponderEnded: when it can't run.
        """
        await self._start()
        self._supervisor = asyncio.create_task(self._supervise())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._supervisor is not None
        self._supervisor.cancel()
        await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._responder is not None:
            await self._responder.end()
        for stream in self._streams:
            stream.close()

    @property
    def pid(self) -> int | None:
        """The responder's process; None while there is none."""
        return None if self._responder is None else self._responder.pid

    async def watch(self, superblock: Superblock) -> bool:
        """Tell of ``superblock`` from when this returns on; False when it can't be marked.

        The mark pins nothing and goes with the file system, not with its last mount.
        """
        self._watched[superblock.device] = superblock
        ended: _Responder | None = None
        while True:
            async with self._changed:
                while (running := self._responder) is None or running is ended:
                    await self._changed.wait()
            try:
                return await running.watch(superblock)
            except ResponderEnded:
                ended = running

    def forget(self, superblock: Superblock) -> None:
        """``superblock`` is gone: do not ask for it again."""
        known = self._watched.get(superblock.device)
        if known is not None and known.root == superblock.root:
            del self._watched[superblock.device]

    async def __aiter__(self) -> AsyncIterator[Happening]:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._streams)
                stream = self._streams[0]
            while records := await stream.read():
                for record in records:
                    yield _happening(record)
            async with self._changed:
                # The next one's file systems are all marked: who looks now misses nothing.
                await self._changed.wait_for(lambda: len(self._streams) > 1)
                if self._streams[0] is stream:
                    self._streams.popleft()
                    stream.close()
            yield Overflow()

    async def _start(self) -> None:
        started = await _Responder.start(self._host, self._ignore, permission=self._permission)
        try:
            for superblock in tuple(self._watched.values()):
                await started.watch(superblock)
            await self._changed.acquire()
        except BaseException:
            await started.end()
            started.stream.close()
            raise
        try:
            self._responder = started
            self._streams.append(started.stream)
            while len(self._streams) > _STREAMS:
                # Nobody reads; or the first is being read.
                self._streams[1].close()
                del self._streams[1]
            self._changed.notify_all()
        finally:
            self._changed.release()

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff(_AGAIN_SECONDS, _AGAIN_LONGEST)
        while True:
            assert self._responder is not None
            ended, started = self._responder, loop.time()
            why = await ended.ended()
            logger.warning("%s; openers go unseen until it is back.", why)
            self._tell(f"Who opens files is not seen: {why}.")
            async with self._changed:
                self._responder = None
            await ended.end()
            if loop.time() - started >= _LIVED_SECONDS:
                backoff.reset()
            else:
                await asyncio.sleep(backoff.next())
            while self._responder is None:
                try:
                    await self._start()
                except (UnusableHost, OSError) as error:
                    self._tell(f"Who opens files is not seen: {error}")
                    await asyncio.sleep(backoff.next())
            self._tell("")


def _happening(record: protocol.Record) -> Happening:
    cgroup = os.fsdecode(record.cgroup) or None
    match record.kind:
        case protocol.Kind.OPENED:
            return Opened(record.device, record.inode, record.pid, cgroup)
        case protocol.Kind.MODIFIED:
            return Modified(record.device, record.inode, record.pid, cgroup)
        case protocol.Kind.CLOSED:
            return Closed(record.device, record.inode, record.pid)
        case protocol.Kind.LOST:
            return Overflow()


class _Stream:
    """What one responder tells: the reading end of its pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._rest = b""
        self._closed = False
        self._waiting: asyncio.Future[None] | None = None

    async def read(self) -> list[protocol.Record]:
        """At least one record; none at the end."""
        while not self._closed:
            try:
                data = os.read(self._pipe, _READ_BYTES)
            except BlockingIOError:
                await self._readable()
                continue
            if not data:
                break
            records, self._rest = protocol.decoded(self._rest + data)
            if records:
                return records
        return []

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        loop.add_reader(self._pipe, self._wake)
        try:
            await self._waiting
        finally:
            if not self._closed:
                loop.remove_reader(self._pipe)
            self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        """Close the pipe; who reads comes to the end."""
        if self._closed:
            return
        self._closed = True
        if self._waiting is not None:
            # Before the number is another file's.
            asyncio.get_running_loop().remove_reader(self._pipe)
            self._wake()
        os.close(self._pipe)


class _Responder:
    """A responder that runs."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        stream: _Stream,
        memory: mmap.mmap,
    ) -> None:
        self._process = process
        self._control = control
        self._memory = memory
        self._asking = asyncio.Lock()
        self.stream = stream

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def start(cls, host: HostRoot, ignore: Iterable[int], *, permission: bool) -> _Responder:
        """Start one.

        :raises NoFanotify: when the kernel gives it no group.
        :raises ResponderEnded: when it ends at once, which its standard error explains.
        """
        # Its own end of each is all that it inherits, and the agent keeps none of those:
        # an end means that the other process is gone.
        control, its_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        beat = os.memfd_create("hugetlb-quota-beat", os.MFD_CLOEXEC)
        try:
            with contextlib.suppress(PermissionError):  # above fs.pipe-user-pages-soft
                fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            os.ftruncate(beat, mmap.PAGESIZE)
            memory = mmap.mmap(beat, mmap.PAGESIZE)
            command = [
                *(sys.executable, "-m", protocol.__name__),
                *("--parent", str(os.getpid()), "--proc", str(host.at("/proc"))),
                *("--control", str(its_control.fileno()), "--pipe", str(write)),
                *("--memory", str(beat)),
                *(word for pid in ignore for word in ("--ignore", str(pid))),
                *(() if permission else ("--notify-only",)),
            ]
            process = subprocess.Popen(  # noqa: ASYNC220, S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(its_control.fileno(), write, beat),
            )
        except BaseException:
            control.close()
            os.close(read)
            raise
        finally:
            its_control.close()
            os.close(write)
            os.close(beat)
        control.setblocking(False)
        responder = cls(process, control, _Stream(read), memory)
        try:
            reply = await responder._reply()
            if reply.errno:
                raise NoFanotify(reply.errno)
        except BaseException:
            await responder.end()
            responder.stream.close()
            raise
        return responder

    async def watch(self, superblock: Superblock) -> bool:
        """Mark ``superblock``; False when it can't be.

        :raises ResponderEnded: when the responder ends meanwhile.
        """
        async with self._asking:
            try:
                self._control.send(protocol.watch_command(superblock.device, str(superblock.path)))
            except OSError as error:
                raise ResponderEnded from error
            reply = await self._reply()
        if reply.errno:
            logger.warning(
                "%s can't be watched for openers: %s.", superblock.point, os.strerror(reply.errno)
            )
        return reply.errno == 0

    async def _reply(self) -> protocol.Reply:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_REPLY_SECONDS):
                data = await loop.sock_recv(self._control, 64)
        except (OSError, TimeoutError) as error:
            # A late answer would be taken for that to the next question.
            self._process.kill()
            raise ResponderEnded from error
        if not data:
            raise ResponderEnded
        return protocol.Reply.decoded(data)

    async def ended(self) -> str:
        """Wait for the end, and bring it about when there is no turn for a second: why."""
        last, unchanged = -1, 0
        while self._process.poll() is None:
            await asyncio.sleep(protocol.POLL_SECONDS)
            # Looks are counted, not seconds: when the agent itself was stopped, the
            # responder gets its time all the same.
            now = protocol.beats(self._memory)
            last, unchanged = now, unchanged + 1 if now == last else 0
            if unchanged > _LOOKS:
                return f"The responder {self.pid} has not turned for a second and is killed"
        return f"The responder {self.pid} ended with status {self._process.returncode}"

    async def end(self) -> None:
        """Kill it, which lets everybody through who waits. May be called again."""
        self._process.kill()
        for _ in range(100):
            if self._process.poll() is not None:
                break
            await asyncio.sleep(0.01)
        else:
            logger.error("The responder %d does not die of SIGKILL.", self.pid)
        self._control.close()
        self._memory.close()
