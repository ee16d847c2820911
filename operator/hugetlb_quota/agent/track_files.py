"""Follows all that happens to files on hugetlbfs, and tells the book of it (file_book.py)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

from hugetlb_quota.accounting.charge_list import FileKey
from hugetlb_quota.agent.file_book import SYSTEM, FileBook
from hugetlb_quota.agent.memory import Memory
from hugetlb_quota.agent.verify_files import FileVerifier
from hugetlb_quota.agent.waiting import wait_at_most
from hugetlb_quota.backoff import Backoff
from hugetlb_quota.node import hugetlbfs, kubepods
from hugetlb_quota.node.fanotify import NoFanotify
from hugetlb_quota.node.file_changes import FileChanged, FileChanges, LookAgain
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.node.mappings import ProcessHidden, mappings, open_files, processes
from hugetlb_quota.node.openers import Closed, Modified, Opened, Openers, Overflow, ResponderEnded
from hugetlb_quota.node.pools import page_sizes

#: When the mappings of a process are read again after it opened a file, in seconds one
#: after another: mmap comes after open, and raises no event.
_MAPS_AFTER: Final = (0.02, 0.1, 0.5, 2.0)
#: How long no mappings of a process are read after they were, by how long that took.
_MAPS_PAUSE: Final = 9.0
#: How long the name of a file may be on its way after its last close, in seconds.
_NAME_AFTER: Final = 1.0
#: The cgroup of the process that asks which pages are charged, beside kubepods.
_ASKING: Final = "hugetlb-quota-asking"
#: Between two looks at all files, in seconds: for what no event told.
RESCAN: Final = 60.0
#: Between two looks that were asked for, by how long the first took.
_RESCAN_PAUSE: Final = 3.0
#: How long a look at all files waits until they are verified, in seconds.
_VERIFY: Final = 2.0
#: Waits until the responder is started again that could not be, in seconds, doubled up to
#: the last.
_AGAIN: Final = 1.0
_AGAIN_LONGEST: Final = 300.0
#: Files looked at in one go, before other tasks get their turn.
_BATCH: Final = 256

logger = logging.getLogger(__name__)


class FileTracker:
    """Keeps the book of all hugetlbfs files of the host.

    :param parents: where kubepods is, as :func:`kubepods.parents` gives it.
    :param memory: what another process of this boot knew of files.
    """

    def __init__(
        self, host: HostRoot, cgroup2: Path, parents: Iterable[Path], memory: Memory
    ) -> None:
        self._host = host
        self._cgroup2 = cgroup2
        self._parents = tuple(parents)
        self.book = FileBook(memory.files)
        self._verifier = FileVerifier(
            self.book, self._parents[0] / _ASKING, page_sizes(host), self.hide
        )
        self._openers: Openers | None = None
        #: How many reads a process' series has behind it.
        self._reads: dict[int, int] = {}
        self._hidden: dict[str, str] = {}
        self._wanted = asyncio.Event()
        self._begun = self._done = 0
        #: Set when every file was looked at once.
        self.looked = asyncio.Event()
        #: Called when all files were looked at as :meth:`want_look` asked for.
        self.on_looked: Callable[[], None] = lambda: None

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps files from being followed, a sentence each."""
        return tuple(self._hidden.values())

    # What happens

    async def run(self, changes: FileChanges) -> None:
        """Follow all that happens to files; for ever.

        Where openers can't be watched, a file is charged to those that map it when it is
        looked at, and the others are found by their totals alone.
        """
        async with AsyncExitStack() as stack:
            parts = [
                self._follow_changes(changes),
                self._rescan_now_and_then(),
                self._verifier.run(),
            ]
            await self._start_openers(stack)
            parts += [self._watch_openers(stack), self._follow_superblocks(changes)]
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(part)

    async def caught_up(self, seconds: float) -> None:
        """Wait until what changed is taken in, and no longer than about ``seconds``."""
        await asyncio.sleep(0)  # events that are there already
        await self._verifier.caught_up(seconds)

    def want_look(self) -> int:
        """Look at all files soon; the look that is meant, for :meth:`is_looked`."""
        self._wanted.set()
        return self._begun + 1

    def is_looked(self, look: int) -> bool:
        """Whether the look is over that :meth:`want_look` told of."""
        return self._done >= look

    async def _start_openers(self, stack: AsyncExitStack) -> None:
        openers = Openers(self._host, tell=partial(self.hide, "openers"))
        try:
            self._openers = await stack.enter_async_context(openers)
        except (NoFanotify, ResponderEnded, OSError) as error:
            self.hide("openers", f"Who opens files is not seen: {error}")
        else:
            self.hide("openers", "")

    async def _watch_openers(self, stack: AsyncExitStack) -> None:
        backoff = Backoff(_AGAIN, _AGAIN_LONGEST)
        late = self._openers is None
        while self._openers is None:
            await asyncio.sleep(backoff.next())
            await self._start_openers(stack)
        if late:
            for superblock in self.book.superblocks:
                await self._openers.watch(superblock)
            self.want_look()
            await self._look_at_holders()
        await self._follow_openers(self._openers)

    async def _follow_superblocks(self, changes: FileChanges) -> None:
        async for changed in hugetlbfs.follow_superblocks(self._host):
            for superblock in changed.gone:
                self.book.forget(superblock)
                self._hidden.pop(superblock.point, None)
                changes.forget(superblock)
                if self._openers is not None:
                    self._openers.forget(superblock)
            for superblock in (*changed.moved, *changed.appeared):
                if (before := self.book.superblock(superblock.device)) is not None:
                    changes.forget(before)
                    self._hidden.pop(before.point, None)
                self.book.follow(superblock)
                # First watched and then listed: what comes in between is seen at least once.
                changes.watch(superblock)
                if self._openers is not None:
                    await self._openers.watch(superblock)
                await self._look_at_all(superblock)
            if changed.appeared:
                # Who opened files before they were watched.
                await self._look_at_holders()
            if not self.looked.is_set():
                self.book.forget_remembered()
                await self._verifier.caught_up(_VERIFY)
                self.looked.set()

    async def _follow_openers(self, openers: Openers) -> None:
        async for happening in openers:
            match happening:
                case Opened(device, inode, pid, cgroup):
                    self._opened(FileKey(device, inode), pid, cgroup)
                case Modified(device, inode, _, cgroup):
                    self._modified(FileKey(device, inode), cgroup)
                case Closed(device, inode, pid):
                    self._closed(FileKey(device, inode), pid)
                case Overflow():
                    self.book.lost_count()
                    await self._look_at_holders()
                    self.want_look()

    async def _follow_changes(self, changes: FileChanges) -> None:
        async for change in changes:
            match change:
                case FileChanged(device, path):
                    if (superblock := self.book.superblock(device)) is not None:
                        self._look_at(superblock, path)
                case LookAgain():
                    self.want_look()

    async def _rescan_now_and_then(self) -> None:
        await self.looked.wait()
        while True:
            await wait_at_most(self._wanted, RESCAN)
            self._wanted.clear()
            self._begun += 1
            started = time.monotonic()
            for superblock in self.book.superblocks:
                await self._look_at_all(superblock)
            took = time.monotonic() - started
            await self._verifier.caught_up(_VERIFY)
            self._done = self._begun
            self.on_looked()
            await asyncio.sleep(_RESCAN_PAUSE * took)

    async def _look_at_all(self, superblock: Superblock) -> None:
        """Look at every file of ``superblock``; those not found are gone."""
        before = self.book.paths_on(superblock)
        try:
            for done, state in enumerate(hugetlbfs.scan(superblock)):
                before.discard(state.path)
                self.book.found(superblock, state)
                if done % _BATCH == 0:
                    await asyncio.sleep(0)
        except OSError as error:
            self._cannot_look(superblock, error)
            return
        if not hugetlbfs.is_seen(superblock):
            return
        self._hidden.pop(superblock.point, None)
        for done, path in enumerate(before):
            # Maybe made meanwhile, or renamed.
            self._look_at(superblock, path)
            if done % _BATCH == 0:
                await asyncio.sleep(0)
        self.book.drop_nameless(superblock.device)

    def _look_at(self, superblock: Superblock, path: str) -> None:
        try:
            state = hugetlbfs.look_up(superblock, path)
        except OSError as error:
            self._cannot_look(superblock, error)
            return
        if state is not None:
            self.book.found(superblock, state)
        elif hugetlbfs.is_seen(superblock) and self.book.vanished(superblock, path):
            self.want_look()

    def _cannot_look(self, superblock: Superblock, error: OSError) -> None:
        self.hide(superblock.point, f"{superblock.point} can't be looked through: {error}.")

    async def _look_at_holders(self) -> None:
        """Find out which pods have files open or mapped, whose opening was not seen."""
        for pod in kubepods.pods(self._parents):
            for pid in processes(pod.path):
                self.read_maps(pid, pod.uid)
                try:
                    held = open_files(self._host, pid, self.book.devices)
                except ProcessHidden as error:
                    self.hide("mappings", str(error))
                    return
                for device, inode in held:
                    self.book.add_candidate(FileKey(device, inode), pod.uid)
                await asyncio.sleep(0)

    def hide(self, what: str, why: str) -> None:
        """Say that ``what`` can't be seen, and why; nothing: it can."""
        if not why:
            self._hidden.pop(what, None)
            return
        if self._hidden.get(what) != why:
            logger.warning("%s", why)
        self._hidden[what] = why

    def read_maps(self, pid: int, owner: str) -> None:
        """Charge ``owner`` for what its process maps and nobody is charged for yet."""
        try:
            found = mappings(self._host, pid, self.book.devices)
        except ProcessHidden as error:
            self.hide("mappings", str(error))
            return
        for mapping in found:
            if mapping.shared:
                file = FileKey(mapping.device, mapping.inode)
                self.book.mapped(file, mapping.start, mapping.end, owner)

    # Who opens files

    def _opened(self, file: FileKey, pid: int, cgroup: str | None) -> None:
        if self._verifier.is_asking(pid):
            return
        owner = None if cgroup is None else self._owner(cgroup)
        if not self.book.opened(file, owner) or owner is None or not pid:
            return
        if pid in self._reads:
            self._reads[pid] = 0  # mmap comes after this open too
        else:
            self._reads[pid] = 0
            self.read_maps(pid, owner)
            self._read_maps_later(pid, owner)

    def _read_maps_later(self, pid: int, owner: str, least: float = 0.0) -> None:
        """Read the mappings of ``pid`` once more, and again until the series is over.

        One series a process, however many files it opens: reading takes time for each
        mapping that it has. It waits for ``least`` seconds, so that reading those of a
        process with many takes a fraction of a core.
        """

        def read() -> None:
            self._reads[pid] += 1
            started = time.monotonic()
            self.read_maps(pid, owner)
            took = time.monotonic() - started
            if self._reads[pid] < len(_MAPS_AFTER):
                self._read_maps_later(pid, owner, least=_MAPS_PAUSE * took)
            else:
                del self._reads[pid]

        asyncio.get_running_loop().call_later(max(_MAPS_AFTER[self._reads[pid]], least), read)

    def _modified(self, file: FileKey, cgroup: str | None) -> None:
        known = self.book.file(file)
        if known is None:
            return
        if cgroup is not None:
            # Who allocates is charged, whoever opened it.
            self.book.add_candidate(file, self._owner(cgroup))
        if known.linked and known.path:
            self._look_at(known.superblock, known.path)

    def _closed(self, file: FileKey, pid: int) -> None:
        if self._verifier.is_asking(pid) or (known := self.book.file(file)) is None:
            return
        if known.linked and known.path:
            self._look_at(known.superblock, known.path)
        elif not known.path:
            # Its name may be on its way; a file that never had one is gone.
            loop = asyncio.get_running_loop()
            loop.call_later(_NAME_AFTER, self.book.drop_if_nameless, file)
        self.book.closed(file)

    def _owner(self, cgroup: str) -> str:
        """The UID in the name of the pod's cgroup that ``cgroup`` is in, or the SYSTEM."""
        path = self._cgroup2 / cgroup.lstrip("/")
        for parent in self._parents:
            if path.is_relative_to(parent):
                place = kubepods.place(str(path.relative_to(parent)))
                if place is not None and place.pod is not None:
                    return place.pod
        return SYSTEM
