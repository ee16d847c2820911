"""The ledger: what the counts said of each pod, and what that makes in every quota.

A count may be of a few pods: what it says takes the place of what was said of these before, and
the sums change by the difference. No requests are made here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TypeVar

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.recount import (
    FILES_TOLD,
    ChargedPod,
    Identities,
    Identity,
    Retained,
    RetainedFile,
    Tally,
    largest_first,
)
from hugetlb_quota.controller.count import Count, Held, Orphan
from hugetlb_quota.page_size import PageSize

_T = TypeVar("_T")
_NOWHERE: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Entry:
    """All that a count says of one UID."""

    pods: tuple[ChargedPod, ...] = ()
    held: tuple[Held, ...] = ()
    retained: tuple[Retained, ...] = ()
    files: tuple[RetainedFile, ...] = ()


@dataclass(slots=True)
class _Sum:
    """What is charged to one quota, descendants included; ``held`` and ``files`` by UID."""

    pods: dict[PageSize, int] = field(default_factory=dict)
    retained: dict[PageSize, int] = field(default_factory=dict)
    held: dict[str, list[Held]] = field(default_factory=dict)
    files: dict[str, list[RetainedFile]] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{Charge(self.pods).to_resources()} for pods, {len(self.held)} of them held, and"
            f" {Charge(self.retained).to_resources()} as retained in {len(self.files)} files"
        )


class Ledger:
    """What is charged to the quotas of a forest, kept by difference."""

    def __init__(self) -> None:
        self._forest = Forest((), {})
        self._entries: dict[str, _Entry] = {}
        self._sums: dict[QuotaKey, _Sum] = {}
        self._above: dict[frozenset[QuotaKey], frozenset[QuotaKey]] = {}
        self._quota_uids: dict[str, QuotaKey] = {}
        self._kept: dict[str, Identity] = {}
        self._settled: set[str] = set()
        self._waits: dict[str, frozenset[str]] = {}
        self._waiting: dict[str, set[str]] = {}
        self._orphans: dict[str, set[Orphan]] = {}
        self._changed: set[QuotaKey] = set()

    def replant(self, forest: Forest) -> None:
        """Charge what is known to the quotas of ``forest`` from now on."""
        before = self._sums
        self._forest = forest
        self._sums = {quota.key: _Sum() for quota in forest}
        self._above = {}
        self._quota_uids = {quota.uid: quota.key for quota in forest}
        changed, self._changed = self._changed, set()
        for uid, entry in self._entries.items():
            self._add(uid, entry, 1)
        self._changed = changed | {key for key, now in self._sums.items() if before.get(key) != now}

    def take(self, uids: Collection[str] | None, count: Count) -> None:
        """Put what ``count`` says of ``uids`` in the place of what was said of them before.

        :param uids: all that it can tell of; None: of everybody.
        """
        told = _by_uid(count)
        for uid in (self._entries.keys() | told.keys()) if uids is None else uids:
            self._put(uid, told.get(uid))
        if uids is None:
            uids = self._kept.keys() | self._settled | self._waits.keys() | self._orphans.keys()
        identities = count.identities
        for uid in uids:
            self._kept.pop(uid, None)
            self._settled.discard(uid)
            self._orphans.pop(uid, None)
            for node in self._waits.pop(uid, _NOWHERE):
                self._waiting[node].discard(uid)
        self._kept.update(identities.kept)
        self._settled |= identities.settled
        for orphan in count.orphans:
            self._orphans.setdefault(orphan.uid, set()).add(orphan)
        for uid, nodes in count.waiting.items():
            self._waits[uid] = nodes
            for node in nodes:
                self._waiting.setdefault(node, set()).add(uid)

    def changed(self) -> set[QuotaKey]:
        """The quotas of which something is another than when this was asked last."""
        changed, self._changed = self._changed, set()
        return changed & self._sums.keys()

    def tally(self, key: QuotaKey) -> Tally:
        """What is charged to the quota ``key``; true until the next :meth:`take`."""
        it = self._sums[key]
        files = (file for each in it.files.values() for file in each)
        return Tally(
            pods=Charge(it.pods),
            seen=_Seen(self, key),
            retained=Charge(it.retained),
            files=tuple(nsmallest(FILES_TOLD, files, largest_first)),
        )

    def held(self, key: QuotaKey) -> tuple[Held, ...]:
        """The ended pods that are charged to the quota ``key`` still."""
        return tuple(each for held in self._sums[key].held.values() for each in held)

    def holding(self) -> set[QuotaKey]:
        """The quotas to which some ended pod is charged."""
        return {key for key, it in self._sums.items() if it.held}

    def retained(self, uid: str) -> tuple[Retained, ...]:
        """What the pod ``uid``, which is gone, is charged still."""
        entry = self._entries.get(uid)
        return () if entry is None else entry.retained

    def waiting_for(self, node: str) -> Set[str]:
        """The UIDs on which the next report of ``node`` may decide."""
        return self._waiting.get(node, _NOWHERE)

    @property
    def identities(self) -> Identities:
        """The pods of which the quotas must keep who they are; a live view."""
        return Identities(self._kept, self._settled)

    @property
    def orphans(self) -> frozenset[Orphan]:
        """Those for whom no quota is charged."""
        return frozenset[Orphan]().union(*self._orphans.values())

    def differences(self, other: Ledger) -> list[str]:
        """What ``other``, which is of the same forest, says otherwise; a sentence each."""
        found = [
            f"HugeTLBQuota {key} is charged {mine}, and by the count from scratch {theirs}."
            for key in sorted(self._sums.keys() & other._sums.keys())
            if (mine := self._sums[key]) != (theirs := other._sums[key])
        ]
        if self._sums.keys() != other._sums.keys():
            found.append("The quotas are not the same.")
        ids, theirs_ids = self.identities, other.identities
        if (ids.kept, ids.settled) != (theirs_ids.kept, theirs_ids.settled):
            found.append("The identities are not the same.")
        if (self._waits, self.orphans) != (other._waits, other.orphans):
            found.append("What waits for nodes, or is charged to nobody, is not the same.")
        return found

    def seen_at(self, uid: str, key: QuotaKey) -> int | None:
        """At which version the pod ``uid`` was seen that the quota ``key`` is charged for.

        Or at which generation the quota ``uid``, which is below; None when it is neither.
        """
        if (entry := self._entries.get(uid)) is not None:
            for pod in entry.pods:
                if key in self._union(pod.quotas):
                    return pod.version
        below = self._quota_uids.get(uid)
        if below is not None and below != key and key in self._union(frozenset({below})):
            return self._forest[below].generation
        return None

    def uids_under(self, key: QuotaKey) -> Iterator[str]:
        """Every UID that :meth:`seen_at` knows for the quota ``key``."""
        uids = [*self._entries, *self._quota_uids]
        return (uid for uid in uids if self.seen_at(uid, key) is not None)

    def _put(self, uid: str, entry: _Entry | None) -> None:
        before = self._entries.pop(uid, None)
        if entry is not None:
            self._entries[uid] = entry
        if before != entry:
            if before is not None:
                self._add(uid, before, -1)
            if entry is not None:
                self._add(uid, entry, 1)

    def _add(self, uid: str, entry: _Entry, sign: int) -> None:
        charged: set[QuotaKey] = set()
        for pod in entry.pods:
            for key in self._union(pod.quotas) - charged:
                charged.add(key)
                _add(self._sums[key].pods, pod.charge, sign)
        self._changed |= charged
        for left in entry.retained:
            for key in self._union(left.quotas):
                self._changed.add(key)
                _add(self._sums[key].retained, left.charge, sign)
        for held in entry.held:
            for key in self._union(held.pod.quotas):
                self._changed.add(key)
                _list(self._sums[key].held, uid, held, sign)
        for file in entry.files:
            for key in self._union(file.quotas):
                self._changed.add(key)
                _list(self._sums[key].files, uid, file, sign)

    def _union(self, keys: frozenset[QuotaKey]) -> frozenset[QuotaKey]:
        """``keys`` and all above them to which charges go."""
        known = self._above.get(keys)
        if known is None:
            known = self._above[keys] = frozenset(
                link.key
                for key in keys
                if key in self._forest
                for link in self._forest.attached(key)
            )
        return known


class _Seen(Mapping[str, int]):
    """:attr:`Tally.seen` of one quota, looked up when it is asked for."""

    def __init__(self, ledger: Ledger, key: QuotaKey) -> None:
        self._ledger = ledger
        self._key = key

    def __getitem__(self, uid: str) -> int:
        version = self._ledger.seen_at(uid, self._key)
        if version is None:
            raise KeyError(uid)
        return version

    def __iter__(self) -> Iterator[str]:
        return self._ledger.uids_under(self._key)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _by_uid(count: Count) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}

    def of(uid: str) -> _Entry:
        return entries.setdefault(uid, _Entry())

    for pod in count.pods:
        of(pod.uid).pods += (pod,)
    for held in count.held:
        of(held.pod.uid).held += (held,)
    for left in count.retained:
        of(left.uid).retained += (left,)
    for file in count.files:
        of(file.uid).files += (file,)
    return entries


def _add(amounts: dict[PageSize, int], charge: Charge, sign: int) -> None:
    for size, amount in charge.items():
        if total := amounts.get(size, 0) + sign * amount:
            amounts[size] = total
        else:
            amounts.pop(size, None)


def _list(lists: dict[str, list[_T]], uid: str, item: _T, sign: int) -> None:
    if sign > 0:
        lists.setdefault(uid, []).append(item)
    elif (items := lists.get(uid)) is not None:
        items.remove(item)
        if not items:
            del lists[uid]
