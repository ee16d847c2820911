"""Reports of other releases are read as far as possible."""

from __future__ import annotations

from hugetlb_quota.plugin.reports import read_report
from tests.unit.plugin.worlds import entry, report


def test_unreadable_entries_are_counted() -> None:
    strange = report("n1", [entry("a/p", "8Mi") | {"newer": 1}, {"uid": 7}])
    strange["status"]["pods"].append("no pod")
    strange["status"]["pools"].append({"pageSize": "huge"})
    found = read_report(strange)
    assert [str(pod) for pod in found.pods] == ["a/p"]
    assert found.unreadable == 3


def test_an_unreadable_status_is_an_empty_report() -> None:
    found = read_report({"metadata": {"name": "n2"}, "status": "none"})
    assert (found.node, found.pods) == ("n2", ())
