"""The node store keeps Nodes, reports and evidence, and notes the scope of the next count."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.controller.counting.changes import Changes
from hugetlb_quota.controller.counting.node_store import NodeStore, entries_by_uid
from hugetlb_quota.controller.counting.nodes import (
    NodeFacts,
    NodeReport,
    NodeSpec,
    ReportedFile,
    ReportedPod,
)
from hugetlb_quota.page_size import PageSize

KEY = QuotaKey("ns", "q")
CHARGE = Charge.from_resources({"hugepages-2Mi": "2Mi"})
NOW = datetime(2030, 1, 1, tzinfo=UTC)
NODE = NodeFacts("worker", "boot", out_of_service=False, version=3)
ENTRY = ReportedPod("uid", "ns", "pod", {}, live=True, charged=CHARGE)
REPORT = NodeReport("worker", NOW, "boot", 10, (ENTRY,))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def reported(clock: Clock | None = None) -> tuple[NodeStore, Changes]:
    changes = Changes()
    store = NodeStore(changes, clock or Clock())
    store.node_changed(None, NODE, 3)
    store.report_changed(None, REPORT)
    changes.take()
    return store, changes


def test_a_heartbeat_notes_nothing() -> None:
    store, changes = reported()
    store.report_changed(REPORT, replace(REPORT, reported_at=NOW + timedelta(minutes=1)))
    assert changes == Changes()


def test_a_report_that_has_seen_more_notes_only_that_the_node_advanced() -> None:
    store, changes = reported()
    store.report_changed(REPORT, replace(REPORT, pods_resource_version=11))
    assert changes == Changes(advanced={"worker"})
    store.report_changed(REPORT, replace(REPORT, pods_resource_version=9))
    assert changes.nodes == {"worker"}


def test_other_entries_note_their_uids_and_reporters() -> None:
    store, changes = reported()
    assert store.reporters == {"uid": ("worker",)}
    store.report_changed(REPORT, replace(REPORT, pods=()))
    assert store.reporters == {}
    assert changes == Changes(uids={"uid"}, node_specs={"worker"})


def test_a_uid_of_two_nodes_keeps_the_other_reporter_when_one_report_drops_the_pod() -> None:
    store, _ = reported()
    store.report_changed(None, replace(REPORT, node="other"))
    assert store.reporters == {"uid": ("worker", "other")}
    store.report_changed(REPORT, replace(REPORT, pods=()))
    assert store.reporters == {"uid": ("other",)}


def test_another_charge_of_a_file_notes_the_uid() -> None:
    store, changes = reported()
    file = ReportedFile("uid", "/huge/f", PageSize(2 << 20), 2 << 20)
    before = replace(REPORT, files=(file,))
    store.report_changed(REPORT, before)
    assert changes.take() == Changes(uids={"uid"})
    store.report_changed(before, replace(REPORT, files=(replace(file, charged=4 << 20),)))
    assert changes == Changes(uids={"uid"})


def test_the_first_report_of_a_node_changes_the_evidence() -> None:
    changes = Changes()
    store = NodeStore(changes, Clock())
    store.node_changed(None, NODE, 3)
    changes.take()
    assert not store.is_report_valid("worker")
    store.report_changed(None, replace(REPORT, pods=()))
    assert store.is_report_valid("worker")
    assert changes.nodes == {"worker"}


def test_a_node_that_is_out_of_service_invalidates_its_report() -> None:
    store, changes = reported()
    store.node_changed(NODE, replace(NODE, out_of_service=True), 4)
    assert not store.is_report_valid("worker")
    assert changes == Changes(nodes={"worker"}, node_specs={"worker"})


def test_a_new_node_is_noted() -> None:
    changes = Changes()
    NodeStore(changes, Clock()).node_changed(None, NODE, 3)
    assert changes == Changes(nodes={"worker"}, node_specs={"worker"})


def test_a_node_that_is_gone_with_its_report_leaves_no_evidence() -> None:
    store, changes = reported()
    store.node_changed(NODE, None, 4)
    store.report_changed(REPORT, None)
    assert changes.nodes == {"worker"}
    assert (store.nodes, store.reports, store.evidence, store.reporters) == ({}, {}, {}, {})


def test_evidence_from_scratch_is_the_same_evidence() -> None:
    store, _ = reported()
    kept = dict(store.evidence)
    store.rebuild_evidence()
    assert store.evidence == kept
    assert set(kept) == {"worker"}


def test_entries_by_uid_keep_both_entries_of_a_uid_that_a_report_names_twice() -> None:
    again = replace(ENTRY, live=False)
    assert entries_by_uid(replace(REPORT, pods=(ENTRY, again))) == {"uid": [ENTRY, again]}
    assert entries_by_uid(None) == {}


def test_other_heirs_are_noted() -> None:
    store, changes = reported()
    store.report_changed(REPORT, replace(REPORT, spec=NodeSpec(heirs={"uid": frozenset({KEY})})))
    assert changes == Changes(uids={"uid"}, node_specs={"worker"}, heirs=True)


def test_a_node_that_is_no_longer_awaited_is_noted_when_the_time_is_over() -> None:
    clock, changes = Clock(), Changes()
    store = NodeStore(changes, clock)
    store.node_changed(None, NODE, 3)
    assert store.evidence["worker"].awaited
    changes.take()
    store.time_passed()
    assert changes == Changes()
    clock.now += 3600
    store.time_passed()
    assert not store.evidence["worker"].awaited
    assert changes == Changes(nodes={"worker"}, node_specs={"worker"})
