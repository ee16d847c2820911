"""The ledger: the charges of each pod, and their sums in each quota.

A count may include only some pods. Its results replace the earlier results of these pods, and the
sums change by the difference. The ledger makes no requests.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TypeVar

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.recount import (
    FILES_SHOWN,
    ChargedPod,
    Identities,
    Identity,
    Retained,
    RetainedFile,
    Tally,
    largest_first,
)
from hugetlb_quota.controller.counting.count import Count, Held, Orphan
from hugetlb_quota.page_size import PageSize
from hugetlb_quota.plural import number_of

_T = TypeVar("_T")
_NO_NODES: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Entry:
    """The charges of one UID."""

    pods: tuple[ChargedPod, ...] = ()
    held: tuple[Held, ...] = ()
    retained: tuple[Retained, ...] = ()
    files: tuple[RetainedFile, ...] = ()


@dataclass(slots=True)
class _Sum:
    """The charges of one quota, with all quotas below; ``held`` and ``files`` by UID."""

    pods: dict[PageSize, int] = field(default_factory=dict)
    retained: dict[PageSize, int] = field(default_factory=dict)
    held: dict[str, list[Held]] = field(default_factory=dict)
    files: dict[str, list[RetainedFile]] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"{Charge(self.pods).to_resources()} for pods, {len(self.held)} of them held, and"
            f" {Charge(self.retained).to_resources()} as retained in"
            f" {number_of(len(self.files), 'file')}"
        )


class Ledger:
    """The charges of the pods, and their sums in the quotas of a forest."""

    def __init__(self) -> None:
        self._forest = Forest((), {})
        self._entries: dict[str, _Entry] = {}
        self._sums: dict[QuotaKey, _Sum] = {}
        #: By a pod's quotas, all quotas that the pod is charged to; computed on first use.
        self._charged: dict[frozenset[QuotaKey], frozenset[QuotaKey]] = {}
        self._quota_uids: dict[str, QuotaKey] = {}
        self._kept: dict[str, Identity] = {}
        self._unneeded: set[str] = set()
        self._orphans: dict[str, set[Orphan]] = {}
        #: The nodes that a pod waits for, by UID; and the UIDs that wait for a node.
        self._awaited_nodes: dict[str, frozenset[str]] = {}
        self._waiting: dict[str, set[str]] = {}
        self._changed: set[QuotaKey] = set()

    def use_forest(self, forest: Forest) -> None:
        """Compute the sums of the quotas of ``forest`` from now on."""
        before = self._sums
        self._forest = forest
        self._sums = {quota.key: _Sum() for quota in forest}
        self._charged = {}
        self._quota_uids = {quota.uid: quota.key for quota in forest}
        changed, self._changed = self._changed, set()
        for uid, entry in self._entries.items():
            self._add(uid, entry, 1)
        self._changed = changed | {key for key, now in self._sums.items() if before.get(key) != now}

    def update(self, uids: Collection[str] | None, count: Count) -> None:
        """Replace the earlier results for ``uids`` by those in ``count``.

        :param uids: the UIDs that ``count`` includes; None for all.
        """
        entries = _by_uid(count)
        for uid in (self._entries.keys() | entries.keys()) if uids is None else uids:
            self._put(uid, entries.get(uid))
        if uids is None:
            uids = (
                self._kept.keys()
                | self._unneeded
                | self._awaited_nodes.keys()
                | self._orphans.keys()
            )
        for uid in uids:
            self._kept.pop(uid, None)
            self._unneeded.discard(uid)
            self._orphans.pop(uid, None)
            for node in self._awaited_nodes.pop(uid, _NO_NODES):
                self._waiting[node].discard(uid)
        self._kept.update(count.identities.kept)
        self._unneeded |= count.identities.unneeded
        for orphan in count.orphans:
            self._orphans.setdefault(orphan.uid, set()).add(orphan)
        for uid, nodes in count.waiting.items():
            self._awaited_nodes[uid] = nodes
            for node in nodes:
                self._waiting.setdefault(node, set()).add(uid)

    def pop_changed(self) -> set[QuotaKey]:
        """The quotas with charges that changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed & self._sums.keys()

    def tally(self, key: QuotaKey) -> Tally:
        """The charges of the quota ``key``; valid until the next :meth:`update`."""
        it = self._sums[key]
        files = (file for each in it.files.values() for file in each)
        return Tally(
            pods=Charge(it.pods),
            seen=_Seen(self, key),
            retained=Charge(it.retained),
            files=tuple(nsmallest(FILES_SHOWN, files, largest_first)),
        )

    def held(self, key: QuotaKey) -> tuple[Held, ...]:
        """The ended pods that are still charged to the quota ``key``."""
        return tuple(each for held in self._sums[key].held.values() for each in held)

    def quotas_with_held(self) -> set[QuotaKey]:
        """The quotas to which ended pods are still charged."""
        return {key for key, it in self._sums.items() if it.held}

    def retained(self, uid: str) -> tuple[Retained, ...]:
        """The retained charges of the gone pod ``uid``."""
        entry = self._entries.get(uid)
        return () if entry is None else entry.retained

    def waiting_for(self, node: str) -> Set[str]:
        """The UIDs of the pods that the next report of ``node`` may release."""
        return self._waiting.get(node, _NO_NODES)

    @property
    def identities(self) -> Identities:
        """The identities that the quotas must keep; a live view."""
        return Identities(self._kept, self._unneeded)

    @property
    def orphans(self) -> frozenset[Orphan]:
        """The pods with charges that no quota pays for."""
        return frozenset[Orphan]().union(*self._orphans.values())

    def differences(self, other: Ledger) -> list[str]:
        """The differences from ``other``, a count from scratch of the same forest, as sentences."""
        found = [
            f"HugeTLBQuota {key} is charged {mine}; the count from scratch found {theirs}."
            for key in sorted(self._sums.keys() & other._sums.keys())
            if (mine := self._sums[key]) != (theirs := other._sums[key])
        ]
        if self._sums.keys() != other._sums.keys():
            found.append("The quotas differ.")
        if (self._kept, self._unneeded) != (other._kept, other._unneeded):
            found.append("The identities differ.")
        if (self._awaited_nodes, self.orphans) != (other._awaited_nodes, other.orphans):
            found.append("The pods that wait for nodes, or that no quota pays for, differ.")
        return found

    def seen_at(self, uid: str, key: QuotaKey) -> int | None:
        """The resourceVersion of the pod ``uid``, if the pod is charged to the quota ``key``.

        If ``uid`` is a quota below ``key``, the generation of that quota. Otherwise None.
        """
        if (entry := self._entries.get(uid)) is not None:
            for pod in entry.pods:
                if key in self._charged_quotas(pod.quotas):
                    return pod.version
        below = self._quota_uids.get(uid)
        if below is not None and below != key and key in self._charged_quotas(frozenset({below})):
            return self._forest[below].generation
        return None

    def uids_seen_by(self, key: QuotaKey) -> Iterator[str]:
        """The UIDs for which :meth:`seen_at` has a version for the quota ``key``."""
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
        """Add ``entry`` to the sums of all charged quotas, or subtract it if ``sign`` is -1."""
        done: set[QuotaKey] = set()
        for pod in entry.pods:
            for key in self._charged_quotas(pod.quotas) - done:
                done.add(key)
                _add(self._sums[key].pods, pod.charge, sign)
        self._changed |= done
        for retained in entry.retained:
            for key in self._charged_quotas(retained.quotas):
                self._changed.add(key)
                _add(self._sums[key].retained, retained.charge, sign)
        for held in entry.held:
            for key in self._charged_quotas(held.pod.quotas):
                self._changed.add(key)
                _list(self._sums[key].held, uid, held, sign)
        for file in entry.files:
            for key in self._charged_quotas(file.quotas):
                self._changed.add(key)
                _list(self._sums[key].files, uid, file, sign)

    def _charged_quotas(self, keys: frozenset[QuotaKey]) -> frozenset[QuotaKey]:
        """The quotas ``keys``, and all quotas above to which their charges go."""
        charged = self._charged.get(keys)
        if charged is None:
            charged = self._charged[keys] = frozenset(
                link.key
                for key in keys
                if key in self._forest
                for link in self._forest.attached(key)
            )
        return charged


class _Seen(Mapping[str, int]):
    """:attr:`Tally.seen` of one quota; each value is looked up when it is read."""

    def __init__(self, ledger: Ledger, key: QuotaKey) -> None:
        self._ledger = ledger
        self._key = key

    def __getitem__(self, uid: str) -> int:
        version = self._ledger.seen_at(uid, self._key)
        if version is None:
            raise KeyError(uid)
        return version

    def __iter__(self) -> Iterator[str]:
        return self._ledger.uids_seen_by(self._key)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _by_uid(count: Count) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}

    def entry(uid: str) -> _Entry:
        return entries.setdefault(uid, _Entry())

    for pod in count.pods:
        entry(pod.uid).pods += (pod,)
    for held in count.held:
        entry(held.pod.uid).held += (held,)
    for retained in count.retained:
        entry(retained.uid).retained += (retained,)
    for file in count.files:
        entry(file.uid).files += (file,)
    return entries


def _add(amounts: dict[PageSize, int], charge: Charge, sign: int) -> None:
    for size, amount in charge.items():
        if total := amounts.get(size, 0) + sign * amount:
            amounts[size] = total
        else:
            amounts.pop(size, None)


def _list(lists: dict[str, list[_T]], uid: str, item: _T, sign: int) -> None:
    """Append ``item`` to the list of ``uid``, or remove it if ``sign`` is -1."""
    if sign > 0:
        lists.setdefault(uid, []).append(item)
    elif (items := lists.get(uid)) is not None:
        items.remove(item)
        if not items:
            del lists[uid]
