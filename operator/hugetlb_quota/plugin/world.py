"""The part of a cluster that was read, and the holders of huge pages in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from hugetlb_quota.accounting.attribution import Attribution, read_lines
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.reservation import SOMEWHERE, UNBOUND, Reservation
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.plugin.reports import NodeReport, ReportedFile, ReportedPod

Kind = Literal["pod", "retained", "reserved"]

_DETACHED = ("ParentNotFound", "ForeignParent", "Cycle")


@dataclass(frozen=True, slots=True)
class Holder:
    """A holder fills quotas: a pod, the pages that a gone pod left, or a reservation.

    ``holds``: the amount charged to ``quotas`` and to all quotas above. ``demand``: of the
    pod. ``charged``: the kernel's charge. ``state``: in a few words. ``since``: the end of the
    gone pod. ``until``: the expiry of the reservation; None if the
    request is over, or if the pod exists.
    """

    kind: Kind
    uid: str
    pod: str
    node: str
    quotas: frozenset[QuotaKey]
    holds: Charge
    demand: Charge = NOTHING
    charged: Charge = NOTHING
    state: str = ""
    since: datetime | None = None
    until: datetime | None = None
    files: tuple[ReportedFile, ...] = ()

    @property
    def namespace(self) -> str:
        """The namespace of the pod; "" if it is unknown."""
        return self.pod.partition("/")[0] if "/" in self.pod else ""


@dataclass(frozen=True)
class World:
    """Quotas, and if they were read, pods and nodes' reports.

    ``pods`` and ``reports`` are None if they were not requested, or the user may not read them.
    ``waiting``: the UIDs of the pods with the phase Pending.
    """

    quotas: Mapping[QuotaKey, QuotaObject]
    forest: Forest
    pods: tuple[Pod, ...] | None = None
    reports: tuple[NodeReport, ...] | None = None
    waiting: frozenset[str] = frozenset()

    @cached_property
    def attribution(self) -> Attribution:
        """The rule that says which quotas pay for a pod."""
        counters = [quota.counter for quota in self.quotas.values()]
        heirs = {
            (report.node, uid): keys
            for report in self.reports or ()
            for uid, keys in report.heirs.items()
        }
        return Attribution(self.forest, heirs, read_lines(counters, self.forest))

    @cached_property
    def holders(self) -> tuple[Holder, ...]:
        """All holders of huge pages, also holders that no quota is charged for."""
        return tuple(self._holders())

    def charged_to(self, key: QuotaKey) -> tuple[Holder, ...]:
        """The holders that fill the quota ``key``, directly or through a quota below."""
        return tuple(
            holder
            for holder in self.holders
            if any(
                link.key == key
                for payer in holder.quotas
                if payer in self.forest
                for link in self.forest.attached(payer)
            )
        )

    def _holders(self) -> Iterator[Holder]:
        reported = {
            (report.node, pod.uid): pod for report in self.reports or () for pod in report.pods
        }
        files: dict[tuple[str, str], list[ReportedFile]] = {}
        for report in self.reports or ():
            for file in report.files:
                files.setdefault((file.node, file.uid), []).append(file)
        pending = self._pending(reported)
        yield from pending
        reserved = {holder.uid for holder in pending}
        seen = {report.node: report.pods_resource_version for report in self.reports or ()}
        for pod in self.pods or ():
            entry = reported.pop((pod.node or "", pod.uid), None)
            if pod.uid in reserved or not (pod.demand or entry is not None):
                continue
            if (held := self._of_pod(pod, entry, seen)) is not None:
                yield replace(held, files=tuple(files.get((held.node, pod.uid), ())))
        stored = {pod.uid: pod for pod in self.pods or ()}
        for (node, uid), entry in reported.items():
            if uid not in reserved:
                holder = self._of_other_node(entry, stored.get(uid)) or self._of_entry(entry)
                yield replace(holder, files=tuple(files.get((node, uid), ())))

    def _of_other_node(self, entry: ReportedPod, pod: Pod | None) -> Holder | None:
        """The holder for an entry of a pod that belongs to another node, or None.

        The API, or the pod's line in a quota, says which node the pod belongs to.
        """
        line = self.attribution.lines.get(entry.uid)
        if pod is not None and pod.node is not None:
            home, name = pod.node, str(pod)
            quotas = self.attribution.who_pays(pod.uid, pod.namespace, pod.labels, home)
        elif line is not None and line.counted not in ("", UNBOUND, SOMEWHERE):
            home, name, quotas = line.counted, line.pod, line.quotas
        else:
            return None
        if home == entry.node:
            return None
        holder = self._of_entry(replace(entry, live=False), quotas)
        return replace(holder, pod=name, state=f"on another node than {home}")

    def _pending(self, reported: Mapping[tuple[str, str], ReportedPod]) -> list[Holder]:
        """The reservations: pods that are admitted and not counted yet."""
        lines: dict[str, tuple[Reservation, set[QuotaKey]]] = {}
        for quota in self.quotas.values():
            for line in quota.counter.pending:
                _, keys = lines.setdefault(line.uid, (line, set()))
                keys.add(quota.key)
        moving = {quota.uid for quota in self.quotas.values()}
        nodes = {uid: node for node, uid in reported}
        existing = {pod.uid for pod in self.pods or ()} | nodes.keys()
        return [
            Holder(
                kind="reserved",
                uid=uid,
                pod=line.pod,
                node=nodes.get(uid, ""),
                quotas=self._lowest(keys),
                holds=line.charge,
                demand=line.charge,
                state=self._state(line, moving, existing),
                until=None if line.is_over or uid in existing else line.expires,
            )
            for uid, (line, keys) in lines.items()
        ]

    def _state(self, line: Reservation, moving: Collection[str], existing: Collection[str]) -> str:
        """What a reservation is for, in a few words.

        :param moving: the UIDs of all quotas.
        :param existing: the UIDs of the pods in the API and in the reports.
        """
        if line.uid in existing:
            return "not counted yet"  # also for long, while the controller is down
        end = ", about to end" if line.is_over else ""
        if line.uid in moving:
            return f"moving quota{end}"
        if not line.is_over:
            return "being created"
        return f"not created{end}" if self.pods is not None else "not counted yet"

    def _lowest(self, keys: Iterable[QuotaKey]) -> frozenset[QuotaKey]:
        """The quotas of ``keys`` that have no other quota of ``keys`` below."""
        every = set(keys)
        above = {link.key for key in every for link in self.forest.attached(key) if link.key != key}
        return frozenset(every - above)

    def _of_pod(
        self, pod: Pod, entry: ReportedPod | None, seen: Mapping[str, int]
    ) -> Holder | None:
        """The holder for a pod of the API; None if the pod ended and holds nothing any more."""
        quotas = self.attribution.who_pays(pod.uid, pod.namespace, pod.labels, pod.node)
        charged = entry.charged if entry is not None else NOTHING
        holder = Holder(
            kind="pod",
            uid=pod.uid,
            pod=str(pod),
            node=pod.node or "",
            quotas=quotas,
            holds=pod.demand.peak(charged),
            demand=pod.demand,
            charged=charged,
            state=self._phase(pod, charged),
        )
        if not pod.finished:
            return replace(holder, state="ending") if pod.deletion else holder
        if entry is not None and not entry.live:
            return self._of_entry(entry, quotas)
        if pod.node is None or pod.node not in seen:
            return None
        if entry is None and seen[pod.node] >= pod.resource_version:
            return None
        return replace(holder, state="ended, not yet reported")

    def _phase(self, pod: Pod, charged: Charge) -> str:
        """Whether a pod that has not ended runs, in a word.

        A pod with a charge runs, although its phase is Pending as long as an init container runs.
        """
        if pod.node is None:
            return "pending"
        return "starting" if pod.uid in self.waiting and not charged else "running"

    def _of_entry(self, entry: ReportedPod, quotas: frozenset[QuotaKey] | None = None) -> Holder:
        """The holder for an entry of a report. The API may not have the pod (any more)."""
        if quotas is None:
            quotas = self.attribution.who_pays(
                entry.uid,
                entry.namespace,
                entry.labels,
                entry.node,
                labels_left_out=entry.labels_left_out,
            )
        gone = not entry.live
        return Holder(
            kind="retained" if gone else "pod",
            uid=entry.uid,
            pod=str(entry),
            node=entry.node,
            quotas=quotas,
            holds=entry.charged if gone else entry.demand.peak(entry.charged),
            demand=entry.demand,
            charged=entry.charged,
            state="gone" if gone else "running",
            since=entry.ended_at if gone else None,
        )


def waiting(pods: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The UIDs of the pods with the phase Pending, from the pods' JSON.

    Such a pod is not bound, or kubelet has not started all of its containers.
    """
    return frozenset(
        str(raw["metadata"].get("uid", ""))
        for raw in pods
        if (raw.get("status") or {}).get("phase") == "Pending"
    )


def forest_of(
    quotas: Collection[QuotaObject],
    namespaces: Mapping[str, Mapping[str, str]] | None,
    *,
    whole: bool = True,
) -> Forest:
    """The forest that the quotas form.

    :param namespaces: the labels of each namespace; None if the user may not read them. Then a
        quota counts as attached to the parent that it names, unless a condition says otherwise.
    :param whole: whether ``quotas`` are all quotas. If not, a quota with an unseen parent is a
        root.
    """
    found = [each.quota if namespaces is not None else _as_named(each) for each in quotas]
    if not whole:
        keys = {each.key for each in quotas}
        found = [each if each.parent in keys else replace(each, parent=None) for each in found]
    return Forest(found, namespaces or {})


def words(quota: QuotaObject) -> tuple[str, ...]:
    """The faults of a quota, a word each: reasons of False conditions, Invalid, NotCounted."""
    if quota.invalid:
        return ("Invalid",)
    found = [each.reason for each in quota.conditions if each.status == "False"]
    if not quota.is_counted:
        found.append("NotCounted")
    return tuple(dict.fromkeys(found))


def _as_named(quota: QuotaObject) -> Quota:
    detached = any(each.type == "Ready" and each.reason in _DETACHED for each in quota.conditions)
    return replace(
        quota.quota,
        parent=None if detached else quota.quota.parent,
        child_namespaces=Selector(),
    )
