"""Runs the reader of the kernel's charge list: one child process, which answers many requests.

A child that fails or is late is killed, and started again after a pause. The program is
reader/charge-reader, built by ``make reader``. The program keeps only CAP_BPF and CAP_PERFMON and
becomes an ordinary user, so the parent must have these two capabilities.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from hugetlb_quota.backoff import Backoff
from hugetlb_quota.node.charge_list import ChargeList
from hugetlb_quota.node.charge_rows import MalformedAnswer, decode
from hugetlb_quota.plural import number_of

#: The program in this tree and in the image.
PROGRAM: Final = Path(__file__).parent / "reader" / "charge-reader"

#: The longest time for a whole answer. One walk in the kernel ends by itself after a second, and
#: the walks of one request after about three.
TIMEOUT_SECONDS: Final = 10.0
#: The pause before a failed reader is started again. The pause doubles with each failure.
FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 60.0

#: See reader/rows.h.
_ANSWER: Final = struct.Struct("=IHHQIIQ")
_MAGIC: Final = 0x4C435148
_PROTOCOL: Final = 1
_REQUEST: Final = b"r"
_READY, _REST, _MOVED, _ERROR = 1, 2, 3, 4
#: Four times the largest buffer of the reader. A longer answer is an error.
_MOST_BYTES: Final = 1 << 31
_MOST_SENTENCE: Final = 4096

_log = logging.getLogger(__name__)


class _Head(NamedTuple):
    """The first bytes of an answer."""

    magic: int
    protocol: int
    status: int
    length: int
    reads: int
    left_out: int
    nanoseconds: int


@dataclass(slots=True)
class Reads:
    """Counts since the start: walks in the kernel, repeated walks, failed answers, and seconds."""

    walks: int = 0
    repeated: int = 0
    failures: int = 0
    seconds: float = 0.0


class ChargeListUnreadable(Exception):
    """The kernel's charge list can't be read; the sentence says why and what to do."""


class ReaderPauses(ChargeListUnreadable):
    """The reader failed because of ``why``, and starts again only after ``seconds``."""

    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(f"{why} The agent starts the reader again in {seconds:.1f} s.")
        self.why = why
        self.seconds = seconds


class _ReaderFailed(ChargeListUnreadable):
    """The child can't be used any more."""


class ChargeReader:
    """One reader process, started at the first request.

    :param timeout: the longest time for one answer, in seconds.
    :param clock: returns seconds; measures the pauses between starts.
    """

    def __init__(
        self,
        program: Path = PROGRAM,
        timeout: float = TIMEOUT_SECONDS,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._program = program
        self._timeout = timeout
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._backoff = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self._not_before = 0.0
        self._why = ""
        #: Never reset.
        self.reads = Reads()

    @property
    def pid(self) -> int | None:
        """The child's process ID; None if no child runs."""
        return self._process.pid if self._process else None

    async def read(self, largest: int | None = None) -> ChargeList:
        """Return the charge list as it is now. Other callers wait meanwhile.

        :param largest: the number of files to return, the largest first; None for all files.
        :raises ReaderPauses: the child failed, and the pause is not over. Raised at once.
        :raises ChargeListUnreadable: this read failed.
        """
        async with self._turn:
            if self._process is None and (pause := self._not_before - self._clock()) > 0:
                raise ReaderPauses(self._why, pause)
            try:
                async with asyncio.timeout(self._timeout):
                    result = await self._request(largest)
            except TimeoutError as error:
                why = f"The reader did not answer within {self._timeout:g} s."
                raise await self._failed(why) from error
            except (_ReaderFailed, MalformedAnswer) as error:
                raise await self._failed(str(error)) from error
            except (OSError, asyncio.IncompleteReadError) as error:
                raise await self._failed(await self._ended()) from error
            except ChargeListUnreadable:
                raise
            except BaseException:
                # A cancelled caller leaves half an answer in the pipe.
                await self._end()
                raise
            self._backoff.reset()
            return result

    async def close(self) -> None:
        """End the child."""
        async with self._turn:
            await self._end()

    async def _request(self, largest: int | None) -> ChargeList:
        process = self._process or await self._start()
        assert process.stdin
        process.stdin.write(_REQUEST)
        await process.stdin.drain()
        head, payload = await self._answer(process)
        if head.status == _ERROR:
            self.reads.failures += 1
            raise ChargeListUnreadable(_sentence(payload))
        if head.status not in (_REST, _MOVED):
            raise MalformedAnswer(f"its status is {head.status}")
        self.reads.walks += head.reads
        self.reads.repeated += max(head.reads - 1, 0)
        self.reads.seconds += head.nanoseconds / 1e9
        # In a thread: with many files this takes long, and the enforcer must not wait.
        charges = await asyncio.to_thread(
            decode, payload, at_rest=head.status == _REST, largest=largest
        )
        return replace(
            charges,
            mappings_left_out=bool(head.left_out),
            reads=head.reads,
            seconds=head.nanoseconds / 1e9,
        )

    async def _start(self) -> asyncio.subprocess.Process:
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={},
            )
        except OSError as error:
            raise _ReaderFailed(
                f"The reader {self._program} can't be started ({error.strerror}): build it with"
                " `make reader`."
            ) from error
        self._process = process
        head, payload = await self._answer(process)
        if head.status == _ERROR:
            raise _ReaderFailed(_sentence(payload))
        if head.status != _READY:
            raise MalformedAnswer(f"its first status is {head.status}")
        return process

    async def _answer(self, process: asyncio.subprocess.Process) -> tuple[_Head, bytes]:
        assert process.stdout
        packed = await process.stdout.readexactly(_ANSWER.size)
        head = _Head(*_ANSWER.unpack(packed))
        if head.magic != _MAGIC or head.protocol != _PROTOCOL:
            raise MalformedAnswer(f"it starts with {packed[:6].hex()}, which is another protocol")
        if head.length > (_MOST_SENTENCE if head.status == _ERROR else _MOST_BYTES):
            raise MalformedAnswer(f"it announces {number_of(head.length, 'byte')}")
        return head, await process.stdout.readexactly(head.length)

    async def _ended(self) -> str:
        if self._process is None:
            return "The reader could not be started."
        await self._end()
        return "The reader ended before its answer was complete."

    async def _failed(self, why: str) -> ChargeListUnreadable:
        await self._end()
        self.reads.failures += 1
        pause = self._backoff.next()
        self._not_before = self._clock() + pause
        self._why = why
        _log.warning(
            "%s The agent waits %.2f s or longer before it starts the reader again.", why, pause
        )
        return ChargeListUnreadable(why)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin:
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            try:
                process.kill()
            except PermissionError:
                # The reader has become another user. It ends when its input ends, if it is not
                # stuck.
                _log.warning("The agent can't kill the reader, because it lacks CAP_KILL.")
        # A reader that is killed during a walk in the kernel ends with the walk, within a second.
        try:
            async with asyncio.timeout(self._timeout):
                await process.wait()
        except TimeoutError:
            _log.error("The reader %d does not end.", process.pid)


def _sentence(payload: bytes) -> str:
    return payload.decode(errors="replace")
