"""Asks the reader for the kernel's charge list: a child process that is kept, timed and replaced.

Its program is reader/charge-reader, made by ``make reader``. It drops to CAP_BPF and
CAP_PERFMON and an ordinary user by itself, so whoever starts it must have the two.
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
from hugetlb_quota.node.charge_list import ChargeList, MalformedAnswer, decode

#: Where ``make reader`` puts it, and the image.
PROGRAM: Final = Path(__file__).parent / "reader" / "charge-reader"

#: Of a whole answer. A read of the kernel ends by itself after a second, a request after three.
TIMEOUT_SECONDS: Final = 10.0
#: Before a reader that failed is started again; it doubles with each failure.
FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 60.0

#: As in reader/rows.h.
_ANSWER: Final = struct.Struct("=IHHQIIQ")
_MAGIC: Final = 0x4C435148
_PROTOCOL: Final = 1
_REQUEST: Final = b"r"
_READY, _REST, _MOVED, _ERROR = 1, 2, 3, 4
#: Four times the largest buffer of the reader: more is no answer.
_MOST_BYTES: Final = 1 << 31
_MOST_SENTENCE: Final = 4096

_log = logging.getLogger(__name__)


class _Head(NamedTuple):
    """What an answer begins with."""

    magic: int
    protocol: int
    status: int
    length: int
    reads: int
    left_out: int
    nanoseconds: int


@dataclass(slots=True)
class Reads:
    """How the reads went so far: walks in the kernel, and answers that did not come."""

    walks: int = 0
    repeated: int = 0
    failures: int = 0
    seconds: float = 0.0


class ChargeListUnreadable(Exception):
    """The kernel's charge list could not be read; the sentence says why and what to do."""


class ReaderPauses(ChargeListUnreadable):
    """The reader failed, for the reason ``why``, and is not started again before ``seconds``."""

    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(f"{why} The reader is started again in {seconds:.1f} s.")
        self.why = why
        self.seconds = seconds


class _ReaderFailed(ChargeListUnreadable):
    """The child is of no use any more."""


class ChargeReader:
    """One reader process, started when it is asked for the first time.

    ``clock`` gives seconds, for the pauses between starts.
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
        #: Counted for ever.
        self.reads = Reads()

    @property
    def pid(self) -> int | None:
        """The child's process ID; None while there is none."""
        return self._process.pid if self._process else None

    async def read(self, largest: int | None = None) -> ChargeList:
        """The charge list as it is now, with so many of the largest files; None: with all.

        Who asks meanwhile waits.

        :raises ReaderPauses: at once, after a failure of the child, until the pause is over.
        :raises ChargeListUnreadable: when it can't be read this time.
        """
        async with self._turn:
            if self._process is None and (pause := self._not_before - self._clock()) > 0:
                raise ReaderPauses(self._why, pause)
            try:
                async with asyncio.timeout(self._timeout):
                    result = await self._asked(largest)
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
                # Who was cancelled leaves half an answer in the pipe.
                await self._end()
                raise
            self._backoff.reset()
            return result

    async def close(self) -> None:
        """End the child."""
        async with self._turn:
            await self._end()

    async def _asked(self, largest: int | None) -> ChargeList:
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
        # In a thread: of many files it takes so long that limits would wait for it.
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
                f"The reader {self._program} can't be started ({error.strerror}): make it with"
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
            raise MalformedAnswer(f"it begins with {packed[:6].hex()}, which is another protocol")
        if head.length > (_MOST_SENTENCE if head.status == _ERROR else _MOST_BYTES):
            raise MalformedAnswer(f"it announces {head.length} bytes")
        return head, await process.stdout.readexactly(head.length)

    async def _ended(self) -> str:
        if self._process is None:
            return "The reader could not be started."
        await self._end()
        return "The reader ended in the midst of an answer."

    async def _failed(self, why: str) -> ChargeListUnreadable:
        await self._end()
        self.reads.failures += 1
        pause = self._backoff.next()
        self._not_before = self._clock() + pause
        self._why = why
        _log.warning("%s It is started again in %.2f s at the earliest.", why, pause)
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
                # Another user's by now. It ends with its input, if it is not stuck.
                _log.warning("The reader can't be killed: the agent lacks CAP_KILL.")
        # Killed while its program runs in the kernel, it ends with that: within a second.
        try:
            async with asyncio.timeout(self._timeout):
                await process.wait()
        except TimeoutError:
            _log.error("The reader %d does not end.", process.pid)


def _sentence(payload: bytes) -> str:
    return payload.decode(errors="replace")
