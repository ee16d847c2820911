"""The charge list: which pages of which hugetlbfs file are charged to whom, until truncated.

The rules are those of the kernel's reservation map (mm/hugetlb.c, ``region_chg``,
``region_add``, ``region_del``): who reserves a page first is charged for it, whoever maps it
later is not, and the charge ends with the page and not with the process. The kernel keeps one
list per inode; this one keeps those of all files of a node.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Final, Generic, NamedTuple, TypeVar

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.ranges import LAST_PAGE, MalformedRange, PageRange, RangeMap
from hugetlb_quota.page_size import PageSize

Owner = TypeVar("Owner", bound=Hashable)


class FileKey(NamedTuple):
    """What identifies a file on its node until the next boot: ``st_dev`` and ``st_ino``."""

    device: int
    inode: int

    def __str__(self) -> str:
        return f"inode {self.inode} of device {self.device}"


class FileCharge(NamedTuple):
    """How many pages of a file are charged: to one owner or to all, as asked."""

    file: FileKey
    page_size: PageSize
    pages: int

    @property
    def bytes(self) -> int:
        """The same in bytes."""
        return self.pages * self.page_size.bytes


class Row(NamedTuple, Generic[Owner]):
    """A range of pages [``first``, ``last``) and its owner, as a row of a table."""

    file: FileKey
    page_size: PageSize
    first: int
    last: int
    owner: Owner


class Change(NamedTuple, Generic[Owner]):
    """What an operation did to one file; false when it did nothing.

    ``pages`` by owner: above zero newly charged, below zero released. ``page_size`` is None
    when nothing changed. Only the rows of ``file`` are different from before.
    """

    file: FileKey
    page_size: PageSize | None
    pages: Mapping[Owner, int]

    @property
    def charged(self) -> int:
        """Pages newly charged."""
        return sum(pages for pages in self.pages.values() if pages > 0)

    @property
    def released(self) -> int:
        """Pages charged to nobody any more."""
        return -sum(pages for pages in self.pages.values() if pages < 0)

    def __bool__(self) -> bool:
        return bool(self.pages)


class Moved(NamedTuple, Generic[Owner]):
    """What went from owners to other owners; false when nothing did.

    ``charges`` by the owner that they were taken from. Only the rows of ``files`` are
    different from before.
    """

    files: tuple[FileKey, ...]
    charges: Mapping[Owner, Charge]

    def __bool__(self) -> bool:
        return bool(self.charges)


class PageSizeDiffers(ValueError):
    """A file is charged in pages of a size that is not the one it is known with."""

    def __init__(self, file: FileKey, known: PageSize, charged: PageSize) -> None:
        super().__init__(
            f"The file with {file} is listed with pages of {known} and is now charged for pages "
            f"of {charged}: the number stands for another file now. Drop the old one first."
        )


class DamagedRows(ValueError):
    """Rows of a table that are no charge list."""

    def __init__(self, row: Row[Owner]) -> None:
        super().__init__(
            f"The row for pages [{row.first}, {row.last}) of {row.page_size} of the file with "
            f"{row.file} cannot be: it has no pages, or overlaps the row before, or is out of "
            "order, or has another page size than it. Set the table aside and rebuild it."
        )


class _Account(Generic[Owner]):
    """What one owner holds of one page size: the ``reservation_counter`` of a region.

    Ranges refer to accounts and not to owners: an account is compared by identity, and knows
    its page size, so neither costs anything per range.
    """

    __slots__ = ("files", "owner", "page_size", "pages")

    def __init__(self, owner: Owner, page_size: PageSize) -> None:
        self.owner: Final = owner
        self.page_size: Final = page_size
        self.pages = 0
        self.files: dict[FileKey, int] = {}

    def add(self, file: FileKey, pages: int) -> None:
        """Add ``pages`` of ``file``; a negative number takes them away."""
        self.pages += pages
        held = self.files.get(file, 0) + pages
        if held:
            self.files[file] = held
        else:
            del self.files[file]


_Range = tuple[int, int, _Account[Owner]]


class ChargeList(Generic[Owner]):
    """The charges of all files of a node.

    Numbers are pages where nothing else is said. An owner is any hashable value but None; the
    list asks nothing else of it. Totals are kept up with every operation and cost nothing to
    read. Iterators are for reading at once: an operation makes those before it invalid.
    """

    def __init__(self) -> None:
        # Most files have one range, and there may be 100,000 of them (DPDK makes a file of
        # every page): one range is kept as a tuple, which takes a tenth of a map.
        self._files: dict[FileKey, _Range[Owner] | RangeMap[_Account[Owner]]] = {}
        # No account is empty: an owner without pages is not in the list.
        self._accounts: dict[Owner, dict[PageSize, _Account[Owner]]] = {}

    @classmethod
    def from_rows(cls, rows: Iterable[Row[Owner]]) -> ChargeList[Owner]:
        """The list whose :meth:`rows` these are; those of a file together and in order.

        :raises DamagedRows: when two rows claim a page, or are out of order, or one has no
            pages or pages that no file can have, or a file has two page sizes.
        """
        charges = cls()
        for file, rows_of_file in groupby(rows, key=lambda row: row.file):
            charges._restore(file, rows_of_file)
        return charges

    # What happens to one file

    def charge(
        self, file: FileKey, page_size: PageSize, pages: PageRange, owner: Owner
    ) -> Change[Owner]:
        """Charge ``owner`` for those of ``pages`` that are charged to nobody.

        The kernel's rule: the first to reserve is charged. So to charge the same pages again,
        for the same owner or another, does nothing.

        :raises MalformedRange: for pages that no file can have.
        :raises PageSizeDiffers: when the file is known with another page size.
        """
        first, last = _checked(pages)
        known = self._page_size(file)
        if known is not None and known != page_size:
            raise PageSizeDiffers(file, known, page_size)
        account = self._account(owner, page_size)
        if known is None and first < last:
            self._files[file] = (first, last, account)
            return self._book(file, {account: last - first})
        given = self._rewrite(file, first, last, lambda held: account if held is None else held)
        return self._book(file, {account: given.get(None, 0)})

    def would_charge(self, file: FileKey, pages: PageRange) -> int:
        """How many of ``pages`` :meth:`charge` would charge.

        :raises MalformedRange: for pages that no file can have.
        """
        first, last = _checked(pages)
        ranges = self._ranges(file)
        return last - first if ranges is None else ranges.free(first, last)

    def truncate(self, file: FileKey, length: int) -> Change[Owner]:
        """Release all pages of ``file`` from its new ``length`` in pages on.

        The kernel truncates to whole pages only and releases what was reserved beyond,
        touched or not. A length beyond the end releases nothing.

        :raises MalformedRange: for a length that no file can have.
        """
        return self.punch(file, PageRange(length, LAST_PAGE))

    def punch(self, file: FileKey, pages: PageRange) -> Change[Owner]:
        """Release ``pages``; what is on both sides of the hole stays.

        These must be the pages that the kernel released, and not those that a program asked
        fallocate(2) to: a hole takes whole pages that were touched, and leaves a page charged
        that was reserved and never touched (``remove_inode_hugepages``).

        :raises MalformedRange: for pages that no file can have.
        """
        first, last = _checked(pages)
        return self._book(file, _released(self._rewrite(file, first, last, _without(None))))

    def drop(self, file: FileKey) -> Change[Owner]:
        """Release the whole file: it has no name, and nothing has it open or mapped."""
        return self.truncate(file, 0)

    def release(self, file: FileKey, count: int, first_from: Owner | None = None) -> Change[Owner]:
        """Release ``count`` pages of which only the number is known, or all if there are fewer.

        The number is certain, for the kernel counts the pages of a file: the file's total has
        to be right whichever they were. Which ones went is a guess, and the least wrong is
        the end of the file, because files shrink there. The pages of ``first_from`` go before
        those of others, for the caller who has seen that owner's own counter fall. So the
        file's total is right in any case, and no owner's is wrong by more than ``count``.

        A caller who knows an owner's number and guesses the file must not ask for more than
        :meth:`pages_in` tells, or others are released from what they still hold.

        :raises ValueError: for a negative count.
        """
        if count < 0:
            raise ValueError(f"{count} pages of the file with {file} cannot be released.")
        released: dict[_Account[Owner], int] = {}
        preferred = self._held_account(file, first_from)
        for account in (preferred, None) if preferred else (None,):
            ranges = self._ranges(file)
            if ranges is None:
                break
            cut = ranges.tail(count + sum(released.values()), account)
            released |= _released(self._rewrite(file, cut, LAST_PAGE, _without(account)))
        return self._book(file, released)

    # What happens to owners

    def move(self, owner: Owner, to: Owner) -> Moved[Owner]:
        """Charge ``to`` for everything that ``owner`` is charged for; all or nothing.

        Whether there is room for it is for the caller to ask before: :meth:`charge_of`.
        """
        return self._inherit(
            {account: to for account in self._accounts.get(owner, {}).values() if owner != to}
        )

    def reparent(self, heir_of: Callable[[Owner], Owner]) -> Moved[Owner]:
        """Charge ``heir_of(owner)`` for what each owner is charged for; all or nothing.

        An owner that is its own heir keeps its charges. All go at once, so that one may be
        the heir of another and have an heir itself. When ``heir_of`` raises, nothing moved.
        """
        heirs: dict[_Account[Owner], Owner] = {}
        for owner, accounts in self._accounts.items():
            heir = heir_of(owner)
            if heir != owner:
                heirs.update(dict.fromkeys(accounts.values(), heir))
        return self._inherit(heirs)

    # What is there

    def held(self, file: FileKey) -> Iterator[tuple[PageRange, Owner]]:
        """Every range of ``file`` that is charged, in order, and its owner."""
        for first, last, account in self._each(file):
            yield PageRange(first, last), account.owner

    def pages_in(self, file: FileKey, owner: Owner) -> int:
        """How many pages of ``file`` are charged to ``owner``."""
        account = self._held_account(file, owner)
        return account.files[file] if account else 0

    def pages_of(self, owner: Owner) -> dict[PageSize, int]:
        """How many pages are charged to ``owner`` in all files, by page size."""
        accounts = self._accounts.get(owner, {})
        return {size: account.pages for size, account in accounts.items()}

    def charge_of(self, owner: Owner) -> Charge:
        """The same in bytes."""
        return Charge({size: pages * size.bytes for size, pages in self.pages_of(owner).items()})

    def by_owner(self) -> dict[Owner, Charge]:
        """Every owner that is charged for anything, and for how many bytes."""
        return {owner: self.charge_of(owner) for owner in self._accounts}

    def files_of(self, owner: Owner) -> Iterator[FileCharge]:
        """Every file of which ``owner`` is charged for pages, and for how many."""
        for size, account in self._accounts.get(owner, {}).items():
            for file, pages in account.files.items():
                yield FileCharge(file, size, pages)

    def files(self) -> Iterator[FileCharge]:
        """Every file of which anybody is charged for pages, and how many are."""
        for file, ranges in self._files.items():
            pages = ranges.pages if isinstance(ranges, RangeMap) else ranges[1] - ranges[0]
            yield FileCharge(file, _first_account(ranges).page_size, pages)

    def largest(self, count: int) -> list[FileCharge]:
        """The ``count`` files with most bytes charged, largest first; of equals by key.

        Looks at every file, and keeps no more than ``count``.
        """
        return heapq.nsmallest(count, self.files(), key=lambda each: (-each.bytes, each.file))

    def rows(self) -> Iterator[Row[Owner]]:
        """Every range of every file: what :meth:`from_rows` makes the same list of."""
        for file in self._files:
            yield from self.rows_of(file)

    def rows_of(self, file: FileKey) -> Iterator[Row[Owner]]:
        """Every range of ``file``, in order; none when nothing of it is charged."""
        for first, last, account in self._each(file):
            yield Row(file, account.page_size, first, last, account.owner)

    def __contains__(self, file: FileKey) -> bool:
        """Whether anything of ``file`` is charged."""
        return file in self._files

    def __len__(self) -> int:
        """How many files there are of which something is charged."""
        return len(self._files)

    # How it is kept

    def _each(self, file: FileKey) -> Iterable[_Range[Owner]]:
        ranges = self._files.get(file, ())
        return ranges if isinstance(ranges, RangeMap) else (ranges,) if ranges else ()

    def _ranges(self, file: FileKey) -> RangeMap[_Account[Owner]] | None:
        """The ranges of ``file`` as a map; a copy, if it has only one."""
        ranges = self._files.get(file)
        return RangeMap((ranges,)) if isinstance(ranges, tuple) else ranges

    def _page_size(self, file: FileKey) -> PageSize | None:
        ranges = self._files.get(file)
        return None if ranges is None else _first_account(ranges).page_size

    def _account(self, owner: Owner, size: PageSize) -> _Account[Owner]:
        """The account of ``owner``; a new one is not in the list before it has pages."""
        account = self._accounts.get(owner, {}).get(size)
        return account or _Account(owner, size)

    def _held_account(self, file: FileKey, owner: Owner | None) -> _Account[Owner] | None:
        """The account to which pages of ``file`` are charged to ``owner``."""
        if owner is not None:
            for account in self._accounts.get(owner, {}).values():
                if file in account.files:
                    return account
        return None

    def _rewrite(
        self,
        file: FileKey,
        first: int,
        last: int,
        heir: Callable[[_Account[Owner] | None], _Account[Owner] | None],
    ) -> dict[_Account[Owner] | None, int]:
        """:meth:`RangeMap.rewrite` on a file; its pages are not booked yet."""
        ranges = self._ranges(file)
        if ranges is None or first == last:
            return {}
        given = ranges.rewrite(first, last, heir)
        if given:
            self._store(file, ranges)
        return given

    def _store(self, file: FileKey, ranges: RangeMap[_Account[Owner]]) -> None:
        if ranges.pages:
            self._files[file] = _compact(ranges)
        else:
            del self._files[file]

    def _book(self, file: FileKey, pages: Mapping[_Account[Owner], int]) -> Change[Owner]:
        """Bring the totals up to what was done to the ranges of ``file``."""
        changed = {account: count for account, count in pages.items() if count}
        page_size = None
        for account, count in changed.items():
            account.add(file, count)
            if account.pages in (0, count):
                self._keep(account)
            page_size = account.page_size
        return Change(file, page_size, {account.owner: count for account, count in changed.items()})

    def _keep(self, account: _Account[Owner]) -> None:
        """Have ``account`` in the list if it has pages, and not if it has none."""
        accounts = self._accounts.setdefault(account.owner, {})
        if account.pages:
            accounts[account.page_size] = account
        else:
            accounts.pop(account.page_size, None)
            if not accounts:
                del self._accounts[account.owner]

    def _inherit(self, owners: Mapping[_Account[Owner], Owner]) -> Moved[Owner]:
        """Charge to its new owner what is charged to each account."""
        # All that can fail comes first and makes copies; then the copies take effect.
        heirs: dict[_Account[Owner], _Account[Owner]] = {}
        opened: dict[tuple[Owner, PageSize], _Account[Owner]] = {}
        for account, owner in owners.items():
            heir = self._account(owner, account.page_size)
            heirs[account] = opened.setdefault((owner, account.page_size), heir)
        charges = {account.owner: self.charge_of(account.owner) for account in heirs}
        inherited = {
            file: _compact(
                RangeMap(
                    (first, last, heirs.get(held, held)) for first, last, held in self._each(file)
                )
            )
            for file in dict.fromkeys(file for account in heirs for file in account.files)
        }
        gone = [(account, account.files) for account in heirs]

        self._files.update(inherited)
        for account, _ in gone:
            account.pages, account.files = 0, {}
        for account, files in gone:
            for file, pages in files.items():
                heirs[account].add(file, pages)
        for account in (*heirs, *heirs.values()):
            self._keep(account)
        return Moved(tuple(inherited), charges)

    def _restore(self, file: FileKey, rows: Iterable[Row[Owner]]) -> None:
        """Take up the rows of a file; a file that is in the list already came in two parts."""
        accounts: dict[Owner, _Account[Owner]] = {}
        pages: dict[_Account[Owner], int] = {}

        def verified() -> Iterator[_Range[Owner]]:
            end, size = 0, None
            for row in rows:
                _, size_of_row, first, last, owner = row
                size = size or size_of_row
                if file in self or size_of_row != size or not end <= first < last <= LAST_PAGE:
                    raise DamagedRows(row)
                if owner not in accounts:
                    accounts[owner] = self._account(owner, size)
                account, end = accounts[owner], last
                pages[account] = pages.get(account, 0) + last - first
                yield first, last, account

        self._files[file] = _compact(RangeMap(verified()))
        self._book(file, pages)


def _compact(ranges: RangeMap[_Account[Owner]]) -> _Range[Owner] | RangeMap[_Account[Owner]]:
    return ranges.sole or ranges


def _first_account(
    ranges: _Range[Owner] | RangeMap[_Account[Owner]],
) -> _Account[Owner]:
    return ranges.first_holder if isinstance(ranges, RangeMap) else ranges[2]


def _checked(pages: PageRange) -> PageRange:
    first, last = pages
    if not 0 <= first <= last <= LAST_PAGE:
        raise MalformedRange(first, last)
    return pages


def _without(
    account: _Account[Owner] | None,
) -> Callable[[_Account[Owner] | None], _Account[Owner] | None]:
    """Who holds a page that ``account`` gave up; anybody, if it is None."""
    return lambda held: None if account is None or held is account else held


def _released(given: Mapping[_Account[Owner] | None, int]) -> dict[_Account[Owner], int]:
    """What holders gave up, to be booked."""
    return {account: -pages for account, pages in given.items() if account is not None}
