"""``top`` lists pods and nodes."""

from __future__ import annotations

from hugetlb_quota.plugin import top
from hugetlb_quota.plugin.table import Screen
from tests.unit.plugin.worlds import NOW, acme


def test_pods() -> None:
    assert (
        top.pods_table(top.pods(acme()), Screen())
        == """\
POD             NODE  SIZE  ASKED  CHARGED  QUOTA
acme-db/db-0    n1    2Mi    64Mi     32Mi  acme-db/db
acme-web/web-0  -     2Mi    64Mi        0  acme-web/web"""
    )


def test_nodes() -> None:
    reports = acme().reports
    assert reports is not None
    assert (
        top.nodes_table(reports, NOW, Screen())
        == """\
NODE  SIZE  TOTAL   FREE  PODS  RETAINED  SYSTEM
n1    2Mi     1Gi  512Mi  32Mi      32Mi       0"""
    )
