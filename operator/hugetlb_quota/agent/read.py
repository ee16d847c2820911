"""Reads the host: first which cgroups of pods are there, then what is charged to whom."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent import totals
from hugetlb_quota.agent.reading import SYSTEM, ChargedFile, MountUse, Reading
from hugetlb_quota.agent.totals import Totals
from hugetlb_quota.node import cgroup, hugetlbfs, kubepods
from hugetlb_quota.node.cgroup import CgroupError
from hugetlb_quota.node.charge_list import ChargeList, File
from hugetlb_quota.node.charge_reader import (
    ChargeListUnreadable,
    ChargeReader,
    ReaderPauses,
)
from hugetlb_quota.node.host import HostRoot, HostUnreadable
from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.node.pools import Pool, pools
from hugetlb_quota.page_size import PageSize

#: Reads of the charge list for one that is at rest; the last is taken whatever it is.
READS: Final = 3
#: Between two of them, in seconds.
AGAIN: Final = 0.05
#: Before a reader that failed is asked once more, in seconds: it was killed, or is slow once.
AFTER_FAILURE: Final = 0.3

logger = logging.getLogger(__name__)


class HostReader:
    """Reads the host.

    :param parents: where kubepods is, as :class:`kubepods.Parents` tells.
    :param reader: None: by the cgroups' counters alone, as :mod:`totals` tells.
    """

    def __init__(
        self,
        host: HostRoot,
        cgroup2: Path,
        parents: Iterable[Path],
        sizes: tuple[PageSize, ...],
        reader: ChargeReader | None,
    ) -> None:
        self._host = host
        self._cgroup2 = cgroup2
        self._parents = parents
        self._sizes = sizes
        self._reader = reader
        self._unreadable = ""

    async def read(self, largest: int | None) -> Reading:
        """What there is now, with so many of the largest files; None: with all.

        :raises HostUnreadable: when the cgroups can't be seen; that they are gone must
            not be concluded from it.
        :raises OSError: the same.
        """
        self._check()
        # What reads many files does in a thread: limits wait for nothing.
        there = await asyncio.to_thread(self._there)
        listed = await self._charge_list(largest)
        mounts, seen, ceiling = await asyncio.to_thread(self._around)
        if listed is None:
            counted = await asyncio.to_thread(totals.look, self._parents, self._sizes)
            return Reading(
                there=there,
                charged=counted.pods,
                bound=counted.bound,
                mounts=tuple(_counted(mounts)),
                pools=seen,
                ceiling=ceiling,
                unreadable=self._unreadable,
            )
        charges, counted_before = listed
        parents = frozenset(self._ids())
        amounts = {uid: _bytes(pages) for uid, pages in charges.pods(parents).items()}
        charged = {uid: charge for uid, charge in amounts.items() if uid is not None}
        if not charged.keys() <= there.keys():
            # Made after the first look, and filled at once.
            now = await asyncio.to_thread(self._there)
            there |= {uid: is_ for uid, is_ in now.items() if uid in charged}
        whole = charges.at_rest or self._adds_up(charges)
        missing = Charge()
        if not whole and counted_before is not None:
            missing = _missing(counted_before, charged, there)
        if not charges.at_rest:
            charged |= await asyncio.to_thread(self._at_least, charged)
        return Reading(
            there=there,
            charged=charged,
            whole=whole,
            missing=missing,
            system=amounts.get(None, Charge()),
            unlisted=Charge() if charges.at_rest else _bytes(charges.unlisted),
            files=tuple(_files(charges, parents, mounts)),
            mounts=tuple(
                MountUse(each, charges.held.get(device, 0) * each.size.bytes)
                for device, each in mounts.items()
            ),
            pools=seen,
            ceiling=ceiling,
        )

    async def close(self) -> None:
        """End the reader's process."""
        if self._reader is not None:
            await self._reader.close()

    def _check(self) -> None:
        root = self._cgroup2 / "cgroup.controllers"
        try:
            root.read_text()
        except OSError as error:
            raise HostUnreadable(self._host.path, root, error) from error

    def _around(self) -> tuple[dict[int, Superblock], tuple[Pool, ...], Charge]:
        """Hugetlbfs by device, the pools, and what kubepods itself is limited to."""
        mounts = {each.device: each for each in hugetlbfs.superblocks(self._host)}
        return mounts, pools(self._host), self._ceiling()

    def _there(self) -> dict[str, bool]:
        """Whose cgroup is there, and whether a process is in it."""
        there: dict[str, bool] = {}
        for pod in kubepods.pods(self._parents):
            try:
                populated = cgroup.is_populated(pod.path)
            except CgroupError:
                populated = True  # it can't be told
            # One UID may be at two QoS levels.
            there[pod.uid] = populated or there.get(pod.uid, False)
        return there

    async def _charge_list(self, largest: int | None) -> tuple[ChargeList, Totals | None] | None:
        """The charge list; None when there is none, and then ``_unreadable`` says why.

        With what was counted right before it was read; None when the first was at rest.
        """
        if self._reader is None:
            self._unreadable = "The agent was started with --charge-list=totals."
            return None
        try:
            try:
                charges = await self._reader.read(largest)
            except ReaderPauses:
                raise  # it failed before, and asking again would only delay the totals
            except ChargeListUnreadable:
                await asyncio.sleep(AFTER_FAILURE)
                charges = await self._reader.read(largest)
            counted: Totals | None = None
            for _ in range(READS - 1):
                # With mappings left out it never is at rest.
                if charges.at_rest or (charges.mappings_left_out and counted is not None):
                    break
                await asyncio.sleep(AGAIN)
                counted = await asyncio.to_thread(totals.look, self._parents, self._sizes)
                charges = await self._reader.read(largest)
        except ReaderPauses as error:
            # Without the seconds: a report that differs in them alone would be written anew.
            self._unreadable = error.why
            return None
        except ChargeListUnreadable as error:
            self._unreadable = str(error)
            return None
        self._unreadable = ""
        return charges, counted

    def _ids(self) -> Iterator[int]:
        """The IDs of the cgroups that kubepods may be in."""
        for parent in self._parents:
            try:
                yield parent.stat().st_ino
            except OSError:
                continue  # not there

    def _at_least(self, charged: Mapping[str, Charge]) -> dict[str, Charge]:
        """What cgroups that are there count now, where a list was not at rest."""
        more: dict[str, Charge] = {}
        for pod in kubepods.pods(self._parents):
            counted: dict[PageSize, int] = {}
            for size in self._sizes:
                try:
                    counted[size] = cgroup.read_use(pod.path, size).reserved
                except CgroupError:
                    continue
            peak = charged.get(pod.uid, Charge()).peak(Charge(counted)).without_zeros()
            if peak:
                more[pod.uid] = peak
        return more

    def _adds_up(self, charges: ChargeList) -> bool:
        """Whether all of kubepods is listed, though others moved."""
        for root in kubepods.roots(self._parents):
            known = charges.cgroups.get(root.stat().st_ino)
            if known is not None and charges.below(known.id) != dict(known.reserved):
                return False
        return True

    def _ceiling(self) -> Charge:
        """What kubepods itself is limited to; of a size without a limit, nothing."""
        limits: dict[PageSize, list[int | None]] = defaultdict(list)
        for root in kubepods.roots(self._parents):
            for size in self._sizes:
                try:
                    found = [cgroup.read_limit(root, size, name) for name in ("rsvd.max", "max")]
                except CgroupError:
                    continue
                limits[size].append(min((each for each in found if each is not None), default=None))
        return Charge(
            {
                size: sum(each for each in found if each is not None)
                for size, found in limits.items()
                if None not in found
            }
        )


def _missing(counted: Totals, listed: Mapping[str, Charge], there: Mapping[str, bool]) -> Charge:
    """At most so much is charged to pods that are gone, beyond what is ``listed`` of them.

    A pod that is gone is charged nothing new, so what all of them were counted bounds what
    they hold, when it was ``counted`` before the list was read and after it was seen who is
    ``there``.
    """
    gone = (
        charge for uid, charge in listed.items() if uid not in there and uid not in counted.pods
    )
    return counted.bound.beyond(Charge.total(gone)).without_zeros()


def _bytes(pages: Mapping[PageSize, int]) -> Charge:
    return Charge({size: max(0, count) * size.bytes for size, count in pages.items()})


def _counted(mounts: Mapping[int, Superblock]) -> Iterator[MountUse]:
    for each in mounts.values():
        held = hugetlbfs.used(each)
        if held is not None:
            yield MountUse(each, held)


def _files(
    charges: ChargeList, parents: frozenset[int], mounts: Mapping[int, Superblock]
) -> Iterator[ChargedFile]:
    """The listed files that pages are charged for."""
    owners: dict[int, str] = {
        id_: each.pod(parents) or SYSTEM for id_, each in charges.cgroups.items()
    }
    for file in charges.files:
        pages = Counter[str]()
        for region in file.regions:
            pages[owners[region.cgroup.id]] += region.end - region.start
        for owner, count in file.unreserved:
            pages[owners[owner.id]] += count
        if pages:
            yield _file(file, pages, mounts)


def _file(file: File, pages: Mapping[str, int], mounts: Mapping[int, Superblock]) -> ChargedFile:
    size = file.superblock.page_size
    return ChargedFile(
        path=file.path.lstrip("/"),
        mount=None if file.superblock.internal else mounts.get(file.superblock.device),
        page_size=size,
        device=file.superblock.device,
        inode=file.inode,
        charged={owner: count * size.bytes for owner, count in pages.items()},
        # The kernel's own have names in no directory.
        linked=file.linked or file.superblock.internal,
    )
