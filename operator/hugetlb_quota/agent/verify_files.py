"""Asks the kernel which pages of files are charged, for as long as the book is in doubt.

What is charged is in no count of a file while it is reserved and not touched, and a process
may be gone before anybody has seen what it mapped.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from hugetlb_quota.accounting.charge_list import FileKey
from hugetlb_quota.accounting.ranges import PageRange
from hugetlb_quota.agent.file_book import FileBook
from hugetlb_quota.agent.waiting import wait_at_most
from hugetlb_quota.backoff import Backoff
from hugetlb_quota.node.cgroup import CgroupError, write_limit
from hugetlb_quota.node.charged_ranges import (
    ChargedRanges,
    MayReserve,
    NotAsked,
    NotStarted,
    Question,
)
from hugetlb_quota.page_size import PageSize

#: Files and pages asked about at once, before others get a turn that is as long.
_BATCH: Final = 64
_PAGES: Final = 1 << 16
#: After less than a batch, in seconds: a file may be opened and closed a thousand times in one.
_PAUSE: Final = 0.05
#: After a failure until the next attempt, in seconds, doubled up to the last.
_AGAIN: Final = 1.0
_AGAIN_LONGEST: Final = 300.0
#: Processes that asked, remembered because events of theirs may be on their way.
_PIDS: Final = 16


class FileVerifier:
    """Keeps ``book`` verified.

    :param cgroup: where the process that asks shall be: beside kubepods, of this agent alone.
    :param sizes: the host's page sizes.
    :param hide: told why it can't be asked, if so; nothing when it can.
    """

    def __init__(
        self,
        book: FileBook,
        cgroup: Path,
        sizes: Iterable[PageSize],
        hide: Callable[[str, str], None],
    ) -> None:
        self._book = book
        self._cgroup = cgroup
        self._sizes = tuple(sizes)
        self._hide = hide
        self._doubt = asyncio.Event()
        self._sure = asyncio.Event()
        self._asked: deque[int] = deque(maxlen=_PIDS)
        self._at_once = _BATCH
        self._works, self._in_flight = True, False
        self._backoff = Backoff(_AGAIN, _AGAIN_LONGEST)
        #: Files that no answer came to.
        self._unanswered: dict[FileKey, Backoff] = {}
        book.on_doubt = self._doubt.set

    def is_asking(self, pid: int) -> bool:
        """Whether this process asks for us: it opens files, and is charged for none."""
        return pid in self._asked

    async def caught_up(self, seconds: float) -> None:
        """Wait until the book is verified, if it can be, and no longer than ``seconds``."""
        if self._works and (self._in_flight or not self._book.is_verified):
            self._sure.clear()
            await wait_at_most(self._sure, seconds)

    async def run(self) -> None:
        """Verify what is in doubt, for ever."""
        try:
            while True:
                try:
                    await self._verify_for_ever()
                except (CgroupError, MayReserve, NotStarted, OSError) as error:
                    why = f"Which pages of files are charged can't be asked: {error}"
                    self._hide("ranges", why)
                    self._give_up()
                await asyncio.sleep(self._backoff.next())
        finally:
            with suppress(OSError):
                self._cgroup.rmdir()

    async def _verify_for_ever(self) -> None:
        self._cgroup.mkdir(exist_ok=True)
        for size in self._sizes:
            write_limit(self._cgroup, size, "rsvd.max", 0)
        async with ChargedRanges(self._cgroup) as ranges:
            self._works = True
            self._tell_if_all_are_answered()
            while True:
                await self._doubt.wait()
                self._doubt.clear()
                started = time.monotonic()
                asked = await self._verify_some(ranges)
                # Half of a core at most; and little for files that are opened for ever.
                least = _PAUSE if asked < self._at_once else 0.0
                await asyncio.sleep(max(least, time.monotonic() - started))

    async def _verify_some(self, ranges: ChargedRanges) -> int:
        """Ask about some files; how many it was."""
        files: list[FileKey] = []
        questions: list[Question] = []
        pages = 0
        while len(files) < self._at_once and pages < _PAGES:
            if (file := self._book.next_unverified()) is None:
                break
            known = self._book.file(file)
            assert known is not None
            end = self._book.end_of(file)
            files.append(file)
            questions.append(Question(known.superblock, known.path, file.inode, end))
            pages += end
        if files:
            await self._ask(ranges, files, questions)
        if self._book.is_verified:
            self._sure.set()
        else:
            self._doubt.set()
        return len(files)

    async def _ask(
        self, ranges: ChargedRanges, files: list[FileKey], questions: list[Question]
    ) -> None:
        if ranges.pid is not None and ranges.pid not in self._asked:
            self._asked.append(ranges.pid)
        self._in_flight = True
        try:
            answers = await ranges.answers(questions)
        except BaseException as error:
            self._ask_again(files)
            if not isinstance(error, NotAsked):
                raise
            self._hide("ranges", str(error))
            # One by one, so that one that takes too long keeps no other from being asked.
            self._at_once = 1
            self._give_up()
            await asyncio.sleep(self._backoff.next())
            return
        finally:
            self._in_flight = False
        self._at_once = min(_BATCH, 2 * self._at_once)
        self._works = True
        self._backoff.reset()
        for file in files:
            self._unanswered.pop(file, None)
        self._tell_if_all_are_answered()
        for file, runs in zip(files, answers, strict=True):
            if runs is not None:
                self._book.verified(file, [PageRange(*run) for run in runs])

    def _ask_again(self, files: Iterable[FileKey]) -> None:
        """Doubt these files later, each the later the more often no answer came to it."""

        def again(file: FileKey) -> None:
            known = self._book.file(file)
            if known is not None and known.linked and known.path:
                self._book.doubt(file)
            else:
                self._unanswered.pop(file, None)
                self._tell_if_all_are_answered()

        loop = asyncio.get_running_loop()
        for file in files:
            backoff = self._unanswered.setdefault(file, Backoff(_AGAIN, _AGAIN_LONGEST))
            loop.call_later(backoff.next(), again, file)

    def _give_up(self) -> None:
        """Nobody is to wait for answers, for now."""
        self._works = self._in_flight = False
        self._sure.set()

    def _tell_if_all_are_answered(self) -> None:
        if not self._unanswered and self._works:
            self._hide("ranges", "")
