"""Whose pages are in which file: the charge list, kept up with what the kernel tells of files.

The kernel keeps such a list itself and shows it nowhere. What it shows is who opens a file
(openers), what a process maps (/proc/PID/maps), and how many pages a file has (stat). So
the list is a likeness; what every pod is charged in all is the ledger's, which the kernel
tells exactly, and where the two differ the ledger is right.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.charge_list import (
    Change,
    ChargeList,
    FileCharge,
    FileKey,
    PageSizeDiffers,
)
from hugetlb_quota.accounting.ranges import PageRange
from hugetlb_quota.agent.memory import Memory, NotRemembered, RememberedFile
from hugetlb_quota.node import hugetlbfs, kubepods
from hugetlb_quota.node.cgroup import CgroupError, write_limit
from hugetlb_quota.node.charged_ranges import ChargedRanges, MayReserve, NotAsked
from hugetlb_quota.node.fanotify import NoFanotify
from hugetlb_quota.node.file_changes import FileChanged, FileChanges, LookAgain
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.hugetlbfs import FileState, Superblock
from hugetlb_quota.node.mappings import ProcessHidden, mappings
from hugetlb_quota.node.openers import Closed, Modified, Opened, Openers, Overflow, ResponderEnded
from hugetlb_quota.node.pools import page_sizes
from hugetlb_quota.page_size import PageSize

#: The owner of what the host's own processes made: no pod has this UID.
SYSTEM: Final = ""
#: When the mappings of a process are read again after it opened a file, in seconds one
#: after another: mmap comes after open, and raises no event.
_MAPS_AFTER: Final = (0.02, 0.1, 0.5, 2.0)
#: How long no mappings of a process are read after they were, by how long that took.
_MAPS_PAUSE: Final = 9.0
#: How long the name of a file may be on its way after its last close, in seconds.
_NAME_AFTER: Final = 1.0
#: The cgroup of the process that asks which pages are charged, beside kubepods.
_ASKING: Final = "hugetlb-quota-asking"
#: Between two rounds of asking, in seconds, and files asked about in one.
_ASK: Final = 2.0
_ASKED_AT_ONCE: Final = 512
#: Files that are told of one by one.
LARGEST: Final = 64
#: Between two looks at all files, in seconds: for what no event told.
RESCAN: Final = 60.0
#: Files looked at in one go, before other tasks get their turn.
_BATCH: Final = 256

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _File:
    """A file that is there, or is open still.

    ``candidates``: who opened it, the first first. ``opens``: how often it is open, of
    those opens that were seen. ``asked``: length, pages and pages charged when the kernel
    was asked last what is charged.
    """

    superblock: Superblock
    path: str
    length: int
    pages: int
    since: datetime
    candidates: list[str] = field(default_factory=list)
    opens: int = 0
    linked: bool = True
    asked: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class FileShare:
    """What one owner is charged for in one file; ``owner`` is a pod's UID, or the SYSTEM."""

    superblock: Superblock
    path: str
    owner: str
    charged: int
    since: datetime


@dataclass(frozen=True, slots=True)
class ChargedFile:
    """A file that is there, and all who are charged for pages of it."""

    file: FileKey
    superblock: Superblock
    path: str
    owners: frozenset[str]


class FileTracker:
    """Keeps the charge list of all hugetlbfs files of the host.

    :param parents: where kubepods is, as :func:`kubepods.parents` gives it.
    :param memory: where the list survives this process.
    """

    def __init__(
        self, host: HostRoot, cgroup2: Path, parents: Iterable[Path], memory: Memory
    ) -> None:
        self._host = host
        self._cgroup2 = cgroup2
        self._parents = tuple(parents)
        self._memory = memory
        self._charges: ChargeList[str] = ChargeList()
        self._files: dict[FileKey, _File] = {}
        self._at: defaultdict[int, dict[str, FileKey]] = defaultdict(dict)
        self._pages: Counter[int] = Counter()
        self._superblocks: dict[int, Superblock] = {}
        self._remembered = {each.file: each for each in memory.files}
        self._changed: set[FileKey] = set()
        self._asking = self._parents[0] / _ASKING
        #: How many reads a process' series has behind it.
        self._reads: dict[int, int] = {}
        #: Files that changed since the kernel was asked what is charged in them.
        self._to_ask: set[FileKey] = set()
        self._beyond: dict[str, dict[PageSize, int]] = {}
        #: With pages that nobody is charged for.
        self._uncharged: set[FileKey] = set()
        self._largest: list[FileShare] | None = None
        self._hidden: dict[str, str] = {}
        #: Set when every file was looked at once.
        self.looked = asyncio.Event()
        #: Called when pages of a file were given back.
        self.on_release: Callable[[], None] = lambda: None

    # What is there

    def charge_of(self, uid: str) -> Charge:
        """What this owner is charged for in files."""
        return self._charges.charge_of(uid)

    @property
    def count(self) -> int:
        """How many files are followed."""
        return len(self._files)

    @property
    def superblocks(self) -> tuple[Superblock, ...]:
        """Every hugetlbfs of the host."""
        return tuple(self._superblocks.values())

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps files from being followed, a sentence each."""
        return tuple(self._hidden.values())

    def largest(self) -> list[FileShare]:
        """Who is charged for the :data:`LARGEST` files with most bytes, largest first."""
        if self._largest is None:
            shares = [
                share for found in self._charges.largest(LARGEST) for share in self._shares(found)
            ]
            shares.sort(key=lambda share: (-share.charged, share.path, share.owner))
            self._largest = shares[:LARGEST]
        return self._largest

    def _shares(self, found: FileCharge) -> Iterator[FileShare]:
        file = self._files[found.file]
        for owner in dict.fromkeys(owner for _, owner in self._charges.held(found.file)):
            charged = self._charges.pages_in(found.file, owner) * found.page_size.bytes
            yield FileShare(file.superblock, file.path, owner, charged, file.since)

    def files_of(self, uid: str) -> Iterator[ChargedFile]:
        """The files that this owner is charged for pages of."""
        for found in list(self._charges.files_of(uid)):
            known = self._files[found.file]
            owners = frozenset(owner for _, owner in self._charges.held(found.file))
            if known.linked and known.path:
                yield ChargedFile(found.file, known.superblock, known.path, owners)

    def held_on(self, superblock: Superblock) -> int:
        """Bytes that the files of ``superblock`` hold."""
        return self._pages[superblock.device] * superblock.size.bytes

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
                self._ask_now_and_then(),
            ]
            openers: Openers | None = None
            try:
                openers = await stack.enter_async_context(Openers(self._host))
            except (NoFanotify, ResponderEnded) as error:
                self.hide("openers", f"Who opens files is not seen: {error}")
            else:
                parts.append(self._follow_openers(openers))
            parts.append(self._follow_superblocks(openers, changes))
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(part)

    async def _follow_superblocks(self, openers: Openers | None, changes: FileChanges) -> None:
        async for changed in hugetlbfs.follow_superblocks(self._host):
            for superblock in changed.gone:
                self._forget(superblock, changes)
                if openers is not None:
                    openers.forget(superblock)
            for superblock in changed.appeared:
                self._superblocks[superblock.device] = superblock
                # First watched and then listed: what comes in between is seen at least once.
                changes.watch(superblock)
                if openers is not None:
                    await openers.watch(superblock)
                await self._look_at_all(superblock)
            if not self.looked.is_set():
                # What was remembered and is not there is gone.
                self._changed |= self._remembered.keys()
                self._remembered.clear()
                self.looked.set()

    async def _follow_openers(self, openers: Openers) -> None:
        async for happening in openers:
            match happening:
                case Opened(device, inode, pid, cgroup):
                    self._opened(FileKey(device, inode), pid, cgroup)
                case Modified(device, inode, _, cgroup):
                    self._modified(FileKey(device, inode), cgroup)
                case Closed(device, inode, _):
                    self._closed(FileKey(device, inode))
                case Overflow():
                    self._lost_count()
                    await self._rescan()

    async def _follow_changes(self, changes: FileChanges) -> None:
        async for change in changes:
            match change:
                case FileChanged(device, path):
                    if (superblock := self._superblocks.get(device)) is not None:
                        self._look_at(superblock, path)
                case LookAgain(device):
                    await self._rescan(device)

    async def _rescan_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(RESCAN)
            await self._rescan()

    async def _rescan(self, device: int | None = None) -> None:
        """Look at all files of one file system, or of all."""
        for superblock in self.superblocks:
            if device in (None, superblock.device):
                await self._look_at_all(superblock)

    def refresh(self) -> None:
        """Look at all files now, without a turn for others."""
        for superblock in self.superblocks:
            for _ in self._steps(superblock):
                pass

    def trim(self, uid: str, charge: Charge) -> None:
        """The pod is gone and left ``charge`` in all: no more can be in files.

        MAP_NORESERVE charges what is touched only, and reads as any other mapping.
        """
        over = self.charge_of(uid).beyond(charge).without_zeros()
        for size, amount in over.items():
            pages = amount // size.bytes
            held = [each for each in self._charges.files_of(uid) if each.page_size == size]
            # One without a name first: that it was closed may have been missed.
            for found in sorted(held, key=lambda each: self._files[each.file].linked):
                known = self._files[found.file]
                # What is there is charged to somebody; what is not may never have been.
                possible = max(0, found.pages - known.pages) if known.linked else found.pages
                if count := min(pages, possible):
                    self._charges.release(found.file, count, uid)
                    self._touch(found.file)
                    pages -= count

    def assign(self, beyond: Mapping[str, Charge]) -> None:
        """Charge pages that nobody is charged for to pods that left more than is in files.

        :param beyond: how much more; made by whom is not known, as when no agent ran. Those
            who opened a file come first.
        """
        rest = {uid: dict(charge.items()) for uid, charge in beyond.items()}
        self._beyond = rest
        for file in list(self._uncharged):
            known = self._files[file]
            for uid in self._likeliest(known):
                missing = known.pages - self._charged(file)
                if (count := self._take(uid, known.superblock.size, missing)) > 0:
                    self._charge_count(file, count, uid)
            if known.pages <= self._charged(file):
                self._uncharged.discard(file)

    def hide(self, what: str, why: str) -> None:
        """Say that ``what`` can't be seen, and why."""
        if self._hidden.get(what) != why:
            logger.warning("%s", why)
        self._hidden[what] = why

    def read_maps(self, pid: int, owner: str) -> None:
        """Charge ``owner`` for what its process maps and nobody is charged for yet."""
        try:
            found = mappings(self._host, pid, self._superblocks.keys())
        except ProcessHidden as error:
            self.hide("mappings", str(error))
            return
        for mapping in found:
            file = FileKey(mapping.device, mapping.inode)
            if mapping.shared and file in self._files:
                size = self._files[file].superblock.size
                first, last = mapping.start // size.bytes, -(-mapping.end // size.bytes)
                self._charge(file, PageRange(first, last), owner)

    def save(self) -> None:
        """Write down what changed since the last time."""
        if not self._changed:
            return
        rows = {
            file: RememberedFile(
                file,
                known.path,
                known.superblock.root,
                known.length,
                known.since,
                tuple(known.candidates),
                tuple(self._charges.rows_of(file)),
            )
            if (known := self._files.get(file)) is not None
            else None
            for file in self._changed
        }
        try:
            self._memory.save_files(rows)
        except NotRemembered as error:
            logger.error("%s", error)
        else:
            self._changed.clear()

    # How it is kept

    def _opened(self, file: FileKey, pid: int, cgroup: str | None) -> None:
        known = self._files.get(file)
        if known is None:
            superblock = self._superblocks.get(file.device)
            if superblock is None:
                return
            # Its name comes from the directory's event.
            known = self._files[file] = _File(superblock, "", 0, 0, datetime.now(UTC))
        known.opens += 1
        if cgroup is None:
            return
        if self._cgroup2 / cgroup.lstrip("/") == self._asking:
            return
        owner = self._owner(cgroup)
        if owner not in known.candidates:
            known.candidates.append(owner)
            self._touch(file)
        if pid in self._reads:
            self._reads[pid] = 0  # mmap comes after this open too
        elif pid:
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
        known = self._files.get(file)
        if known is None or cgroup is None or not (known.linked and known.path):
            return
        owner = self._owner(cgroup)
        self._look_at(known.superblock, known.path, owner)

    def _closed(self, file: FileKey) -> None:
        known = self._files.get(file)
        if known is None:
            return
        known.opens = max(0, known.opens - 1)
        if not known.path:
            # Its name may be on its way; a file that never had one is gone.
            asyncio.get_running_loop().call_later(_NAME_AFTER, self._drop_nameless, file)
        elif known.linked:
            self._look_at(known.superblock, known.path)
        elif not known.opens:
            self._drop(file)

    def _owner(self, cgroup: str) -> str:
        """The UID in the name of the pod's cgroup that ``cgroup`` is in, or the SYSTEM."""
        path = self._cgroup2 / cgroup.lstrip("/")
        for parent in self._parents:
            if path.is_relative_to(parent):
                place = kubepods.place(str(path.relative_to(parent)))
                if place is not None and place.pod is not None:
                    return place.pod
        return SYSTEM

    async def _look_at_all(self, superblock: Superblock) -> None:
        for done, _ in enumerate(self._steps(superblock)):
            if done % _BATCH == 0:
                await asyncio.sleep(0)

    def _steps(self, superblock: Superblock) -> Iterator[None]:
        """Look at every file of ``superblock``, one a step; those not found are gone."""
        before = set(self._at[superblock.device])
        try:
            for state in hugetlbfs.scan(superblock):
                before.discard(state.path)
                self._update(superblock, state)
                yield
        except OSError as error:
            self.hide(superblock.point, f"{superblock.point} can't be looked through: {error}.")
            return
        self._hidden.pop(superblock.point, None)
        for path in before:
            # Maybe made meanwhile, or renamed.
            self._look_at(superblock, path)
            yield

    def _look_at(self, superblock: Superblock, path: str, allocator: str | None = None) -> None:
        try:
            state = hugetlbfs.look_up(superblock, path)
        except OSError as error:
            self.hide(superblock.point, f"{superblock.point} can't be looked through: {error}.")
            return
        if state is not None:
            self._update(superblock, state, allocator)
        elif (gone := self._at[superblock.device].get(path)) is not None:
            self._unlinked(gone)

    def _update(
        self, superblock: Superblock, state: FileState, allocator: str | None = None
    ) -> None:
        file = FileKey(state.device, state.inode)
        size = superblock.size
        length = -(-state.size // size.bytes)
        known = self._files.get(file) or self._recalled(file, superblock)
        if known is None:
            known = self._files[file] = _File(superblock, "", 0, 0, datetime.now(UTC))
        freed = known.pages - state.pages
        if length < known.length:
            change = self._charges.truncate(file, length)
            freed -= change.released
            self._released(change)
        if freed > 0:
            # A page that was there takes its charge along, wherever in the file it was.
            self._released(self._charges.release(file, freed))
        at = self._at[file.device]
        if known.path != state.path:
            if at.get(known.path) == file:
                del at[known.path]
            self._touch(file)
        if (displaced := at.get(state.path, file)) != file:
            self._unlinked(displaced)
        at[state.path] = file
        self._pages[file.device] += state.pages - known.pages
        if known.asked is None or known.asked[:2] != (length, state.pages):
            self._to_ask.add(file)
        known.path, known.length, known.pages = state.path, length, state.pages
        known.linked = True
        owner = allocator if allocator is not None else next(iter(known.candidates), None)
        if (missing := known.pages - self._charged(file)) <= 0:
            self._uncharged.discard(file)
        elif owner is not None:
            self._charge_count(file, missing, owner)
        else:
            self._uncharged.add(file)

    def _recalled(self, file: FileKey, superblock: Superblock) -> _File | None:
        """What was remembered of a file that is found again."""
        remembered = self._remembered.pop(file, None)
        if remembered is None or remembered.root != superblock.root:
            return None
        self._files[file] = _File(
            *(superblock, remembered.path, remembered.length, 0, remembered.since),
            list(remembered.candidates),
        )
        for row in remembered.rows:
            self._charges.charge(row.file, row.page_size, PageRange(row.first, row.last), row.owner)
        return self._files[file]

    def _likeliest(self, known: _File) -> list[str]:
        """Those who left more than is in files, who opened this one first."""
        return sorted(self._beyond, key=lambda uid: uid not in known.candidates)

    def _take(self, uid: str, size: PageSize, pages: int) -> int:
        """Up to ``pages`` of what ``uid`` left beyond what is in files; how many it is."""
        rest = self._beyond[uid]
        count = min(pages, rest.get(size, 0) // size.bytes)
        rest[size] = rest.get(size, 0) - count * size.bytes
        return count

    async def _ask_now_and_then(self) -> None:
        """Ask the kernel which pages are charged, of files that changed; for ever.

        What was reserved and not touched, by a process that was gone before its mappings
        were read, is in no count of a file.
        """
        cgroup = self._asking
        try:
            cgroup.mkdir(exist_ok=True)
            for size in page_sizes(self._host):
                write_limit(cgroup, size, "rsvd.max", 0)
            async with ChargedRanges(cgroup) as ranges:
                while True:
                    await asyncio.sleep(_ASK)
                    asked = 0
                    for file in list(self._to_ask):
                        known = self._files.get(file)
                        if known is not None and await self._ask(ranges, file, known):
                            asked += 1
                        else:
                            self._to_ask.discard(file)
                        if asked >= _ASKED_AT_ONCE:
                            break
        except (CgroupError, MayReserve, OSError) as error:
            self.hide("ranges", f"Which pages of files are charged can't be asked: {error}")
        finally:
            with suppress(OSError):
                cgroup.rmdir()

    async def _ask(self, ranges: ChargedRanges, file: FileKey, known: _File) -> bool:
        """Ask about one file; whether it had to be."""
        state = (known.length, known.pages, self._charged(file))
        if not known.linked or not known.path or known.asked == state:
            return False
        last = max((pages.last for pages, _ in self._charges.held(file)), default=0)
        try:
            runs = await ranges.of(
                known.superblock, known.path, file.inode, max(known.length, last)
            )
        except NotAsked as error:
            logger.warning("%s", error)
            return True
        if self._files.get(file) is known and known.linked:
            self._correct(file, known, [PageRange(*run) for run in runs])
            if not any(self._charges.would_charge(file, PageRange(*run)) for run in runs):
                known.asked = (known.length, known.pages, self._charged(file))
        return True

    def _correct(self, file: FileKey, known: _File, runs: list[PageRange]) -> None:
        """Make the list say of ``file`` what the kernel does: that ``runs`` are charged."""
        end = max([known.length, *(pages.last for pages, _ in self._charges.held(file))])
        at = 0
        for run in (*runs, PageRange(end, end)):
            if at < run.first:
                self._released(self._charges.punch(file, PageRange(at, run.first)))
            at = max(at, run.last)
        for uid in self._likeliest(known):
            for run in runs:
                missing = self._charges.would_charge(file, run)
                if (count := self._take(uid, known.superblock.size, missing)) == missing > 0:
                    self._charge(file, run, uid)
                elif count > 0:
                    self._charge_count(file, count, uid, run.first)

    def _charged(self, file: FileKey) -> int:
        return sum(pages.pages for pages, _ in self._charges.held(file))

    def _charge_count(self, file: FileKey, count: int, owner: str, at: int = 0) -> None:
        """Charge ``owner`` for ``count`` pages of which it is not told which they are.

        The first from ``at`` on that nobody is charged for.
        """
        while count > 0:
            taken = next((pages for pages, _ in self._charges.held(file) if pages.last > at), None)
            if taken is None or taken.first > at:
                last = at + count if taken is None else min(at + count, taken.first)
                self._charge(file, PageRange(at, last), owner)
                count -= last - at
                at = last
            else:
                at = taken.last

    def _charge(self, file: FileKey, pages: PageRange, owner: str) -> None:
        size = self._files[file].superblock.size
        try:
            if self._charges.charge(file, size, pages, owner):
                self._touch(file)
        except PageSizeDiffers:
            # Its number stands for another file system's file now.
            self._drop(file)

    def _drop(self, file: FileKey) -> None:
        known = self._files.pop(file)
        self._uncharged.discard(file)
        if self._at[file.device].get(known.path) == file:
            del self._at[file.device][known.path]
        self._pages[file.device] -= known.pages
        self._touch(file)
        self._released(self._charges.drop(file))

    def _touch(self, file: FileKey) -> None:
        self._to_ask.add(file)
        self._changed.add(file)
        self._largest = None

    def _released(self, change: Change[str]) -> None:
        if change:
            self._touch(change.file)
            self.on_release()

    def _unlinked(self, file: FileKey) -> None:
        """The file has no name any more; while it is open it keeps its pages."""
        known = self._files[file]
        del self._at[file.device][known.path]
        known.linked = False
        if not known.opens:
            self._drop(file)

    def _lost_count(self) -> None:
        """It is not known any more which files are open."""
        for file, known in list(self._files.items()):
            known.opens = 0
            if not known.linked or not known.path:
                self._drop(file)

    def _drop_nameless(self, file: FileKey) -> None:
        known = self._files.get(file)
        if known is not None and not known.path and not known.opens:
            self._drop(file)

    def _forget(self, superblock: Superblock, changes: FileChanges) -> None:
        changes.forget(superblock)
        # One that took its number already may be there.
        if self._superblocks.get(superblock.device) == superblock:
            del self._superblocks[superblock.device]
        for file in [f for f, known in self._files.items() if known.superblock == superblock]:
            self._drop(file)
        self._at.pop(superblock.device, None)
        self._pages.pop(superblock.device, None)
