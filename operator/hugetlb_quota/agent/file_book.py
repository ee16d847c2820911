"""The book of files: who opened them, and who is charged for which of their pages. No I/O.

The kernel keeps such a list itself and shows it nowhere. It shows who opens a file, what a
process maps, how many pages a file has, and, when it is asked, which of them are charged
(node/charged_ranges.py), but not to whom. What every pod is charged in all is the ledger's,
which the kernel tells exactly. So three things are brought together here:

- which pages are charged: as the kernel answers, at :meth:`FileBook.verified`;
- to whom: who mapped them first, or who alone can have;
- how many are each pod's in all: those that the list gives it beyond that are taken back,
  and pages that are nobody's go to those that lack some (:meth:`FileBook.reconcile`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.charge_list import (
    Change,
    ChargeList,
    FileCharge,
    FileKey,
    PageSizeDiffers,
)
from hugetlb_quota.accounting.ranges import LAST_PAGE, PageRange
from hugetlb_quota.agent.memory import RememberedFile
from hugetlb_quota.node.hugetlbfs import FileState, Superblock
from hugetlb_quota.page_size import PageSize

#: The owner of what the host's own processes made: no pod has this UID.
SYSTEM: Final = ""
#: Files that are told of one by one.
LARGEST: Final = 64
#: Files that pages are sought in beyond their end, and how many pages beyond.
_SOUGHT: Final = 512
_BEYOND: Final = 512
#: Pages of one file that are asked about; anybody can make one of any length, of holes,
#: and each page of a hole is a question. What is mapped beyond is charged as it was mapped.
_ASKED: Final = 1 << 20
_END: Final = PageRange(LAST_PAGE, LAST_PAGE + 1)


@dataclass(slots=True)
class BookedFile:
    """A file that is there, or is open still.

    ``path`` is empty while no name is known. ``length`` and ``pages`` (allocated) are in
    pages. ``candidates``: who opened it and may be charged for pages that are nobody's yet,
    the first first. ``opens``: how often it is open, of those opens that were seen, which
    are all if it is ``counted``. ``verified``: length, pages and pages charged when it was
    asked last which are charged.
    """

    superblock: Superblock
    path: str
    length: int
    pages: int
    since: datetime
    candidates: list[str] = field(default_factory=list)
    opens: int = 0
    counted: bool = True
    linked: bool = True
    links: int = 1
    verified: tuple[int, int, int] | None = None


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


class FileBook:
    """All files on the hugetlbfs superblocks that it is told of.

    :param remembered: what another process of this boot knew of files.
    """

    def __init__(self, remembered: Iterable[RememberedFile] = ()) -> None:
        self._charges: ChargeList[str] = ChargeList()
        self._files: dict[FileKey, BookedFile] = {}
        self._at: defaultdict[int, dict[str, FileKey]] = defaultdict(dict)
        self._pages: Counter[int] = Counter()
        self._superblocks: dict[int, Superblock] = {}
        self._remembered = {each.file: each for each in remembered}
        self._changed: set[FileKey] = set()
        #: Of which it is to be asked which pages are charged; in this order.
        self._unverified: OrderedDict[FileKey, None] = OrderedDict()
        #: Of these, in which somebody was charged since they were asked about.
        self._newly: set[FileKey] = set()
        #: Pages that are charged, of files in which nobody is charged for some of them.
        self._orphans: dict[FileKey, Sequence[PageRange]] = {}
        #: What gone pods left beyond what is in files.
        self._room: dict[str, dict[PageSize, int]] = {}
        #: Pods that were there at the last look, and those that opened a file since.
        self._live: set[str] = set()
        self._over: Mapping[str, Charge] = {}
        self._is_live_known = False
        self._is_reconciled = True
        #: Files to be asked about beyond what is known of them, and what was sought in all.
        self._deep: set[FileKey] = set()
        self._sought: dict[str, dict[PageSize, int]] = {}
        #: Files with pages that are the system's because no pod is known to have made them.
        self._by_default: set[FileKey] = set()
        self._largest: list[FileShare] | None = None
        #: Called when pages of a file were given back.
        self.on_release: Callable[[], None] = lambda: None
        #: Called when a file is to be verified.
        self.on_doubt: Callable[[], None] = lambda: None

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
        """Every superblock that is followed."""
        return tuple(self._superblocks.values())

    @property
    def devices(self) -> Collection[int]:
        """Their device numbers."""
        return self._superblocks.keys()

    @property
    def orphaned(self) -> Charge:
        """Pages of files that are charged, as the kernel says, and of nobody that is known."""
        amounts: Counter[PageSize] = Counter()
        for file in self._orphans:
            size = self._files[file].superblock.size
            amounts[size] += self._missing(file) * size.bytes
        return Charge(amounts)

    @property
    def unlisted(self) -> dict[str, Charge]:
        """What gone pods left that was sought and is in no file, by UID."""
        lacking = self._lacking()
        if self._unverified or lacking != self._sought:
            return {}
        return {uid: Charge(rest).without_zeros() for uid, rest in lacking.items()}

    def superblock(self, device: int) -> Superblock | None:
        """The one with this device number."""
        return self._superblocks.get(device)

    def file(self, file: FileKey) -> BookedFile | None:
        """What is known of this file."""
        return self._files.get(file)

    def paths_on(self, superblock: Superblock) -> set[str]:
        """Where files are known to be."""
        return set(self._at[superblock.device])

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

    # Superblocks

    def follow(self, superblock: Superblock) -> None:
        """Files of ``superblock`` will be told of; or it was moved, and they with it."""
        before = self._superblocks.get(superblock.device)
        self._superblocks[superblock.device] = superblock
        if before is not None and before.root == superblock.root:
            for file in [f for f, known in self._files.items() if known.superblock == before]:
                self._files[file].superblock = superblock
                self._touch(file)

    def forget(self, superblock: Superblock) -> None:
        """``superblock`` is gone, and with it all its files."""
        # One that took its number already may be there.
        if self._superblocks.get(superblock.device) == superblock:
            del self._superblocks[superblock.device]
        for file in [f for f, known in self._files.items() if known.superblock == superblock]:
            self._drop(file)
        self._at.pop(superblock.device, None)
        self._pages.pop(superblock.device, None)

    def forget_remembered(self) -> None:
        """All files were found that are there: what else was remembered is gone."""
        self._changed |= self._remembered.keys()
        self._remembered.clear()

    # What happens to files

    def opened(self, file: FileKey, owner: str | None) -> bool:
        """``owner`` opened it; None: not told who. Whether it is a file that is followed."""
        known = self._files.get(file)
        if known is None:
            superblock = self._superblocks.get(file.device)
            if superblock is None:
                return False
            # Its name comes from the directory's event.
            known = self._new(file, superblock)
        known.opens += 1
        if owner is not None:
            self.add_candidate(file, owner)
        return True

    def add_candidate(self, file: FileKey, owner: str) -> None:
        """``owner`` has it open or mapped, and so may be charged for its pages."""
        self._live.add(owner)
        known = self._files.get(file)
        if known is not None and owner not in known.candidates:
            known.candidates.append(owner)
            self._changed.add(file)

    def closed(self, file: FileKey) -> None:
        """One of those that had it open has it open and mapped no more."""
        known = self._files.get(file)
        if known is None:
            return
        known.opens = max(0, known.opens - 1)
        if known.linked:
            self.doubt(file)
        elif not known.opens:
            self._drop(file)

    def drop_nameless(self, device: int | None = None) -> None:
        """Files are gone that have no name after all names were looked at, and are not open."""
        for file, known in list(self._files.items()):
            if device in (None, file.device) and not known.path and not known.opens:
                self._drop(file)

    def drop_if_nameless(self, file: FileKey) -> None:
        """The same of one file whose name had time to be told."""
        known = self._files.get(file)
        if known is not None and not known.path and not known.opens:
            self._drop(file)

    def lost_count(self) -> None:
        """It is not known any more which files are open."""
        for file, known in list(self._files.items()):
            known.opens = 0
            known.counted = False
            if not known.linked or not known.path:
                self._drop(file)
            else:
                self.doubt(file)

    def found(self, superblock: Superblock, state: FileState) -> None:
        """A file was looked at."""
        file = FileKey(state.device, state.inode)
        length = -(-state.size // superblock.size.bytes)
        known = self._files.get(file) or self._recalled(file, superblock)
        if known is None:
            known = self._new(file, superblock)
        at = self._at[file.device]
        if known.path != state.path:
            if known.links <= 1 and at.get(known.path) == file:
                del at[known.path]
            self._touch(file)
        if (displaced := at.get(state.path, file)) != file:
            self.vanished(superblock, state.path, displaced)
        at[state.path] = file
        self._pages[file.device] += state.pages - known.pages
        if length < known.length:
            # No page beyond the end is charged to anybody: that needs not be asked.
            self._released(self._charges.truncate(file, length))
        known.path, known.length, known.pages = state.path, length, state.pages
        if known.verified != self._state(file, known):
            self.doubt(file)
        known.linked, known.links = True, state.links

    def vanished(self, superblock: Superblock, path: str, file: FileKey | None = None) -> bool:
        """No file is at ``path``, or not this one; whether it may have another name."""
        gone = file or self._at[superblock.device].get(path)
        if gone is None:
            return False
        if self._at[superblock.device].get(path) == gone:
            del self._at[superblock.device][path]
        # One with several names may be dropped before each of them was looked at.
        known = self._files.get(gone)
        if known is None or known.path != path:
            return False
        if known.links > 1:
            known.path = ""
            known.links -= 1
            return True
        known.linked = False
        if not known.opens:
            self._drop(gone)
        return False

    def mapped(self, file: FileKey, first: int, last: int, owner: str) -> None:
        """A process of ``owner`` maps these bytes: charged to it, where to nobody yet."""
        known = self._files.get(file)
        if known is not None:
            self.add_candidate(file, owner)
            page = known.superblock.size.bytes
            self._charge(file, PageRange(first // page, -(-last // page)), owner)

    # What is charged

    def next_unverified(self) -> FileKey | None:
        """A file of which it is to be asked which pages are charged; it is told of once."""
        while self._unverified:
            file, _ = self._unverified.popitem(last=False)
            self._newly.discard(file)
            known = self._files.get(file)
            if known is not None and known.linked and known.path:
                return file
        return None

    @property
    def is_verified(self) -> bool:
        """Whether no file changed since it was asked which pages are charged."""
        return not self._unverified

    def doubt(self, file: FileKey) -> None:
        """It is to be asked which pages of ``file`` are charged."""
        if file in self._files:
            self._unverified[file] = None
            self.on_doubt()

    def end_of(self, file: FileKey) -> int:
        """The page before which all are that may be charged, and are to be asked about."""
        held = (pages.last for pages, _ in self._charges.held(file))
        orphans = (run.last for run in self._orphans.get(file, ()))
        beyond = 0
        if file in self._deep:
            self._deep.remove(file)
            beyond = _BEYOND
        return min(_ASKED, max(self._files[file].length, 0, *held, *orphans) + beyond)

    def verified(self, file: FileKey, runs: Sequence[PageRange]) -> None:
        """These pages are charged and no others, as the kernel says.

        An answer from before somebody was charged is none: the file is to be asked about again.
        """
        known = self._files.get(file)
        if known is None or file in self._newly:
            return
        held = (pages.last for pages, _ in self._charges.held(file))
        end = min(_ASKED, max(known.length, *held, 0))
        at = 0
        for run in (*runs, PageRange(end, end)):
            if at < run.first:
                self._released(self._charges.punch(file, PageRange(at, run.first)), doubt=False)
            at = max(at, run.last)
        self._orphans[file] = runs
        self._forget_ended(file, known)
        self._attribute(file, known)
        known.verified = self._state(file, known)
        if self._missing(file):
            self._is_reconciled = False
        else:
            del self._orphans[file]
            if self._is_closed(file, known) and known.candidates:
                # Whoever wants to be charged from now on has to open it first.
                known.candidates.clear()
                self._changed.add(file)

    def _is_closed(self, file: FileKey, known: BookedFile) -> bool:
        # One that was opened and closed since it was asked about is in doubt again.
        return known.counted and not known.opens and file not in self._unverified

    def _forget_ended(self, file: FileKey, known: BookedFile) -> None:
        """Those that are gone and left nothing made no pages; a file may be open for years."""
        if not self._is_live_known:
            return
        left = [uid for uid in known.candidates if self._is_live(uid) or uid in self._room]
        if left != known.candidates:
            known.candidates = left
            self._changed.add(file)

    def _attribute(self, file: FileKey, known: BookedFile) -> None:
        """Charge pages that are nobody's to the only one who can have made them."""
        size = known.superblock.size
        live = [uid for uid in known.candidates if self._is_live(uid)]
        gone = [uid for uid in known.candidates if self._room.get(uid, {}).get(size)]
        if len(live) == 1 and not gone:
            self._give(file, live[0], self._missing(file))
        elif not live and len(gone) == 1:
            self._give(file, gone[0], self._take(gone[0], size, self._missing(file)))

    def _is_live(self, uid: str) -> bool:
        return uid == SYSTEM or uid in self._live

    def reconcile(self, left: Mapping[str, Charge], live: Mapping[str, Charge]) -> None:
        """Bring the list to what the kernel says that each pod is charged in all.

        :param left: what pods left whose cgroups are gone, by UID.
        :param live: what is reserved by pods whose cgroups are there; every other UID is
            that of one that is gone.
        """
        self._live, self._is_live_known = set(live), True
        for uid, charge in self._charges.by_owner().items():
            if uid not in live and uid != SYSTEM:
                self._take_back(uid, charge.beyond(left.get(uid, NOTHING)))
        # What a live one has beyond must be seen twice: files may be behind its cgroup.
        over = {uid: self.charge_of(uid).beyond(charge) for uid, charge in live.items()}
        for uid, charge in over.items():
            self._take_back(uid, charge.within(self._over.get(uid, NOTHING)))
        self._over = {uid: charge for uid, charge in over.items() if charge}
        self._assign({uid: charge.beyond(self.charge_of(uid)) for uid, charge in left.items()})
        self._seek()

    def move(self, owner: str, to: str) -> None:
        """Charge ``to`` for everything that ``owner`` is charged for."""
        for file in self._charges.move(owner, to).files:
            self._touch(file, doubt=False)

    def _take_back(self, uid: str, over: Charge) -> None:
        """``uid`` can't be charged for so much: in files that did not change meanwhile."""
        for size, amount in over.without_zeros().items():
            pages = amount // size.bytes
            held = [
                each
                for each in self._charges.files_of(uid)
                if each.page_size == size and each.file not in self._unverified
            ]
            # One without a name first: that it was closed may have been missed. Then those
            # that others had open too.
            held.sort(key=lambda each: self._certainty(each.file))
            for found in held:
                if pages <= 0:
                    break
                most = min(pages, self._charges.pages_in(found.file, uid))
                pages -= self._charges.release(found.file, most, uid).released
                known = self._files[found.file]
                if uid in known.candidates:
                    known.candidates.remove(uid)
                # Another's, then, and maybe beyond the file's end.
                self._deep.add(found.file)
                self._touch(found.file)

    def _certainty(self, file: FileKey) -> tuple[bool, int]:
        known = self._files[file]
        return known.linked, -len(known.candidates)

    def _assign(self, room: Mapping[str, Charge]) -> None:
        """Charge pages that are nobody's to pods that left more than is in files.

        Those who opened a file come first. While a pod that opened it is there nobody else
        is charged, for it may have been that one.
        """
        now = {uid: dict(charge.items()) for uid, charge in room.items()}
        if self._is_reconciled and now == self._room:
            return
        self._room = now
        for file in list(self._orphans):
            known = self._files[file]
            self._attribute(file, known)
            live = [uid for uid in known.candidates if uid in self._live]
            likely = [uid for uid in known.candidates if uid in now]
            others = [] if live else [uid for uid in now if uid not in likely]
            for uid in (*likely, *others):
                if not (missing := self._missing(file)):
                    break
                self._give(file, uid, self._take(uid, known.superblock.size, missing))
            if not self._missing(file):
                del self._orphans[file]
        self._is_reconciled = True

    def _seek(self) -> None:
        """Look for what gone pods left where it was not seen.

        In files that are the system's by default; and beyond the end of files, for a
        mapping that is read-only reserves there and makes no file longer. Once for what is
        missing, for it may as well be in no file: in a System V segment.
        """
        lacking = self._lacking()
        if not lacking:
            self._sought = {}
            self._default()
        elif not self._unverified and lacking != self._sought:
            self._sought = lacking
            for file in self._by_default:
                held = self._charges.pages_in(file, SYSTEM)
                self._charges.release(file, held, SYSTEM)
                self._touch(file)
            self._by_default.clear()
            for file in islice(reversed(self._files), _SOUGHT):
                self._deep.add(file)
                self.doubt(file)

    def _lacking(self) -> dict[str, dict[PageSize, int]]:
        """What gone pods left that is in no file yet."""
        return {uid: dict(rest) for uid, rest in self._room.items() if any(rest.values())}

    def _default(self) -> None:
        """What no pod can have made is the system's, until one left more than is known of."""
        for file in [each for each in self._orphans if not self._files[each].candidates]:
            self._give(file, SYSTEM, self._missing(file))
            self._by_default.add(file)
            del self._orphans[file]

    def _take(self, uid: str, size: PageSize, pages: int) -> int:
        """Up to ``pages`` of what ``uid`` left beyond what is in files; how many it is."""
        rest = self._room[uid]
        count = min(pages, rest.get(size, 0) // size.bytes)
        if count:
            rest[size] -= count * size.bytes
        return count

    def _give(self, file: FileKey, owner: str, count: int) -> None:
        """Charge ``owner`` for the first ``count`` pages that are charged and nobody's."""
        for pages in list(self._nobodys(file)):
            if count <= 0:
                return
            last = min(pages.last, pages.first + count)
            self._charge(file, PageRange(pages.first, last), owner, doubt=False)
            count -= last - pages.first

    def _nobodys(self, file: FileKey) -> Iterator[PageRange]:
        held = iter([*(pages for pages, _ in self._charges.held(file)), _END])
        taken = next(held)
        for run in self._orphans[file]:
            at = run.first
            while at < run.last:
                while taken.last <= at:
                    taken = next(held)
                if at < taken.first:
                    yield PageRange(at, min(taken.first, run.last))
                at = taken.last

    def _missing(self, file: FileKey) -> int:
        """Pages that are charged, as the kernel says, and of nobody that is known."""
        return sum(self._charges.would_charge(file, run) for run in self._orphans.get(file, ()))

    # What must not be forgotten

    def changes(self) -> dict[FileKey, RememberedFile | None]:
        """What is to be remembered of files that changed since :meth:`saved`; None: gone."""
        return {
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

    def saved(self) -> None:
        """The :meth:`changes` are remembered."""
        self._changed.clear()

    # How it is kept

    def _new(self, file: FileKey, superblock: Superblock) -> BookedFile:
        known = self._files[file] = BookedFile(superblock, "", 0, 0, datetime.now(UTC))
        return known

    def _recalled(self, file: FileKey, superblock: Superblock) -> BookedFile | None:
        """What was remembered of a file that is found again."""
        remembered = self._remembered.pop(file, None)
        if remembered is None or remembered.root != superblock.root:
            return None
        known = self._files[file] = BookedFile(
            *(superblock, remembered.path, remembered.length, 0, remembered.since),
            list(remembered.candidates),
            counted=False,
        )
        for row in remembered.rows:
            self._charges.charge(row.file, row.page_size, PageRange(row.first, row.last), row.owner)
        self._touch(file)
        return known

    def _state(self, file: FileKey, known: BookedFile) -> tuple[int, int, int]:
        charged = sum(pages.pages for pages, _ in self._charges.held(file))
        return known.length, known.pages, charged

    def _charge(self, file: FileKey, pages: PageRange, owner: str, *, doubt: bool = True) -> None:
        size = self._files[file].superblock.size
        try:
            if self._charges.charge(file, size, pages, owner):
                self._touch(file, doubt=doubt)
                if doubt:
                    self._newly.add(file)
        except PageSizeDiffers:
            # Its number stands for another file system's file now.
            self._drop(file)

    def _drop(self, file: FileKey) -> None:
        known = self._files.pop(file)
        self._deep.discard(file)
        self._by_default.discard(file)
        self._orphans.pop(file, None)
        self._unverified.pop(file, None)
        self._newly.discard(file)
        if self._at[file.device].get(known.path) == file:
            del self._at[file.device][known.path]
        self._pages[file.device] -= known.pages
        self._touch(file, doubt=False)
        self._released(self._charges.drop(file), doubt=False)

    def _touch(self, file: FileKey, *, doubt: bool = True) -> None:
        self._changed.add(file)
        self._largest = None
        if doubt:
            self.doubt(file)

    def _released(self, change: Change[str], *, doubt: bool = True) -> None:
        if change:
            self._touch(change.file, doubt=doubt)
            self.on_release()
