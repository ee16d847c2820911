"""Compares reconcile with a model, through any sequence of changes of the node and the agent.

The model remembers the pods of the API, the cgroups that exist, and the charge of each cgroup,
also of cgroups that are gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.agent.last_report import adopt
from hugetlb_quota.agent.pods import NodePods
from hugetlb_quota.agent.reading import SYSTEM, ChargedFile, Reading
from hugetlb_quota.agent.reconcile import reconcile
from hugetlb_quota.agent.report import NO_REPORT, Report
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.page_size import PageSize

SMALL = PageSize(2 << 20)
BEGIN = datetime(2026, 11, 26, tzinfo=UTC)
UIDS = ["first", "second", "static"]
#: The static pod, with the hash in the name of its cgroup.
STATIC = {"static": "hash"}

uids = st.sampled_from(UIDS)
#: What the agent does after a change. "look" is a pass. In a "torn" pass the reading
#: lacks the charge of a gone pod; a "cut" reading is not whole but lacks nothing of gone pods. An
#: "unwritten" pass writes no report. "restart" starts the agent again and makes a pass, and "away"
#: stops the agent.
turns = st.sampled_from(["look", "look", "torn", "cut", "unwritten", "restart", "away", "nothing"])


def cgroup_of(uid: str) -> str:
    return STATIC.get(uid, uid)


def charge(pages: int) -> Charge:
    return Charge({SMALL: pages * SMALL.bytes})


@dataclass
class Kernel:
    """The cgroups of the node, and the charged pages by file and by the UID of the cgroup."""

    populated: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    private: dict[str, int] = field(default_factory=dict)

    def charged(self) -> dict[str, int]:
        amounts: dict[str, int] = dict(self.private)
        for owners in self.files.values():
            for owner, pages in owners.items():
                amounts[owner] = amounts.get(owner, 0) + pages
        return {owner: pages for owner, pages in amounts.items() if pages}


def _in_bytes(owners: dict[str, int]) -> Iterator[tuple[str, int]]:
    for owner, pages in owners.items():
        yield owner, pages * SMALL.bytes


class Node(RuleBasedStateMachine):
    """The API, the kernel and the agent, and the invariants of each report."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel()
        self.api: dict[str, Pod] = {}
        self.version = 1
        self.now = BEGIN
        self.pods: NodePods | None = NodePods()
        self.report: Report = NO_REPORT
        self.written: dict[str, Any] = {}
        #: By the UID of the cgroup: the pod as the agent saw it at the last report of the pod.
        self.names: dict[str, Pod] = {}
        self.names_written: dict[str, Pod] = {}
        self.passed = False

    # The API

    @rule(uid=uids, demands=st.booleans(), starts=st.booleans(), turn=turns)
    def bind(self, uid: str, demands: bool, starts: bool, turn: str) -> None:
        if uid not in self.api and cgroup_of(uid) not in self.kernel.charged():
            # A UID belongs to one pod, so a charged UID is not used again.
            self.version += 1
            demand = charge(4) if demands else NOTHING
            static = STATIC.get(uid)
            self.api[uid] = Pod(
                uid, "ns", f"n-{uid}", self.version, {}, demand=demand, static_hash=static
            )
            self._show(None, self.api[uid])
            if starts:
                self.kernel.populated[cgroup_of(uid)] = True
        self._turn(turn)

    @rule(uid=uids, label=st.sampled_from("abc"), turn=turns)
    def relabel(self, uid: str, label: str, turn: str) -> None:
        self._change(uid, labels={"l": label})
        self._turn(turn)

    @rule(uid=uids, deleted=st.booleans(), turn=turns)
    def end_in_the_api(self, uid: str, deleted: bool, turn: str) -> None:
        if not deleted:
            self._change(uid, finished=True)
        elif (old := self.api.pop(uid, None)) is not None:
            self._show(old, None)
        self._turn(turn)

    def _change(self, uid: str, **changes: Any) -> None:
        if (old := self.api.get(uid)) is not None:
            self.api[uid] = replace(old, **changes)
            self._show(old, self.api[uid])

    def _show(self, old: Pod | None, new: Pod | None) -> None:
        if self.pods is not None:
            self.pods.changed(old, new)

    # Kubelet and the programs

    @rule(uid=uids, turn=turns)
    def start(self, uid: str, turn: str) -> None:
        if uid in self.api and not self.api[uid].finished:
            self.kernel.populated[cgroup_of(uid)] = True
        self._turn(turn)

    @rule(uid=uids, removed=st.booleans(), turn=turns)
    def processes_end(self, uid: str, removed: bool, turn: str) -> None:
        cgroup = cgroup_of(uid)
        if cgroup in self.kernel.populated:
            self.kernel.populated[cgroup] = False
            self.kernel.private.pop(cgroup, None)
            if removed:
                del self.kernel.populated[cgroup]
        self._turn(turn)

    @rule(uid=st.sampled_from([*UIDS, SYSTEM]), file=st.sampled_from("xy"), turn=turns)
    def fill(self, uid: str, file: str, turn: str) -> None:
        owner = cgroup_of(uid)
        if owner == SYSTEM or self.kernel.populated.get(owner):
            owners = self.kernel.files.setdefault(file, {})
            owners[owner] = owners.get(owner, 0) + 2
        self._turn(turn)

    @rule(uid=uids, turn=turns)
    def map_private(self, uid: str, turn: str) -> None:
        if self.kernel.populated.get(cgroup_of(uid)):
            self.kernel.private[cgroup_of(uid)] = 3
        self._turn(turn)

    @rule(file=st.sampled_from("xy"), whole=st.booleans(), turn=turns)
    def truncate(self, file: str, whole: bool, turn: str) -> None:
        owners = self.kernel.files.get(file, {})
        self.kernel.files[file] = {} if whole else {o: n - 1 for o, n in owners.items() if n > 1}
        self._turn(turn)

    # The agent

    def _turn(self, turn: str) -> None:
        self.passed = False
        if turn in ("away", "restart"):
            self.pods = None
        if turn not in ("away", "nothing") and self.pods is None:
            self.pods = NodePods()
            for pod in self.api.values():
                self.pods.changed(None, pod)
            self.report, self.names = adopt(self.written, "boot"), dict(self.names_written)
        if turn not in ("away", "nothing"):
            self._look(torn=turn == "torn", cut=turn == "cut")
            if turn != "unwritten":
                self._write()

    def _look(self, *, torn: bool, cut: bool) -> None:
        """Make a pass. A torn reading lacks the charge of a gone pod."""
        assert self.pods is not None
        self.now += timedelta(seconds=1)
        charged = self.kernel.charged()
        reading = Reading(
            populated=dict(self.kernel.populated),
            charged={owner: charge(pages) for owner, pages in charged.items() if owner != SYSTEM},
            system=charge(charged.get(SYSTEM, 0)),
            files=tuple(self._files()),
        )
        gone = sorted(charged.keys() - self.kernel.populated.keys() - {SYSTEM})
        torn = torn and bool(gone)
        if torn:
            kept = {uid: each for uid, each in reading.charged.items() if uid != gone[0]}
            lacks = reading.charged[gone[0]]
            reading = replace(reading, charged=kept, whole=False, missing=lacks)
        elif cut:
            reading = replace(reading, whole=False)
        before = self.report
        self.pods.remember(before.static, before.real)
        seen = self.pods.seen()
        self.report = reconcile(reading, seen, before, self.now)
        self.pods.forget(self.report.entries.keys() | reading.populated.keys(), seen)
        for uid in self.report.entries.keys() & seen.keys():
            self.names[uid] = seen[uid].pod
        for uid in self.names.keys() - self.report.entries.keys():
            assert not charged.get(uid)
            del self.names[uid]
        self._compare_ends(before)
        self.passed = not torn

    def _write(self) -> None:
        pods = [each.to_status().to_json() for each in self.report.entries.values()]
        files = [each.to_status().to_json() for each in self.report.files]
        self.names_written = dict(self.names)
        self.written = json.loads(json.dumps({"bootID": "boot", "pods": pods, "files": files}))
        assert adopt(self.written, "boot") == Report(self.report.entries, self.report.files)

    def _files(self) -> list[ChargedFile]:
        return [
            ChargedFile(path, None, SMALL, 7, number, dict(_in_bytes(owners)))
            for number, (path, owners) in enumerate(self.kernel.files.items())
            if owners
        ]

    def _compare_ends(self, before: Report) -> None:
        """Check that a reported end does not change, unless the pod runs again."""
        for uid, entry in self.report.entries.items():
            assert (entry.ended_at is None) == entry.live
            former = before.entries.get(uid)
            if former is not None and not former.live and not entry.live:
                assert entry.ended_at == former.ended_at

    # The invariants after a pass over a node without changes

    @invariant()
    def no_charged_entry_is_lost(self) -> None:
        """A charged entry stays, also if a reading was not whole."""
        if self.pods is None:
            return
        for uid, pod in self.names.items():
            entry = self.report.entries[uid]
            assert (entry.uid, entry.name) == (pod.uid, pod.name)
            assert entry.labels == pod.labels

    @invariant()
    def each_charge_of_the_kernel_is_in_one_entry(self) -> None:
        if not self.passed:
            return
        charged = self.kernel.charged()
        system = charged.pop(SYSTEM, 0)
        entries = self.report.entries
        assert {uid: each.charged for uid, each in entries.items() if each.charged} == {
            uid: charge(pages) for uid, pages in charged.items()
        }
        assert self.report.system == charge(system).without_zeros()
        assert len({each.uid for each in entries.values()}) == len(entries)

    @invariant()
    def live_pods_are_listed_and_gone_pods_leave_with_their_last_page(self) -> None:
        if not self.passed:
            return
        entries, charged = self.report.entries, self.kernel.charged()
        for uid in {cgroup_of(each) for each in UIDS}:
            pod = next((each for each in self.api.values() if each.cgroup_uid == uid), None)
            running = pod is not None and not pod.finished
            populated = self.kernel.populated.get(uid, False)
            there = uid in self.kernel.populated and bool(charged.get(uid))
            live = running or populated or there
            if uid in entries:
                assert entries[uid].live == live
                assert live or entries[uid].charged
            elif live:
                assert not charged.get(uid)
                assert pod is None or not pod.demand

    @invariant()
    def the_listed_files_are_the_files_of_the_kernel(self) -> None:
        if not self.passed:
            return
        listed = {(f.key.path, f.key.uid): f.charged for f in self.report.files}
        owners = {uid: each.uid for uid, each in self.report.entries.items()}
        assert listed == {
            (file.path, owners.get(owner, owner)): amount
            for file in self._files()
            for owner, amount in file.charged.items()
        }


Node.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestNode = Node.TestCase
