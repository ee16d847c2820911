"""Gives back what gone pods left in files, where their quotas ask for it.

The books say which files are due; whether anybody still holds one, the kernel says in the
moment in which it is emptied (node/reclaim.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hugetlb_quota.accounting.charge_list import FileKey
from hugetlb_quota.accounting.reclaim import GoneOwner, is_due
from hugetlb_quota.agent.file_book import ChargedFile
from hugetlb_quota.agent.governance import Governance
from hugetlb_quota.agent.ledger import Ledger
from hugetlb_quota.agent.track_files import FileTracker
from hugetlb_quota.node.reclaim import AnotherFile, NotReclaimed, StillHeld, reclaim

#: Between two looks for files that are due, in seconds.
PERIOD: Final = 5.0

#: Tells of a file that was reclaimed: the quotas that were charged, and the sentence.
Tell = Callable[[tuple[str, ...], str], Awaitable[None]]

logger = logging.getLogger(__name__)


class Reclaimer:
    """Looks for files that are due, and reclaims those that nobody holds.

    :param node: the name of this node, for the sentences.
    """

    def __init__(
        self, node: str, governance: Governance, ledger: Ledger, files: FileTracker, tell: Tell
    ) -> None:
        self._node = node
        self._governance = governance
        self._ledger = ledger
        self._files = files
        self._tell = tell
        self._failed: dict[FileKey, str] = {}

    @property
    def failures(self) -> tuple[str, ...]:
        """Which files could not be reclaimed, a sentence each."""
        return tuple(sorted(self._failed.values()))

    async def run(self) -> None:
        """Reclaim what is due, for ever."""
        await self._files.looked.wait()
        while True:
            await asyncio.sleep(PERIOD)
            await self.reclaim_due(datetime.now(UTC))

    async def reclaim_due(self, now: datetime) -> None:
        """Reclaim every file that is due ``now`` and that nobody holds."""
        waits = self._governance.reclaim_waits()
        if not waits:
            return
        gone = {
            account.uid: GoneOwner(account.quotas, account.since) for account in self._ledger.gone
        }
        asked = [uid for uid, owner in gone.items() if waits.keys() & set(owner.quotas)]
        due: dict[FileKey, ChargedFile] = {
            charged.file: charged
            for uid in asked
            for charged in self._files.book.files_of(uid)
            if is_due([gone.get(owner) for owner in charged.owners], waits, now)
        }
        self._failed = {file: why for file, why in self._failed.items() if file in due}
        for charged in due.values():
            quotas = {quota for owner in charged.owners for quota in gone[owner].quotas}
            await self._reclaim(charged, tuple(sorted(quotas)))

    async def _reclaim(self, charged: ChargedFile, quotas: tuple[str, ...]) -> None:
        told = f"{charged.superblock.point.rstrip('/')}/{charged.path} on node {self._node}"
        path: Path = charged.superblock.path / charged.path
        try:
            # In a thread: giving back many pages takes its time.
            await asyncio.to_thread(reclaim, path, charged.file.device, charged.file.inode)
        except (StillHeld, AnotherFile):
            return  # held, or gone: the next look tells
        except NotReclaimed as error:
            why = (
                f"{told} can't be reclaimed: {error} Install the chart with agent.reclaim=true,"
                " which gives the agent the rights to, or remove the file."
            )
            if self._failed.get(charged.file) != why:
                self._failed[charged.file] = why
                logger.warning("%s", why)
            return
        logger.info("%s was reclaimed.", told)
        await self._tell(
            quotas,
            f"{told} was truncated and removed: its pods are gone and no process held it.",
        )
