"""Reads the host for a pass: first the cgroups of pods, then the charges."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
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

#: The most reads of the charge list until a list is at rest. The last list is taken in any case.
READS: Final = 3
#: The pause between two of these reads, in seconds.
AGAIN: Final = 0.05
#: The pause before the one new attempt after a failure of the reader, in seconds.
AFTER_FAILURE: Final = 0.3

logger = logging.getLogger(__name__)


class HostReader:
    """Reads the host.

    :param parents: the directories that may hold kubepods; see :class:`kubepods.Parents`.
    :param reader: the reader of the charge list; None to use only the cgroups' counters, see
        :mod:`totals`.
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
        """Read the host as it is now.

        :param largest: the number of files to return, the largest first; None for all files.
        :raises HostUnreadable: the cgroups can't be seen. This does not mean that they are gone.
        :raises OSError: the same.
        """
        self._check()
        # Reads of many files run in a thread, so that the enforcer does not wait.
        populated = await asyncio.to_thread(self._populated)
        listed = await self._charge_list(largest)
        mounts, host_pools, ceiling = await asyncio.to_thread(self._surroundings)
        if listed is None:
            counted = await asyncio.to_thread(totals.count, self._parents, self._sizes)
            return Reading(
                populated=populated,
                charged=counted.pods,
                bound=counted.bound,
                mounts=tuple(_limited(mounts)),
                pools=host_pools,
                ceiling=ceiling,
                unreadable=self._unreadable,
            )
        charges, counted_before = listed
        parents = frozenset(self._ids())
        amounts = {uid: _bytes(pages) for uid, pages in charges.pods(parents).items()}
        charged = {uid: charge for uid, charge in amounts.items() if uid is not None}
        if not charged.keys() <= populated.keys():
            # A cgroup may have been created after the first look, and charged at once.
            now = await asyncio.to_thread(self._populated)
            populated |= {uid: inside for uid, inside in now.items() if uid in charged}
        whole = charges.at_rest or self._adds_up(charges)
        missing = Charge()
        if not whole and counted_before is not None:
            missing = _missing(counted_before, charged, populated)
        if not charges.at_rest:
            charged |= await asyncio.to_thread(self._at_least, charged)
        return Reading(
            populated=populated,
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
            pools=host_pools,
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

    def _surroundings(self) -> tuple[dict[int, Superblock], tuple[Pool, ...], Charge]:
        """Return the hugetlbfs mounts by device, the pools, and the limits of kubepods itself."""
        mounts = {each.device: each for each in hugetlbfs.superblocks(self._host)}
        return mounts, pools(self._host), self._ceiling()

    def _populated(self) -> dict[str, bool]:
        """Return the UID of each pod that has a cgroup, with True if a process is in the cgroup."""
        populated: dict[str, bool] = {}
        for pod in kubepods.pods(self._parents):
            try:
                inside = cgroup.is_populated(pod.path)
            except CgroupError:
                inside = True  # the file can't be read: assume a process
            # One UID may have cgroups at two QoS levels.
            populated[pod.uid] = inside or populated.get(pod.uid, False)
        return populated

    async def _charge_list(self, largest: int | None) -> tuple[ChargeList, Totals | None] | None:
        """Return the charge list and the counters read right before; None if there is no list.

        If there is no list, ``_unreadable`` says why. If the first list is at rest, no counters
        are read: the second value is None.
        """
        if self._reader is None:
            self._unreadable = "The agent was started with --charge-list=totals."
            return None
        try:
            try:
                charges = await self._reader.read(largest)
            except ReaderPauses:
                raise  # another attempt would only delay the totals
            except ChargeListUnreadable:
                await asyncio.sleep(AFTER_FAILURE)
                charges = await self._reader.read(largest)
            counted: Totals | None = None
            for _ in range(READS - 1):
                # A list with mappings left out is never at rest.
                if charges.at_rest or (charges.mappings_left_out and counted is not None):
                    break
                await asyncio.sleep(AGAIN)
                counted = await asyncio.to_thread(totals.count, self._parents, self._sizes)
                charges = await self._reader.read(largest)
        except ReaderPauses as error:
            # Not str(error), which has the seconds: each change would cause a new report.
            self._unreadable = error.why
            return None
        except ChargeListUnreadable as error:
            self._unreadable = str(error)
            return None
        self._unreadable = ""
        return charges, counted

    def _ids(self) -> Iterator[int]:
        """Yield the IDs of the cgroups that may hold kubepods."""
        for parent in self._parents:
            try:
                yield parent.stat().st_ino
            except OSError:
                continue  # does not exist

    def _at_least(self, charged: Mapping[str, Charge]) -> dict[str, Charge]:
        """Return the larger of listed charge and counter, for each pod that has a cgroup.

        Used if the list was not at rest.
        """
        more: dict[str, Charge] = {}
        for pod in kubepods.pods(self._parents):
            counted = totals.reserved(pod.path, self._sizes)
            peak = charged.get(pod.uid, Charge()).peak(counted).without_zeros()
            if peak:
                more[pod.uid] = peak
        return more

    def _adds_up(self, charges: ChargeList) -> bool:
        """Return True if the list has all charges of kubepods, even if others changed."""
        for root in kubepods.roots(self._parents):
            listed = charges.cgroups.get(root.stat().st_ino)
            if listed is not None and charges.below(listed.id) != dict(listed.reserved):
                return False
        return True

    def _ceiling(self) -> Charge:
        """Return the limits of kubepods itself. A size without a limit is not in the result."""
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


def _missing(counted: Totals, listed: Mapping[str, Charge], populated: Container[str]) -> Charge:
    """Return the most that all gone pods together hold beyond what the list has of them.

    The kernel charges nothing new to a gone pod. The counters were read after the cgroups in
    ``populated`` and before the list. So ``counted.bound`` bounds what all gone pods hold.
    """
    gone = (
        charge for uid, charge in listed.items() if uid not in populated and uid not in counted.pods
    )
    return counted.bound.beyond(Charge.total(gone)).without_zeros()


def _bytes(pages: Mapping[PageSize, int]) -> Charge:
    return Charge({size: max(0, count) * size.bytes for size, count in pages.items()})


def _limited(mounts: Mapping[int, Superblock]) -> Iterator[MountUse]:
    """Yield the mounts with a ``size=``; only these are counted without the charge list."""
    for each in mounts.values():
        held = hugetlbfs.used(each)
        if held is not None:
            yield MountUse(each, held)


def _files(
    charges: ChargeList, parents: frozenset[int], mounts: Mapping[int, Superblock]
) -> Iterator[ChargedFile]:
    """Yield the files of the list with charged pages."""
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
        # Files of the kernel's internal mounts are in no directory.
        linked=file.linked or file.superblock.internal,
    )
