"""reconcile: one test for each case. test_reconcile_machine.py tries the combinations."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.volume import Volume
from hugetlb_quota.agent.last_report import adopt
from hugetlb_quota.agent.pods import SeenPod
from hugetlb_quota.agent.reading import SYSTEM, ChargedFile, Reading
from hugetlb_quota.agent.reconcile import LARGEST, reconcile
from hugetlb_quota.agent.report import NO_REPORT, Entry, Report
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.page_size import PageSize

SMALL = PageSize(2 << 20)
NOW = datetime(2026, 11, 26, 8, 0, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
MOUNT = Superblock(7, SMALL, None, 0, "/mnt/huge", Path("/mnt/huge"))


def charge(mib: int) -> Charge:
    return Charge({SMALL: mib << 20})


def seen(uid: str = "u", *, ended: bool = False, **more: Any) -> dict[str, SeenPod]:
    pod = replace(Pod(uid, "ns", f"name-of-{uid}", 1, {"a": "b"}, demand=charge(8)), **more)
    return {pod.cgroup_uid: SeenPod(pod, ended)}


def entry(uid: str = "u", **more: Any) -> Entry:
    named = Entry(uid, "ns", f"name-of-{uid}", {"a": "b"}, demand=charge(8), charged=charge(4))
    named = replace(named, live=True)
    return replace(named, **more)


def last(*entries: Entry) -> Report:
    return Report({each.cgroup_uid: each for each in entries})


def one(report: Report) -> Entry:
    (found,) = report.entries.values()
    return found


GONE: dict[str, Any] = {"live": False, "ended_at": NOW}


def test_lists_a_pod_with_demand_before_it_has_a_cgroup() -> None:
    found = one(reconcile(Reading(), seen(), NO_REPORT, NOW))
    assert found == entry(charged=Charge())


def test_lists_a_pod_without_demand_only_if_it_is_charged() -> None:
    reading = Reading(populated={"u": True})
    assert reconcile(reading, seen(demand=Charge()), NO_REPORT, NOW).entries == {}
    reading = replace(reading, charged={"u": charge(2)})
    assert one(reconcile(reading, seen(demand=Charge()), NO_REPORT, NOW)).charged == charge(2)


def test_lists_a_pod_with_a_malformed_request() -> None:
    pods = seen(demand=Charge(), malformed="?")
    assert one(reconcile(Reading(), pods, NO_REPORT, NOW)).live


@pytest.mark.parametrize("in_api", [True, False], ids=["in the API", "deleted while no agent ran"])
def test_a_pod_that_left_pages_ends_now(in_api: bool) -> None:
    reading = Reading(charged={"u": charge(4)})
    found = one(reconcile(reading, seen(ended=True) if in_api else {}, last(entry()), NOW))
    assert found == entry(**GONE)


def test_keeps_the_time_of_the_end_and_takes_the_charge_of_the_kernel() -> None:
    reading = Reading(charged={"u": charge(2)})
    found = one(reconcile(reading, {}, last(entry(**GONE)), LATER))
    assert found == entry(live=False, ended_at=NOW, charged=charge(2))


def test_drops_a_gone_pod_that_left_nothing() -> None:
    assert reconcile(Reading(), {}, last(entry()), NOW).entries == {}
    assert reconcile(Reading(), seen(ended=True), last(entry(**GONE)), NOW).entries == {}


def test_a_process_in_the_cgroup_keeps_the_pod_live() -> None:
    reading = Reading(populated={"u": True})
    assert one(reconcile(reading, seen(ended=True), NO_REPORT, NOW)).live
    assert one(reconcile(reading, {}, last(entry()), NOW)).name == "name-of-u"
    # A pod that was deleted while no agent ran, and was never reported, may still get huge pages.
    assert one(reconcile(reading, {}, NO_REPORT, NOW)) == Entry("u", live=True)


def test_ignores_an_empty_cgroup_that_kubelet_left_behind() -> None:
    reading = Reading(populated={"u": False})
    assert reconcile(reading, seen(ended=True), last(entry()), NOW).entries == {}
    assert reconcile(reading, {}, NO_REPORT, NOW).entries == {}
    charged = replace(reading, charged={"u": charge(4)})
    assert one(reconcile(charged, seen(ended=True), last(entry()), NOW)) == entry()
    # The cgroup may also belong to a pod that has not ended.
    assert one(reconcile(reading, seen(), NO_REPORT, NOW)).live


def test_lists_a_nameless_pod_by_its_uid() -> None:
    """Such a pod came and went after a boot and before the agent's first report."""
    reading = Reading(charged={"u": charge(4)})
    found = one(reconcile(reading, {}, NO_REPORT, NOW))
    assert found == Entry("u", charged=charge(4), live=False, ended_at=NOW)
    named = one(reconcile(reading, seen(ended=True), last(found), LATER))
    assert named == entry(**GONE)


def test_keeps_the_last_labels() -> None:
    reading = Reading(charged={"u": charge(4)})
    found = one(reconcile(reading, seen(labels={"a": "c"}), last(entry()), NOW))
    assert found.labels == {"a": "c"}
    assert one(reconcile(reading, {}, last(found), NOW)).labels == {"a": "c"}


def test_lists_a_static_pod_with_both_uids() -> None:
    reading = Reading(populated={"hash": True}, charged={"hash": charge(4)})
    found = one(reconcile(reading, seen("mirror", static_hash="hash"), NO_REPORT, NOW))
    assert (found.uid, found.cgroup, found.live) == ("mirror", "hash", True)
    # The mirror pod is deleted while no agent runs.
    assert one(reconcile(reading, {}, last(found), NOW)) == found
    # A new mirror pod comes.
    again = one(reconcile(reading, seen("new", static_hash="hash"), last(found), NOW))
    assert (again.uid, again.cgroup) == ("new", "hash")


def test_a_pod_that_runs_again_has_no_end() -> None:
    reading = Reading(populated={"u": True})
    found = one(reconcile(reading, {}, last(entry(**GONE)), LATER))
    assert (found.live, found.ended_at) == (True, None)


def test_keeps_the_charge_that_a_reading_may_lack() -> None:
    reading = Reading(whole=False, missing=charge(64))
    assert one(reconcile(reading, {}, last(entry(**GONE)), LATER)) == entry(**GONE)
    # The reading may lack a part. The pod keeps at most the missing part, and at most its charge.
    part = replace(reading, charged={"u": charge(1)})
    assert one(reconcile(part, {}, last(entry(**GONE)), LATER)) == entry(**GONE)
    part = replace(part, missing=charge(2))
    assert one(reconcile(part, {}, last(entry(**GONE)), LATER)).charged == charge(3)


def test_drops_a_gone_pod_if_the_counters_prove_that_nothing_is_missing() -> None:
    """The reading is not whole, because a live pod has more mappings than the reader looks at."""
    reading = Reading(populated={"l": True}, charged={"l": charge(8)}, whole=False)
    report = reconcile(reading, {}, last(entry("l"), entry(**GONE)), NOW)
    assert report.entries.keys() == {"l"}


def test_without_a_list_gone_pods_keep_their_charge_within_the_bound() -> None:
    reading = Reading(populated={"l": True}, charged={"l": charge(2)}, bound=charge(6))
    gone = entry("g", charged=charge(4), live=False)
    before = last(entry("l"), gone, entry("h", charged=charge(16)))
    report = reconcile(reading, {}, before, NOW)
    assert {uid: each.charged for uid, each in report.entries.items()} == {
        "l": charge(2),
        "g": charge(4),
        "h": charge(6),
    }
    assert report.unlisted == Charge()
    # The rest of the bound belongs to no listed pod.
    assert reconcile(reading, {}, last(entry("l")), NOW).unlisted == charge(6)
    assert reconcile(replace(reading, bound=charge(0)), {}, before, NOW).entries.keys() == {"l"}


def test_without_a_list_an_unseen_end_may_leave_the_whole_demand() -> None:
    reading = Reading(bound=charge(64))
    live = replace(entry("p", charged=charge(2)), live=True, ended_at=None, demand=charge(32))
    assert one(reconcile(reading, {}, last(live), NOW)).charged == charge(32)
    # If an agent saw the end, the pod keeps the charge of that report.
    gone = replace(live, live=False, ended_at=NOW)
    assert one(reconcile(reading, {}, last(gone), NOW)).charged == charge(2)


def file(path: str = "f", mount: Superblock | None = MOUNT, **charged: int) -> ChargedFile:
    owners = {SYSTEM if owner == "system" else owner: mib << 20 for owner, mib in charged.items()}
    return ChargedFile(path, mount, SMALL, 7, 1, owners)


def test_lists_files_with_the_pods_that_are_charged() -> None:
    reading = Reading(
        charged={"u": charge(2), "hash": charge(4)},
        files=(file("f", u=2, system=8), file("memfd:x", None, hash=4)),
    )
    pods = seen("mirror", static_hash="hash")
    report = reconcile(reading, pods, NO_REPORT, NOW)
    assert [(f.key.mount, f.key.path, f.key.uid, f.charged >> 20) for f in report.files] == [
        ("/mnt/huge", "f", "", 8),
        ("", "memfd:x", "mirror", 4),
        ("/mnt/huge", "f", "u", 2),
    ]
    again = reconcile(reading, pods, report, LATER)
    assert {f.since for f in again.files} == {NOW}


def test_remembers_a_volume_and_finds_a_volume_of_kubelet() -> None:
    reading = Reading(charged={"u": charge(2)}, files=(file(u=2),))
    report = reconcile(reading, seen(volumes=(Volume("v", "/mnt/huge"),)), NO_REPORT, NOW)
    assert [f.volume for f in report.files] == ["v"]
    assert [f.volume for f in reconcile(reading, {}, report, LATER).files] == ["v"]
    point = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/e"
    reading = replace(reading, files=(file("f", replace(MOUNT, point=point), u=2),))
    assert [f.volume for f in reconcile(reading, {}, NO_REPORT, NOW).files] == ["e"]


def test_lists_the_largest_files_and_joins_files_of_one_name() -> None:
    many = tuple(file(f"f{number:03}", u=2 + number) for number in range(LARGEST + 9))
    report = reconcile(Reading(charged={"u": charge(2)}, files=many), {}, NO_REPORT, NOW)
    assert len(report.files) == LARGEST
    assert report.files[0].key.path == f"f{LARGEST + 8:03}"
    two = (file("memfd:x", None, u=2), file("memfd:x", None, u=4))
    report = reconcile(Reading(charged={"u": charge(6)}, files=two), {}, NO_REPORT, NOW)
    assert [f.charged >> 20 for f in report.files] == [6]


def test_lists_a_file_with_a_binary_name_and_a_deleted_file() -> None:
    files = (file("a\udcff" + "x" * 300, u=4), replace(file("was", u=2), linked=False))
    report = reconcile(Reading(charged={"u": charge(6)}, files=files), {}, NO_REPORT, NOW)
    long, gone = (f.key.path for f in report.files)
    assert long == "…" + "x" * 255
    assert gone == "was (deleted)"


def test_takes_names_from_a_report_before_the_boot() -> None:
    reading = Reading(
        populated={"u": True, "hash": True},
        charged={"u": charge(4), "hash": charge(2)},
        files=(file(u=4),),
        system=charge(2),
    )
    pods = {**seen(), **seen("mirror", static_hash="hash")}
    before = adopt(as_status(reconcile(reading, pods, NO_REPORT, NOW)), "another boot")
    assert reconcile(Reading(), {}, before, LATER) == NO_REPORT
    # Kubelet starts the pod again, the pod is deleted, and then the agent starts.
    left = Reading(charged={"u": charge(8)}, populated={"hash": True})
    report = reconcile(left, {}, before, LATER)
    assert report.entries["u"] == Entry(
        "u", "ns", "name-of-u", {"a": "b"}, charged=charge(8), ended_at=LATER
    )
    assert (report.entries["hash"].uid, report.entries["hash"].live) == ("mirror", True)
    # With counters alone the pod is dropped, because its last report was before the boot.
    report = reconcile(Reading(bound=charge(64)), {}, before, LATER)
    assert (report.entries, report.unlisted) == ({}, charge(64))


def as_status(report: Report) -> dict[str, Any]:
    return {
        "bootID": "boot",
        "pods": [each.to_status().to_json() for each in report.entries.values()],
        "files": [each.to_status().to_json() for each in report.files],
    }
