"""Reading reports and Nodes: the last readable report stays in force."""

from __future__ import annotations

from copy import deepcopy
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.controller.counting.nodes import (
    NodeReport,
    ReportedFile,
    ReportedPod,
    project_node,
    project_report,
)
from hugetlb_quota.page_size import PageSize

LEFT = Charge.from_resources({"hugepages-2Mi": "6Mi"})
SMALL = PageSize(2 << 20)
RAW: dict[str, Any] = {
    "metadata": {"name": "worker"},
    "spec": {
        "reclaim": [{"uid": "a", "after": "90s"}],
        "heirs": [{"uid": "a", "quotas": ["ns/q"]}],
    },
    "status": {
        "bootID": "boot",
        "podsResourceVersion": "7",
        "pods": [
            {
                "uid": "a",
                "namespace": "ns",
                "name": "pod",
                "labels": {"app": "db"},
                "live": False,
                "charged": {"hugepages-2Mi": "6Mi"},
            }
        ],
        "files": [
            {
                "path": "f",
                "mount": "/huge",
                "pageSize": "hugepages-2Mi",
                "charged": "6Mi",
                "uid": "a",
                "since": "2026-11-22T12:00:00Z",
            }
        ],
    },
}


def read(raw: dict[str, Any]) -> NodeReport:
    report = project_report(raw)
    assert report is not None
    return report


def test_a_report_is_read() -> None:
    report = read(RAW)
    assert (report.node, report.boot_id, report.pods_resource_version) == ("worker", "boot", 7)
    assert report.pods == (ReportedPod("a", "ns", "pod", {"app": "db"}, live=False, charged=LEFT),)
    assert report.files == (ReportedFile("a", "/huge/f", SMALL, 6 << 20),)
    assert report.spec.reclaim == {"a": timedelta(seconds=90)}
    assert report.spec.heirs == {"a": frozenset({QuotaKey("ns", "q")})}
    assert project_report({**RAW, "status": {}}) is None
    raw = deepcopy(RAW)
    raw["status"]["pods"][0]["labelsLeftOut"] = 2
    assert [pod.labels_left_out for pod in (*report.pods, *read(raw).pods)] == [False, True]


def test_fields_of_a_newer_release_and_unreadable_rows_are_ignored() -> None:
    raw = deepcopy(RAW)
    raw["status"] |= {"caps": [], "reportedBy": "new", "pools": "many"}
    raw["status"]["pods"][0]["swapped"] = "2Mi"
    raw["status"]["pods"][0]["charged"]["hugepages-3Mi"] = "3Mi"
    raw["status"]["files"][0]["inode"] = 7
    raw["status"]["files"] += [{"path": 7}, "none"]
    raw["spec"]["caps"] = ["none"]
    raw["spec"]["heirs"] += ["nobody", {"uid": "b"}]
    raw["spec"]["reclaim"] += [{"uid": "b", "after": "soon"}]
    assert read(raw) == read(RAW)


@pytest.mark.parametrize(
    "status",
    [
        {"podsResourceVersion": "many"},
        {"pods": {"a": {}}},
        {"pods": ["a"]},
        {"pods": [{"uid": "a", "charged": {}}]},
        {"pods": [{"uid": "a", "live": False, "charged": {"hugepages-2Mi": "much"}}]},
        {"bootID": 7},
    ],
)
def test_the_report_before_an_unreadable_report_stays_in_force(status: dict[str, Any]) -> None:
    raw = {**RAW, "spec": {}, "status": {**RAW["status"], **status}}
    before = read(RAW)
    held = project_report(raw, before)
    assert held is not None
    assert (held.pods, held.pods_resource_version, held.spec) == (before.pods, 7, read(raw).spec)
    never = read(raw)
    assert (never.boot_id, never.pods_resource_version, never.pods) == (None, 0, ())


def test_the_taint_says_that_a_node_is_out_of_service() -> None:
    raw: dict[str, Any] = {"metadata": {"name": "n", "resourceVersion": "5"}}
    node = project_node(raw)
    assert (node.name, node.boot_id, node.out_of_service, node.version) == ("n", "", False, 5)
    raw["spec"] = {"taints": [{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]}
    raw["status"] = {"nodeInfo": {"bootID": "boot"}}
    assert project_node(raw).out_of_service
    assert project_node(raw).boot_id == "boot"


def test_a_report_leaves_out_pods_if_it_counts_some_as_left_out() -> None:
    for left_out, pods in (({"files": 3, "labels": 1, "pods": 0}, False), ({"pods": 1}, True)):
        raw = deepcopy(RAW)
        raw["status"]["leftOut"] = left_out
        assert read(raw).pods_left_out == pods
    assert not read(RAW).pods_left_out


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)
PLACES: list[tuple[str | int, ...]] = [
    ("spec",),
    ("spec", "reclaim"),
    ("spec", "reclaim", 0),
    ("spec", "heirs"),
    ("spec", "heirs", 0, "quotas"),
    ("status",),
    *(("status", field) for field in ("bootID", "podsResourceVersion", "reportedAt", "leftOut")),
    *(("status", "pods", 0, field) for field in ("uid", "labels", "live", "charged", "demand")),
    ("status", "pods", 0, "charged", "hugepages-2Mi"),
    *(("status", "files", 0, field) for field in ("path", "mount", "pageSize", "charged")),
]


@settings(max_examples=300)
@given(st.sampled_from(PLACES), JSON)
def test_no_content_of_a_report_raises_an_exception(
    place: tuple[str | int, ...], value: Any
) -> None:
    """A node's agent writes the status, and an exception here would end the controller."""
    raw = deepcopy(RAW)
    holder: Any = raw
    for step in place[:-1]:
        holder = holder[step]
    holder[place[-1]] = value
    for before in (None, read(RAW)):
        report = project_report(raw, before)
        assert report is None or report.node == "worker"
