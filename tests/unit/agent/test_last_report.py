"""The last report is read back from a status that any agent of any release may have written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.agent.last_report import adopt
from hugetlb_quota.agent.report import NO_REPORT, Entry, FileEntry, FileKey, Report
from hugetlb_quota.page_size import PageSize

SMALL, LARGE = PageSize(2 << 20), PageSize(1 << 30)
NOW = datetime(2026, 11, 26, 8, 0, 0, tzinfo=UTC)
GONE = Entry("gone", "ns", "was", {"a": "b"}, charged=Charge({SMALL: 2 << 20}), ended_at=NOW)
STATIC = Entry(
    "mirror",
    "ns",
    "static",
    {},
    "hash",
    True,
    demand=Charge({LARGE: 2 << 30}),
    charged=Charge({LARGE: 1 << 30}),
    labels_left_out=3,
)
FILE = FileEntry(FileKey("/mnt/huge", "f", SMALL.resource, "gone"), 2 << 20, "v", NOW)
REPORT = Report({"gone": GONE, "hash": STATIC}, (FILE,))


def as_status(report: Report) -> dict[str, Any]:
    return {
        "bootID": "boot",
        "pods": [each.to_status().to_json() for each in report.entries.values()],
        "files": [each.to_status().to_json() for each in report.files],
    }


def test_adopts_its_own_report() -> None:
    assert adopt(as_status(REPORT), "boot") == REPORT


def test_keeps_only_the_names_of_pods_after_a_boot() -> None:
    gone = replace(GONE, charged=NOTHING, ended_at=None)
    static = replace(STATIC, live=False, demand=NOTHING, charged=NOTHING)
    assert adopt(as_status(REPORT), "another boot") == Report({"gone": gone, "hash": static})


def test_a_report_without_a_boot_is_of_another_boot() -> None:
    status = as_status(REPORT)
    del status["bootID"]
    report = adopt(status, "boot")
    assert not any(each.charged for each in report.entries.values())
    assert report.files == ()


def test_ignores_fields_and_page_sizes_of_a_newer_release() -> None:
    status = as_status(REPORT)
    for row in (*status["pods"], *status["files"]):
        row["newer"] = {"a": 1}
    status["pods"][0]["charged"]["hugepages-3Mi"] = "3Mi"
    assert adopt(status, "boot") == REPORT


@pytest.mark.parametrize("status", [{}, {"pods": 7, "files": {}}, {"pods": None, "files": "f"}])
def test_a_status_without_rows_has_no_report(status: dict[str, Any]) -> None:
    assert adopt({"bootID": "boot", **status}, "boot") == NO_REPORT


@pytest.mark.parametrize("row", [None, 3, [], {}, {"uid": 5, "live": True}, {"uid": "", "live": 1}])
def test_leaves_out_a_pod_that_cannot_be_read(row: object) -> None:
    status = as_status(REPORT)
    status["pods"].insert(0, row)
    assert adopt(status, "boot") == REPORT


@pytest.mark.parametrize("change", [{"charged": "?"}, {"since": "when"}, {"path": None}])
def test_leaves_out_a_file_that_cannot_be_read(change: dict[str, Any]) -> None:
    status = as_status(REPORT)
    status["files"].append(status["files"][0] | {"path": "g"} | change)
    assert adopt(status, "boot") == REPORT


def test_keeps_a_pod_with_an_amount_that_cannot_be_read() -> None:
    """The kernel shows the charge, but the API may no longer have the pod's name."""
    status = as_status(REPORT)
    status["pods"][0]["charged"] = {SMALL.resource: "many"}
    assert adopt(status, "boot").entries["gone"] == replace(GONE, charged=NOTHING)


def test_a_time_without_a_zone_is_in_utc() -> None:
    status = as_status(REPORT)
    status["pods"][0]["endedAt"] = status["files"][0]["since"] = "2026-11-26T08:00:00"
    assert adopt(status, "boot") == REPORT
