"""What there is on this node at one moment, as HugeTLBNode tells of it.

A pod may be missing only when its end was seen first, its cgroup was seen gone after that,
and what it left is in ``retained`` of the same snapshot: the controller releases its charge
on that evidence (accounting/release.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.lives import charged_beside, pod_of
from hugetlb_quota.accounting.recount import Unreported
from hugetlb_quota.accounting.volume import volume_of
from hugetlb_quota.agent.file_book import SYSTEM, FileBook, FileShare
from hugetlb_quota.agent.governance import Governance
from hugetlb_quota.agent.ledger import Known
from hugetlb_quota.agent.memory import Account, State
from hugetlb_quota.agent.track import Sight, Tracker
from hugetlb_quota.api.node import FileStatus, MountStatus
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.node.host import HostRoot, HostUnreadable
from hugetlb_quota.node.hugetlbfs import Superblock, used
from hugetlb_quota.node.pools import Pool, pools

Json = dict[str, Any]

#: Mounts in a report: an object's size has a limit.
_MOUNTS: Final = 64
_LONGEST_PATH: Final = 256
#: Rows of what is in no file.
_IN_NO_FILE: Final = 16


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was seen at one moment.

    ``pods_since``, ``pods_resource_version``: from where to where the pods are known without
    a gap. ``ends``: how many ends of pods were seen by then. ``settled``: UIDs of pods that
    quotas tell as unreported and of which all is in ``retained``: what is charged for those
    that are not in ``pods`` any more. ``files``: the largest. ``system``: what the
    host's own processes hold in files. ``problems``: what keeps the node from being
    Ready, a sentence each; ``notes``: what is told where nothing does; ``doubts``: why what
    is retained may not be right in every part.
    """

    pods_since: int
    pods_resource_version: int
    ends: int
    pods: tuple[Json, ...]
    pools: tuple[Pool, ...]
    settled: tuple[str, ...] = ()
    retained: tuple[Json, ...] = ()
    files: tuple[Json, ...] = ()
    mounts: tuple[Json, ...] = ()
    system: Charge = NOTHING
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


class Observer:
    """Takes snapshots.

    :param seen_since: the resourceVersion from which on ``governance`` knows them without a gap.
    :param seen_up_to: the resourceVersion up to which ``governance`` knows the pods.
    """

    def __init__(
        self,
        host: HostRoot,
        cgroup2: Path,
        tracker: Tracker,
        governance: Governance,
        *,
        seen_since: Callable[[], int],
        seen_up_to: Callable[[], int],
        problems: Callable[[], tuple[str, ...]] = lambda: (),
        notes: Callable[[], tuple[str, ...]] = lambda: (),
    ) -> None:
        self._host = host
        self._cgroup2 = cgroup2
        self._tracker = tracker
        self._governance = governance
        self._seen_since = seen_since
        self._seen_up_to = seen_up_to
        self._problems = problems
        self._notes = notes
        self._latest = 0
        self._carried: dict[str, Json] = {}

    def carry_over(self, last: Mapping[str, Any] | None) -> None:
        """Go on from the ``status`` of this node's last report, before the first snapshot.

        Pods may have been deleted while no agent ran; what their cgroups still hold is
        known from there alone. After a boot nothing of it is left.
        """
        last = last or {}
        if last.get("bootID") == self._host.boot_id():
            self._carried = {entry["uid"]: dict(entry) for entry in last.get("pods") or ()}
            self._tracker.ledger.adopt(last)

    async def catch_up(self) -> None:
        """Let what happened be taken in before the next :meth:`snapshot`."""
        await self._tracker.catch_up()

    def snapshot(self) -> Snapshot:
        """What there is now.

        :raises HostUnreadable: when the cgroups can't be seen; that they are gone must
            not be concluded from it.
        :raises OSError: the same.
        """
        # The order matters: first what the API has told, then the cgroups. Kubelet makes
        # no cgroup for a pod that has ended, so one whose end is in the first and whose
        # cgroup is not in the second is gone for good. The other way round, a cgroup made
        # after the one look and a pod ended before the other would let a pod vanish that
        # still runs.
        # While a list is under way the informer has no position: what is known is still
        # what it was at the last.
        self._latest = max(self._latest, self._seen_up_to())
        since = self._seen_since()
        ends = self._governance.ends
        pods, deleted = tuple(self._governance.pods()), tuple(self._governance.deleted())
        missed = self._governance.unreported()
        known = {each.cgroup: _missed(each) for each in missed}
        known |= {
            uid: _carried(entry, self._tracker.ledger.account(uid))
            for uid, entry in self._carried.items()
            if entry["quotas"] and not self._governance.knows(uid)
        }
        known |= self._governance.known()
        self._check_cgroup2()
        self._tracker.ledger.reparent(self._governance.heirs())
        # What the pods left that are gone is settled in this look, so that it is in the very
        # report in which they are missing.
        sight = self._tracker.look(known)
        there = sight.in_use.keys() | sight.unsettled
        entries = {
            uid: _entry(each.uid, known[uid], sight.in_use.get(uid, NOTHING))
            for each in missed
            if (uid := each.cgroup) in there
        }
        entries |= self._carried_entries(sight)
        entries |= {
            pod.cgroup_uid: entry
            for pod in (*deleted, *pods)
            if not known[uid := pod.cgroup_uid].over or uid in there
            if (entry := self._entry(pod, known[uid], sight)) is not None
        }
        for pod in deleted:
            if pod.cgroup_uid not in there:
                self._governance.forget(pod.uid)
        entries |= self._nameless_entries(sight, known.keys() | self._carried.keys())
        return Snapshot(
            pods_since=since,
            pods_resource_version=self._latest,
            ends=ends,
            pods=tuple(
                sorted(entries.values(), key=lambda e: (e["namespace"], e["name"], e["uid"]))
            ),
            pools=pools(self._host),
            settled=self._settled(missed, known, entries),
            retained=self._retained(entries, sight),
            files=self._files(entries, sight),
            mounts=self._mounts(),
            system=files.book.charge_of(SYSTEM) if (files := self._tracker.files) else NOTHING,
            problems=self._problems(),
            notes=self._notes(),
            doubts=(*self._tracker.ledger.problems, *(files.problems if files else ())),
        )

    def _check_cgroup2(self) -> None:
        root = self._cgroup2 / "cgroup.controllers"
        try:
            root.read_text()
        except OSError as error:
            raise HostUnreadable(self._host.path, root, error) from error

    def _entry(self, pod: Pod, known: Known, sight: Sight) -> Json | None:
        """What is reported of a pod; None: it is not governed, or has no huge pages."""
        in_use = sight.in_use.get(pod.cgroup_uid, NOTHING)
        if not known.quotas or not (pod.demand or in_use):
            return None
        return _entry(pod.uid, known, in_use)

    def _settled(
        self,
        missed: Iterable[Unreported],
        known: Mapping[str, Known],
        entries: Mapping[str, Json],
    ) -> tuple[str, ...]:
        """Those of ``missed`` of which all that there is to say is in this very snapshot."""

        def is_settled(pod: Unreported) -> bool:
            if (entry := entries.get(pod.cgroup)) is not None:
                # A static pod that was mirrored anew goes on under its new UID.
                return bool(entry["uid"] != pod.uid)
            return known[pod.cgroup].over and self._tracker.ledger.is_settled(pod.cgroup)

        return tuple(sorted(pod.uid for pod in missed if is_settled(pod)))

    def _carried_entries(self, sight: Sight) -> dict[str, Json]:
        self._carried = {
            uid: entry
            for uid, entry in self._carried.items()
            if uid in sight.in_use.keys() | sight.unsettled and not self._governance.knows(uid)
        }
        return {
            uid: {**entry, "inUse": sight.in_use.get(uid, NOTHING).to_resources()}
            for uid, entry in self._carried.items()
        }

    def _nameless_entries(self, sight: Sight, named: Collection[str]) -> dict[str, Json]:
        """Cgroups of pods that nothing is known of, if they hold huge pages.

        Such a pod came and was deleted while no agent ran, or its cgroup was made after
        a forced deletion. All that can be said is its UID; that keeps its charge.
        """
        return {
            uid: {"uid": uid, "namespace": "", "name": "", "quotas": [], "charge": {}}
            | {"inUse": use.to_resources()}
            for uid, use in sight.in_use.items()
            if use and uid not in named
        }

    def _retained(self, entries: Mapping[str, Json], sight: Sight) -> tuple[Json, ...]:
        """What is left of pods that are gone or moved, by the quotas that are charged for it.

        The last row, of no quota, is what nobody is charged for.
        """
        ledger = self._tracker.ledger
        rows: defaultdict[tuple[str, ...], Charge] = defaultdict(Charge)
        for account in ledger.gone:
            listed = None if account.uid in sight.in_use else entries.get(account.uid)
            for quotas, charge in _left(account, listed):
                rows[quotas] += charge
        for account in ledger.former:
            if quotas := _charged(account, entries):
                rows[quotas] += account.charge
        rows[()] += ledger.stray
        return tuple(
            {"quotas": list(quotas), "charge": charge.without_zeros().to_resources()}
            for quotas, charge in sorted(rows.items(), key=lambda row: (not row[0], row[0]))
            if charge
        )

    def _files(self, entries: Mapping[str, Json], sight: Sight) -> tuple[Json, ...]:
        """The largest files, and who is charged for them; last what is in none."""
        if self._tracker.files is None:
            return ()
        book = self._tracker.files.book
        return (
            *(self._file(share, entries, sight) for share in book.largest()),
            *islice(self._in_no_file(book), _IN_NO_FILE),
        )

    def _in_no_file(self, book: FileBook) -> Iterator[Json]:
        """What pods that are gone left in the kernel's own hugetlbfs, which nobody can list.

        Or in a file that has no name any more, and that a process has open still.
        """
        for uid, rest in book.unlisted.items():
            account = self._tracker.ledger.account(uid)
            if account is None:
                continue
            for size, amount in rest.items():
                yield FileStatus(
                    path="a System V segment, or a file without a name that is open still",
                    mount="",
                    page_size=size.resource,
                    charged=quantity.render(amount),
                    pod=account.pod,
                    uid=pod_of(uid),
                    quotas=list(account.quotas),
                    retained=True,
                    since=account.since.replace(microsecond=0),
                ).to_json()

    def _file(self, share: FileShare, entries: Mapping[str, Json], sight: Sight) -> Json:
        account = self._tracker.ledger.account(share.owner)
        quotas = account.quotas if account else ()
        retained = share.owner != SYSTEM and share.owner not in sight.in_use
        if account is not None and account.state is State.FORMER:
            beside = _charged(account, entries)
            quotas, retained = beside or quotas, bool(beside)
        status = FileStatus(
            path=_printable(share.path),
            mount=_printable(share.superblock.point),
            volume=volume_of(share.superblock.point, share.path, account.volumes)
            if account
            else "",
            page_size=share.superblock.size.resource,
            charged=quantity.render(share.charged),
            pod=account.pod if account else "",
            uid=pod_of(share.owner),
            quotas=list(quotas),
            retained=retained,
            since=share.since.replace(microsecond=0),
        )
        return status.to_json()

    def _mounts(self) -> tuple[Json, ...]:
        files = self._tracker.files
        if files is None:
            return ()
        return tuple(
            _mount(superblock, files.book.held_on(superblock)).to_json()
            for superblock in files.book.superblocks[:_MOUNTS]
        )


def _missed(pod: Unreported) -> Known:
    namespace, _, name = pod.pod.partition("/")
    quotas = tuple(sorted(map(str, pod.quotas)))
    return Known(namespace, name, quotas, pod.charge, over=True, missed=True)


def _carried(entry: Json, account: Account | None) -> Known:
    """A pod that the last report listed: it was deleted while no agent ran."""
    return Known(
        entry["namespace"],
        entry["name"],
        tuple(entry["quotas"]),
        Charge.from_resources(entry["charge"]),
        over=True,
        volumes=account.volumes if account else (),
    )


def _entry(uid: str, known: Known, in_use: Charge) -> Json:
    return {
        "uid": uid,
        "namespace": known.namespace,
        "name": known.name,
        "quotas": list(known.quotas),
        "charge": known.demand.to_resources(),
        "inUse": in_use.to_resources(),
    }


def _left(gone: Account, listed: Json | None) -> Iterator[tuple[tuple[str, ...], Charge]]:
    """Who is charged for what a gone pod left.

    :param listed: its entry, when its end was not seen yet. What it left is in the charge of
        that then, but for quotas that its labels have moved it from since.
    """
    if listed is None:
        yield gone.quotas, gone.charge
        return
    if beside := charged_beside(gone.quotas, listed["quotas"]):
        yield beside, gone.charge
    if (under := tuple(each for each in gone.quotas if each not in beside)) or not beside:
        yield under, gone.charge.beyond(Charge.from_resources(listed["charge"]))


def _charged(former: Account, entries: Mapping[str, Json]) -> tuple[str, ...]:
    """Which quotas are charged for a former life of a pod beside what it is listed with."""
    listed = entries.get(pod_of(former.uid))
    return charged_beside(former.quotas, listed["quotas"] if listed else ())


def _mount(superblock: Superblock, held: int) -> MountStatus:
    counted = used(superblock)
    return MountStatus(
        path=_printable(superblock.point),
        page_size=superblock.size.resource,
        limit=None if superblock.limit is None else quantity.render(superblock.limit),
        minimum=quantity.render(superblock.minimum) if superblock.minimum else None,
        # Without a size= the kernel counts nothing.
        used=quantity.render(held if counted is None else counted),
    )


def _printable(path: str) -> str:
    """A path as JSON can have it, its end if it is long."""
    text = path.encode(errors="backslashreplace").decode()
    return text if len(text) <= _LONGEST_PATH else f"…{text[1 - _LONGEST_PATH :]}"
