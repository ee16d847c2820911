"""What is reported: of each case one."""

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
from hugetlb_quota.agent.reclaim import due_files, due_pods
from hugetlb_quota.agent.reconcile import LARGEST, reconcile
from hugetlb_quota.agent.report import NO_REPORT, Entry, Report
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.page_size import PageSize

SMALL, LARGE = PageSize(2 << 20), PageSize(1 << 30)
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


def test_a_pod_that_asks_is_there_before_its_cgroup_is() -> None:
    found = one(reconcile(Reading(), seen(), NO_REPORT, NOW))
    assert found == entry(charged=Charge())


def test_one_that_asks_for_nothing_is_not_unless_it_is_charged() -> None:
    reading = Reading(populated={"u": True})
    assert reconcile(reading, seen(demand=Charge()), NO_REPORT, NOW).entries == {}
    reading = replace(reading, charged={"u": charge(2)})
    assert one(reconcile(reading, seen(demand=Charge()), NO_REPORT, NOW)).charged == charge(2)


def test_one_whose_request_can_not_be_understood_may_ask() -> None:
    pods = seen(demand=Charge(), malformed="?")
    assert one(reconcile(Reading(), pods, NO_REPORT, NOW)).live


@pytest.mark.parametrize("known", [True, False], ids=["in the API", "deleted while away"])
def test_one_that_left_something_is_gone_since_now(known: bool) -> None:
    reading = Reading(charged={"u": charge(4)})
    found = one(reconcile(reading, seen(ended=True) if known else {}, last(entry()), NOW))
    assert found == entry(**GONE)


def test_its_end_stays_and_what_it_left_is_as_the_kernel_says() -> None:
    reading = Reading(charged={"u": charge(2)})
    found = one(reconcile(reading, {}, last(entry(**GONE)), LATER))
    assert found == entry(live=False, ended_at=NOW, charged=charge(2))


def test_one_that_left_nothing_leaves() -> None:
    assert reconcile(Reading(), {}, last(entry()), NOW).entries == {}
    assert reconcile(Reading(), seen(ended=True), last(entry(**GONE)), NOW).entries == {}


def test_a_process_in_its_cgroup_keeps_it_whatever_the_api_says() -> None:
    reading = Reading(populated={"u": True})
    assert one(reconcile(reading, seen(ended=True), NO_REPORT, NOW)).live
    assert one(reconcile(reading, {}, last(entry()), NOW)).name == "name-of-u"
    # Deleted while no agent ran, and never reported: it may have huge pages yet.
    assert one(reconcile(reading, {}, NO_REPORT, NOW)) == Entry("u", live=True)


def test_an_empty_cgroup_that_kubelet_left_behind_is_none() -> None:
    reading = Reading(populated={"u": False})
    assert reconcile(reading, seen(ended=True), last(entry()), NOW).entries == {}
    assert reconcile(reading, {}, NO_REPORT, NOW).entries == {}
    charged = replace(reading, charged={"u": charge(4)})
    assert one(reconcile(charged, seen(ended=True), last(entry()), NOW)) == entry()
    # Of one that has not ended it is that pod's.
    assert one(reconcile(reading, seen(), NO_REPORT, NOW)).live


def test_one_that_no_report_and_no_informer_named_is_told_by_its_uid() -> None:
    """It came and went after a reboot, and before the agent's first report."""
    reading = Reading(charged={"u": charge(4)})
    found = one(reconcile(reading, {}, NO_REPORT, NOW))
    assert found == Entry("u", charged=charge(4), live=False, ended_at=NOW)
    named = one(reconcile(reading, seen(ended=True), last(found), LATER))
    assert named == entry(**GONE)


def test_labels_are_as_they_were_seen_last() -> None:
    reading = Reading(charged={"u": charge(4)})
    found = one(reconcile(reading, seen(labels={"a": "c"}), last(entry()), NOW))
    assert found.labels == {"a": "c"}
    assert one(reconcile(reading, {}, last(found), NOW)).labels == {"a": "c"}


def test_a_static_pod_is_told_by_both_its_uids() -> None:
    reading = Reading(populated={"hash": True}, charged={"hash": charge(4)})
    found = one(reconcile(reading, seen("mirror", static_hash="hash"), NO_REPORT, NOW))
    assert (found.uid, found.cgroup, found.live) == ("mirror", "hash", True)
    # Its mirror is deleted while no agent runs.
    assert one(reconcile(reading, {}, last(found), NOW)) == found
    # And made anew.
    again = one(reconcile(reading, seen("anew", static_hash="hash"), last(found), NOW))
    assert (again.uid, again.cgroup) == ("anew", "hash")


def test_one_that_runs_again_has_not_ended() -> None:
    reading = Reading(populated={"u": True})
    found = one(reconcile(reading, {}, last(entry(**GONE)), LATER))
    assert (found.live, found.ended_at) == (True, None)


def test_what_a_reading_may_lack_is_as_it_was() -> None:
    reading = Reading(whole=False, missing=charge(64))
    assert one(reconcile(reading, {}, last(entry(**GONE)), LATER)) == entry(**GONE)
    # Of a part of it too; and never more than may be missing, or than it held.
    part = replace(reading, charged={"u": charge(1)})
    assert one(reconcile(part, {}, last(entry(**GONE)), LATER)) == entry(**GONE)
    part = replace(part, missing=charge(2))
    assert one(reconcile(part, {}, last(entry(**GONE)), LATER)).charged == charge(3)


def test_one_of_which_the_counters_prove_that_nothing_is_missing_goes() -> None:
    """Though the reading is not whole: a live pod has more mappings than are looked at."""
    reading = Reading(populated={"l": True}, charged={"l": charge(8)}, whole=False)
    report = reconcile(reading, {}, last(entry("l"), entry(**GONE)), NOW)
    assert report.entries.keys() == {"l"}


def test_without_a_list_the_gone_hold_what_they_did_within_what_is_left() -> None:
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
    # What none of them held is nobody's that is known.
    assert reconcile(reading, {}, last(entry("l")), NOW).unlisted == charge(6)
    assert reconcile(replace(reading, bound=charge(0)), {}, before, NOW).entries.keys() == {"l"}


def test_without_a_list_one_that_ended_unseen_may_hold_all_that_it_asked_for() -> None:
    reading = Reading(bound=charge(64))
    live = replace(entry("p", charged=charge(2)), live=True, ended_at=None, demand=charge(32))
    assert one(reconcile(reading, {}, last(live), NOW)).charged == charge(32)
    # Its end was seen: by then it held what was reported.
    gone = replace(live, live=False, ended_at=NOW)
    assert one(reconcile(reading, {}, last(gone), NOW)).charged == charge(2)


def file(path: str = "f", mount: Superblock | None = MOUNT, **charged: int) -> ChargedFile:
    owners = {SYSTEM if owner == "system" else owner: mib << 20 for owner, mib in charged.items()}
    return ChargedFile(path, mount, SMALL, 7, 1, owners)


def test_files_are_told_with_whom_they_are_charged_to() -> None:
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


def test_a_volume_is_remembered_and_one_of_kubelets_is_seen() -> None:
    reading = Reading(charged={"u": charge(2)}, files=(file(u=2),))
    report = reconcile(reading, seen(volumes=(Volume("v", "/mnt/huge"),)), NO_REPORT, NOW)
    assert [f.volume for f in report.files] == ["v"]
    assert [f.volume for f in reconcile(reading, {}, report, LATER).files] == ["v"]
    point = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/e"
    reading = replace(reading, files=(file("f", replace(MOUNT, point=point), u=2),))
    assert [f.volume for f in reconcile(reading, {}, NO_REPORT, NOW).files] == ["e"]


def test_the_largest_files_are_told_and_those_of_one_name_together() -> None:
    many = tuple(file(f"f{number:03}", u=2 + number) for number in range(LARGEST + 9))
    report = reconcile(Reading(charged={"u": charge(2)}, files=many), {}, NO_REPORT, NOW)
    assert len(report.files) == LARGEST
    assert report.files[0].key.path == f"f{LARGEST + 8:03}"
    two = (file("memfd:x", None, u=2), file("memfd:x", None, u=4))
    report = reconcile(Reading(charged={"u": charge(6)}, files=two), {}, NO_REPORT, NOW)
    assert [f.charged >> 20 for f in report.files] == [6]


def test_a_name_that_is_no_text_and_one_that_is_gone() -> None:
    files = (file("a\udcff" + "x" * 300, u=4), replace(file("was", u=2), linked=False))
    report = reconcile(Reading(charged={"u": charge(6)}, files=files), {}, NO_REPORT, NOW)
    long, gone = (f.key.path for f in report.files)
    assert long == "…" + "x" * 255
    assert gone == "was (deleted)"


def test_due_are_those_that_are_gone_so_long() -> None:
    report = last(
        entry("old", **GONE),
        entry("live"),
        entry("young", live=False, ended_at=LATER),
        entry("kept", **GONE),
        entry("mirror", cgroup="hash", **GONE),
    )
    waits = dict.fromkeys(("old", "live", "young", "mirror"), timedelta(minutes=5))
    assert due_pods(report, waits, LATER) == {"old", "hash"}
    assert due_pods(report, waits, LATER - timedelta(seconds=1)) == frozenset()


def test_a_file_is_due_when_all_are_who_are_charged_for_it() -> None:
    files = [file("a", u=2), file("b", u=2, v=2), file("c", u=2, system=2), file("d")]
    assert [f.path for f in due_files(files, {"u"})] == ["a"]
    assert [f.path for f in due_files(files, {"u", "v"})] == ["a", "b"]


def test_a_report_goes_on_from_itself() -> None:
    reading = Reading(
        populated={"l": True},
        charged={"u": charge(2), "l": Charge({LARGE: 1 << 30})},
        files=(file(u=2),),
        system=charge(4),
    )
    report = reconcile(reading, {**seen(ended=True), **seen("l")}, last(entry(**GONE)), LATER)
    assert adopt(as_status(report), "boot") == replace(report, system=Charge())


def test_after_a_boot_the_last_report_tells_names_and_nothing_else() -> None:
    reading = Reading(
        populated={"u": True, "hash": True},
        charged={"u": charge(4), "hash": charge(2)},
        files=(file(u=4),),
        system=charge(2),
    )
    pods = {**seen(), **seen("mirror", static_hash="hash")}
    before = adopt(as_status(reconcile(reading, pods, NO_REPORT, NOW)), "another boot")
    assert reconcile(Reading(), {}, before, LATER) == NO_REPORT
    # Kubelet started it anew, it was deleted, and then the agent starts.
    left = Reading(charged={"u": charge(8)}, populated={"hash": True})
    report = reconcile(left, {}, before, LATER)
    assert report.entries["u"] == Entry(
        "u", "ns", "name-of-u", {"a": "b"}, charged=charge(8), ended_at=LATER
    )
    assert (report.entries["hash"].uid, report.entries["hash"].live) == ("mirror", True)
    # Not so where the counters alone are read: it had nothing that it may hold still.
    report = reconcile(Reading(bound=charge(64)), {}, before, LATER)
    assert (report.entries, report.unlisted) == ({}, charge(64))


def test_fields_of_a_newer_release_are_passed_over() -> None:
    report = reconcile(
        Reading(charged={"u": charge(2)}, files=(file(u=2),)), seen(), NO_REPORT, NOW
    )
    status = as_status(report)
    for row in (*status["pods"], *status["files"]):
        row["newer"] = {"a": 1}
    status["pods"][0]["charged"]["hugepages-3Mi"] = "3Mi"
    assert adopt(status, "boot") == report


def as_status(report: Report) -> dict[str, Any]:
    return {
        "bootID": "boot",
        "pods": [each.to_status().to_json() for each in report.entries.values()],
        "files": [each.to_status().to_json() for each in report.files],
    }
