"""Builds the result of one count, pod by pod."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Final

from hugetlb_quota.accounting.attribution import Line
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.recount import (
    ChargedPod,
    Identities,
    Identity,
    Retained,
    RetainedFile,
)
from hugetlb_quota.accounting.release import EndedPod, is_lost
from hugetlb_quota.accounting.reservation import SOMEWHERE, UNBOUND
from hugetlb_quota.controller.counting.count import Count, Held, Orphan
from hugetlb_quota.controller.counting.nodes import ReportedPod
from hugetlb_quota.controller.counting.proofs import Proofs
from hugetlb_quota.controller.counting.snapshot import Snapshot
from hugetlb_quota.kube.pods import Pod

#: What a line has in place of a node's name if the pod's node is unknown.
_NO_NODE: Final = ("", UNBOUND, SOMEWHERE)


class CountBuilder:
    """One count that is under way: charges pods, and collects what the count says of them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._proofs = Proofs(snapshot.evidence)
        self._charged: dict[str, ChargedPod] = {}
        self._held: list[Held] = []
        self._retained: list[Retained] = []
        self._orphans: set[Orphan] = set()
        self._identities: dict[str, Identity] = {}
        self._waiting: dict[str, frozenset[str]] = {}
        #: The released pods that no report can name any more.
        self._dropped: set[str] = set()
        #: The pods that are in the API, or were deleted and are held.
        self._pods = {pod.uid: pod for pod in snapshot.pods}
        #: The report's entry for each UID, by UID and node.
        self._reported: dict[str, dict[str, ReportedPod]] = {}
        #: The entries, as (node, UID), that are part of the charge of the pod itself.
        self._used_entries: set[tuple[str, str]] = set()
        #: UIDs of lines that name no node: such a pod may be on a node that reports no such pod.
        self._placeless: set[str] = set()
        for node, pod in snapshot.reported_pods():
            entries = self._reported.setdefault(pod.uid, {})
            other = entries.get(node)
            entries[node] = pod if other is None else _merged(pod, other)

    # One pod

    def lacking_nodes(self, ended: EndedPod) -> frozenset[str]:
        """The nodes that may still have the pod's cgroup; empty if the pod is released."""
        if nodes := self._proofs.lacking(ended):
            self._waiting[ended.uid] = nodes
        return nodes

    def charge_pod(self, pod: Pod) -> None:
        """Charge a pod that is in the API and has not ended."""
        self._charge_seen(pod, in_api=True)

    def hold_pod(self, pod: Pod, nodes: frozenset[str]) -> None:
        """Charge a pod that ended but may still have a cgroup on one of ``nodes``."""
        self._pods[pod.uid] = pod
        self._held.append(Held(self._charge_seen(pod, in_api=False), nodes))

    def keep_identity_of_released(self, pod: Pod, node: str | None) -> bool:
        """Keep the identity of a released pod if the first report of its node may still come.

        :param node: None if the pod was never bound; UNBOUND if nobody saw whether it was.
        :returns: whether the identity is kept.
        """
        if node is None or not self._is_awaited(node):
            self._dropped.add(pod.uid)
            return False
        in_api = pod.uid in self._pods
        self._identities[pod.uid] = Identity(node, self._payers_of_seen(pod), in_api)
        return True

    def hold_line(self, line: Line, nodes: frozenset[str]) -> None:
        """Keep the identity of the pod of ``line``, and charge the pod if it was counted before.

        :param nodes: the nodes that may still have the pod's cgroup.
        """
        entries = self._reported.get(line.uid, {})
        has_node = line.counted not in _NO_NODE
        showing = {node for node, entry in entries.items() if entry.live or entry.charged}
        if line.counted in entries or (showing and not has_node and nodes <= showing):
            return  # charge_reported charges what these nodes report
        was_counted = line.counted not in ("", SOMEWHERE)
        word = line.counted if was_counted else SOMEWHERE
        self._identities[line.uid] = Identity(word, line.quotas, in_api=False)
        if not has_node:
            self._placeless.add(line.uid)
        if was_counted:
            charge = line.charge
            for node, entry in entries.items():
                # The entry is this pod, or another pod to which the node gives the same UID. If
                # the same quotas pay, the entry adds nothing to the line.
                if not has_node and self._payers_of_entry(node, entry) == line.quotas:
                    charge = charge.peak(entry.charged)
                    self._used_entries.add((node, line.uid))
            charged = ChargedPod(line.uid, charge, line.quotas)
            self._charged[line.uid] = charged
            self._held.append(Held(charged, nodes))

    def charge_reported(self) -> Iterator[str]:
        """Charge what only reports show; yield the UIDs of live pods."""
        for uid, entries in self._reported.items():
            for node, entry in entries.items():
                if (node, uid) not in self._used_entries and self._charge_entry(node, entry):
                    yield uid

    def _charge_seen(self, pod: Pod, *, in_api: bool) -> ChargedPod:
        """Charge a pod that is not released: its demand, or the kernel's charge if that is more.

        Only the pod's own node says what the kernel charges. If neither the API nor a line
        names a node, every node may be the pod's own.
        """
        entries = self._reported.get(pod.uid, {})
        nodes = entries.keys() if pod.node is None else entries.keys() & {pod.node}
        self._used_entries.update((node, pod.uid) for node in nodes)
        charge = pod.demand
        if charged := Charge.total(entries[node].charged for node in nodes):
            charge = charge.peak(charged).without_zeros()
        payers = self._payers_of_seen(pod)
        self._charged[pod.uid] = ChargedPod(pod.uid, charge, payers, pod.resource_version)
        self._keep_identity(self._charged[pod.uid], pod.node, in_api=in_api)
        return self._charged[pod.uid]

    def _charge_entry(self, node: str, entry: ReportedPod) -> bool:
        """Charge what ``node`` reports of a pod; return whether the pod is live.

        If the pod belongs to another node, only the reported charge counts, in addition to what
        the pod's own node reports. Such an entry never lowers the pod's charge or renames the pod.
        """
        uid, payers = entry.uid, self._payers_of_entry(node, entry)
        charge = entry.charged
        is_live = entry.live and self._may_describe(node, uid)
        if is_live:
            # The pod was deleted before this controller started, or released before its node had
            # an agent.
            line = self._snapshot.attribution.lines.get(uid)
            reserved = NOTHING if line is None else line.charge
            charge = entry.demand.peak(reserved).peak(charge).without_zeros()
        # An empty set of heirs means that nobody shall pay.
        is_intended = payers or (node, uid) in self._snapshot.attribution.heirs
        if entry.charged and not is_intended and not (entry.is_named and entry.live):
            self._orphans.add(Orphan(node, uid, entry.full_name))
        if not charge:
            return False
        if is_live and uid not in self._charged:
            is_sure = uid not in self._placeless and len(self._reported[uid]) == 1
            self._charged[uid] = ChargedPod(uid, charge, payers, version=1 if is_sure else 0)
            self._held.append(Held(self._charged[uid], frozenset({node})))
        else:
            self._retained.append(Retained(uid, charge, payers, node))
        return is_live

    # Who the pod is, and who pays

    def _payers_of_seen(self, pod: Pod) -> frozenset[QuotaKey]:
        attribution = self._snapshot.attribution
        return attribution.who_pays(pod.uid, pod.namespace, pod.labels, pod.node)

    def _payers_of_entry(self, node: str, entry: ReportedPod) -> frozenset[QuotaKey]:
        """The payers by the pod's labels in the API, else by the labels that its node reports.

        If neither names a quota, the quotas of the pod's line pay, and the line is kept.
        """
        attribution, uid = self._snapshot.attribution, entry.uid
        ruled, pod = None, self._pods.get(uid)
        if pod is not None:
            ruled = attribution.by_rule(uid, pod.namespace, pod.labels, pod.node or node)
        elif self._may_describe(node, uid):
            ruled = attribution.by_rule(
                uid, entry.namespace, entry.labels, node, labels_left_out=entry.labels_left_out
            )
        if ruled is not None:
            return ruled
        payers = attribution.by_line(uid)
        if payers and uid not in self._identities:
            self._identities[uid] = Identity(self._home(uid) or node, payers, in_api=False)
        return payers

    def _home(self, uid: str) -> str | None:
        """The pod's node by the API or by the pod's line; None if neither names a node."""
        pod = self._pods.get(uid)
        if pod is not None and pod.node is not None:
            return pod.node
        line = self._snapshot.attribution.lines.get(uid)
        return None if line is None or line.counted in _NO_NODE else line.counted

    def _may_describe(self, node: str, uid: str) -> bool:
        """Whether a report of ``node`` may say that the pod is live, and give its labels."""
        return self._home(uid) in (None, node)

    def _keep_identity(self, pod: ChargedPod, node: str | None, *, in_api: bool) -> None:
        """Keep the pod's identity until the report of its node names the pod."""
        if node is None:
            self._identities[pod.uid] = Identity(UNBOUND, pod.quotas, in_api)
            return
        evidence = self._snapshot.evidence.get(node)
        if evidence is None or is_lost(evidence):
            return
        if evidence.pods_resource_version is None and not evidence.awaited:
            return  # the node has no agent that could name the pod
        entry = self._reported.get(pod.uid, {}).get(node)
        if entry is None or not entry.is_named:
            self._identities[pod.uid] = Identity(node, pod.quotas, in_api)

    def _is_awaited(self, node: str) -> bool:
        """Whether the first report of ``node``, or of any node if it is unknown, may still come."""
        if node in (UNBOUND, SOMEWHERE):
            return self._is_any_awaited
        evidence = self._snapshot.evidence.get(node)
        return evidence is not None and not is_lost(evidence) and evidence.awaited

    @cached_property
    def _is_any_awaited(self) -> bool:
        return any(each.awaited and not is_lost(each) for each in self._snapshot.evidence.values())

    # The result

    def result(self) -> Count:
        """The count, after all pods were charged."""
        lines = self._snapshot.attribution.lines
        uids = self._snapshot.select(lines.keys())
        for uid in uids:
            kept = uid in self._identities or uid in self._dropped
            if not kept and self._is_awaited(lines[uid].counted):
                # The pod is uncharged because its node has no agent. The agent may still start,
                # and report the pod.
                line = lines[uid]
                self._identities[uid] = Identity(line.counted, line.quotas, in_api=False)
        return Count(
            pods=tuple(self._charged.values()),
            held=tuple(self._held),
            retained=tuple(self._retained),
            files=tuple(self._files()),
            identities=Identities(self._identities, frozenset(uids) - self._identities.keys()),
            orphans=frozenset(self._orphans),
            waiting=self._waiting,
        )

    def _files(self) -> Iterator[RetainedFile]:
        payers = {(each.node, each.uid): each.quotas for each in self._retained}
        for report in self._snapshot.valid_reports():
            for file in report.files:
                if (report.node, file.uid) in payers:
                    yield RetainedFile(
                        node=report.node,
                        path=file.path,
                        pod=self._name(report.node, file.uid),
                        size=file.size,
                        charged=file.charged,
                        quotas=payers[report.node, file.uid],
                        uid=file.uid,
                    )

    def _name(self, node: str, uid: str) -> str:
        if uid in self._pods:
            return str(self._pods[uid])
        entry = self._reported[uid][node]
        if entry.is_named and self._may_describe(node, uid):
            return entry.full_name
        line = self._snapshot.attribution.lines.get(uid)
        return uid if line is None else line.pod


def _merged(one: ReportedPod, other: ReportedPod) -> ReportedPod:
    """One entry for a UID that a report names twice."""
    named = one if one.is_named else other
    live, charged = one.live or other.live, one.charged + other.charged
    return replace(named, live=live, charged=charged)
