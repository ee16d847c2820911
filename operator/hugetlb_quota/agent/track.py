"""The tracker: from what the kernel shows of pods' cgroups to what their ends leave charged.

A pod's end is settled in one look at everything, from which the report is made too: the
report in which a pod is missing is the one that has what it left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.agent.ledger import Known, Ledger
from hugetlb_quota.agent.track_files import FileTracker
from hugetlb_quota.node import cgroup, kubepods, remainder
from hugetlb_quota.node.cgroup import CgroupError, Use
from hugetlb_quota.node.kubepods import PodCgroup
from hugetlb_quota.node.mappings import processes
from hugetlb_quota.node.remainder import Moment
from hugetlb_quota.page_size import PageSize

#: How long a look waits at most for files that changed, in seconds.
CATCH_UP: Final = 0.5
#: How often a pod's mappings are read while it has the same beyond what is in files.
_MAPS_READ: Final = 3


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look showed, by the UID in the names of pods' cgroups.

    ``in_use``: of those that are there, the larger of what is reserved and faulted.
    ``unsettled``: those that are gone, while it can't be told just now what they left.
    """

    in_use: Mapping[str, Charge]
    unsettled: frozenset[str]


class Tracker:
    """Keeps ``ledger`` in step with the kernel.

    :param parents: where kubepods is, as :func:`kubepods.parents` gives it.
    :param files: whose pages are in which file; None: not known.
    """

    def __init__(
        self,
        parents: Iterable[Path],
        sizes: Iterable[PageSize],
        ledger: Ledger,
        files: FileTracker | None = None,
    ) -> None:
        self.files = files
        self._parents = tuple(parents)
        self._sizes = tuple(sizes)
        self.ledger = ledger
        #: The look at all files that is to tell who gave back what the kernel counts no more.
        self._look: int | None = None
        self._reads: dict[str, tuple[Charge, Charge, int]] = {}

    @property
    def difference(self) -> Charge:
        """By how much the list of charged files and the kernel differ.

        What gone pods left and no file shows, as a System V segment, and what is charged in
        files and, as far as is known, to nobody.
        """
        if self.files is None:
            return NOTHING
        book = self.files.book
        gone = self.ledger.gone
        return Charge.total(
            [
                *(each.charge.beyond(book.charge_of(each.uid)) for each in gone),
                *(book.charge_of(each.uid).beyond(each.charge) for each in gone),
                book.orphaned,
            ]
        )

    async def catch_up(self) -> None:
        """Take in what happened to files; soon enough for a report to wait for it."""
        if self.files is not None:
            await self.files.caught_up(CATCH_UP)

    def populated(self, pod: PodCgroup) -> None:
        """Processes came to ``pod`` or left it; with none in it, what it holds is what it leaves.

        To be told at once: kubelet removes the cgroup soon.
        """
        try:
            self._see(pod)
        except CgroupError:
            return
        self.ledger.save()  # not the files too: the next cgroup may be about to go

    def govern(self, known: Mapping[str, Known]) -> None:
        """Other quotas may govern these pods from now on; to be told at once.

        What a pod does next is charged to those: so what it maps is looked at before.

        :raises OSError: when the cgroups can't be seen; then the next :meth:`look` does it.
        """
        moved = self.ledger.governed_anew(known)
        if self.files is None or not moved:
            return
        for pod in kubepods.pods(self._parents):
            if pod.uid in moved:
                with suppress(CgroupError):
                    if self._see(pod).beyond(self._in_files(self.files, pod)):
                        _read_all(self.files, pod)
        self.ledger.govern(known, self.files.book)
        self._save()

    def look(self, known: Mapping[str, Known]) -> Sight:
        """Look at all pods, and settle the ends of those that are gone.

        :param known: what the API tells of each pod, by the UID in its cgroup's name.
        :raises OSError: when the cgroups can't be seen.
        """
        moment = remainder.look(self._parents, self._sizes)
        for uid, use in moment.uses.items():
            self.ledger.seen(uid, _reserved(use), empty=uid in moment.empty)
        if self.files is not None:
            self._read_maps(self.files, moment)
        self.govern(known)
        unsettled = frozenset[str]()
        if moment.steady:
            self._settle(moment, known)
        else:
            book = self.files.book if self.files is not None else None
            self.ledger.end_certain(moment.uses.keys(), known, book)
            unsettled = frozenset(
                uid for uid in known if uid not in moment.uses and not self.ledger.is_settled(uid)
            )
        self._save()
        return Sight(
            {uid: _most(use) for uid, use in moment.uses.items()},
            unsettled,
        )

    def _settle(self, moment: Moment, known: Mapping[str, Known]) -> None:
        present = moment.uses.keys()
        if self.files is None:
            self.ledger.settle(present, known, moment.left)
            return
        book = self.files.book
        # What was given back is told by files, if need be after a look at all of them.
        patient = self._look is None or not self.files.is_looked(self._look)
        self.ledger.settle(present, known, moment.left, book, patient=patient)
        if not self.ledger.unexplained:
            self._look = None
        elif self._look is None:
            self._look = self.files.want_look()
        book.reconcile(
            left={account.uid: account.charge for account in self.ledger.gone},
            live=self.ledger.by_life({uid: _reserved(use) for uid, use in moment.uses.items()}),
        )
        self.ledger.note_files(book)

    def _save(self) -> None:
        if self.files is None:
            self.ledger.save()
        elif self.ledger.save(self.files.book.changes()):
            self.files.book.saved()

    def _see(self, pod: PodCgroup) -> Charge:
        """Tell the ledger what ``pod`` has reserved now."""
        # In this order: none can enter any more when kubelet has killed them all.
        populated = cgroup.is_populated(pod.path)
        reserved = _reserved({size: cgroup.read_use(pod.path, size) for size in self._sizes})
        self.ledger.seen(pod.uid, reserved, empty=not populated)
        return reserved

    def _in_files(self, files: FileTracker, pod: PodCgroup) -> Charge:
        return Charge.total(map(files.book.charge_of, self.ledger.lives(pod.uid)))

    def _read_maps(self, files: FileTracker, moment: Moment) -> None:
        """Look for what pods have reserved and no file shows: mmap raises no event."""
        reads: dict[str, tuple[Charge, Charge, int]] = {}
        for pod in moment.pods:
            reserved = _reserved(moment.uses.get(pod.uid, {}))
            shown = self._in_files(files, pod)
            if not reserved.beyond(shown):
                continue
            *before, times = self._reads.get(pod.uid, (NOTHING, NOTHING, 0))
            times = times + 1 if before == [reserved, shown] else 1
            # What is charged may be mapped a moment later only; then it shows nothing new.
            if times <= _MAPS_READ:
                _read_all(files, pod)
            reads[pod.uid] = (reserved, shown, times)
        self._reads = reads


def _read_all(files: FileTracker, pod: PodCgroup) -> None:
    for pid in processes(pod.path):
        files.read_maps(pid, pod.uid)


def _reserved(use: Mapping[PageSize, Use]) -> Charge:
    return Charge({size: amounts.reserved for size, amounts in use.items()})


def _most(use: Mapping[PageSize, Use]) -> Charge:
    return Charge({size: amounts.most for size, amounts in use.items()}).without_zeros()
