"""The controller's copy of the objects that counts depend on, with a note of each change.

Informers feed the store. It makes no requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hugetlb_quota.accounting.attribution import lines_of
from hugetlb_quota.accounting.forest import Quota, QuotaKey
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.controller.counting.changes import Changes
from hugetlb_quota.controller.counting.node_store import NodeStore
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import QuotaObject


@dataclass(frozen=True, slots=True)
class Namespace:
    """The fields of a namespace that the controller keeps.

    ``leaving``: whether the namespace is being deleted.
    """

    name: str
    labels: Mapping[str, str]
    leaving: bool


class Store:
    """Pods, quotas, namespaces and nodes, with indexes, and the changes since the last count.

    ``pods``: by UID. ``uids_on_node``: the UIDs of the pods bound to each node. ``lines``: by UID,
    the pod's line in each quota that has one. ``pending``: the quotas that have reservations,
    which may expire, or unreadable lines. ``nodes``: Nodes and reports.

    :param clock: returns seconds since any fixed moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.changes = Changes(everything=True)
        self.pods: dict[str, Pod] = {}
        self.uids_on_node: dict[str, set[str]] = {}
        self.quotas: dict[QuotaKey, QuotaObject] = {}
        self.lines: dict[str, dict[QuotaKey, Reservation]] = {}
        self.pending: set[QuotaKey] = set()
        self.namespaces: dict[str, Namespace] = {}
        self.nodes = NodeStore(self.changes, clock)

    def pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        """Take in one change of a pod."""
        if old is not None:
            self.changes.uids.add(old.uid)
            self.pods.pop(old.uid, None)
            _discard(self.uids_on_node, old.node, old.uid)
        if new is not None:
            self.changes.uids.add(new.uid)
            self.pods[new.uid] = new
            _add(self.uids_on_node, new.node, new.uid)

    def quota_changed(self, old: QuotaObject | None, new: QuotaObject | None) -> None:
        """Take in one change of a quota."""
        if old is not None and new is not None and _is_same(old, new):
            self.quotas[new.key] = new
            return
        for quota in (old, new):
            if quota is not None:
                self.changes.uids.add(quota.uid)
                self.changes.quotas.add(quota.key)
        if old is not None:
            self.quotas.pop(old.key, None)
            self.pending.discard(old.key)
        if new is not None:
            self.quotas[new.key] = new
            if new.counter.pending or new.counter.unreadable:
                self.pending.add(new.key)
        self._update_lines(old, new)
        self._note_spec(None if old is None else old.quota, None if new is None else new.quota)

    def namespace_changed(self, old: Namespace | None, new: Namespace | None) -> None:
        """Take in one change of a namespace."""
        name = (new or old).name  # type: ignore[union-attr]
        if new is None:
            self.namespaces.pop(name, None)
        else:
            self.namespaces[name] = new
        self.changes.namespaces.add(name)

    def _update_lines(self, old: QuotaObject | None, new: QuotaObject | None) -> None:
        before, now = ({} if it is None else lines_of(it.counter) for it in (old, new))
        for uid in before.keys() | now.keys():
            if before.get(uid) == now.get(uid):
                continue
            self.changes.uids.add(uid)
            if uid in before:
                lines = self.lines[uid]
                del lines[old.key]  # type: ignore[union-attr]
                if not lines:
                    del self.lines[uid]
            if uid in now:
                self.lines.setdefault(uid, {})[new.key] = now[uid]  # type: ignore[union-attr]

    def _note_spec(self, old: Quota | None, new: Quota | None) -> None:
        if old == new:
            return
        key = (new or old).key  # type: ignore[union-attr]
        if old and new and replace(old, attached_to=new.attached_to) == new:
            self.changes.attachments.add(key)
        else:
            self.changes.specs.add(key)
        if _selection(old) != _selection(new):
            self.changes.selections.add(key.namespace)


def _is_same(old: QuotaObject, new: QuotaObject) -> bool:
    """Whether the count needs no field that differs; for example, an annotation may differ."""
    # The other fields are read from these.
    return (
        (old.uid, old.invalid, old.finalizers) == (new.uid, new.invalid, new.finalizers)
        and old.quota == new.quota
        and old.counter == new.counter
        and old.stored == new.stored
        and old.spec == new.spec
    )


def _selection(quota: Quota | None) -> object:
    """The fields of a quota that decide which pods the quota governs."""
    return None if quota is None else (quota.pod_selector, quota.terminating)


def _add(index: dict[str, set[str]], key: str | None, item: str) -> None:
    if key is not None:
        index.setdefault(key, set()).add(item)


def _discard(index: dict[str, set[str]], key: str | None, item: str) -> None:
    if key is not None and (items := index.get(key)) is not None:
        items.discard(item)
        if not items:
            del index[key]
