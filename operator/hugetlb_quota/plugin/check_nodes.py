"""The part of ``check`` for nodes: a node with huge pages must have a fresh, good report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.plugin.facts import Facts, Json
from hugetlb_quota.plugin.findings import MOST_NAMES, Finding, Level, unseen
from hugetlb_quota.plugin.reports import NodeReport
from hugetlb_quota.plugin.table import age, listed
from hugetlb_quota.plural import number_of

#: A report that is older is stale: agents report at least once a minute.
STALE: Final = timedelta(seconds=150)
_TOPIC: Final = "nodes"


def check(facts: Facts) -> Iterator[Finding]:
    """The findings about nodes: at least one."""
    reports = {report.node: report for report in facts.reports or ()}
    findings: list[Finding] = []
    if facts.nodes is None:
        findings.append(
            unseen(_TOPIC, "whether a node has no report, because you may not list nodes")
        )
    else:
        findings += _without_report(facts.nodes, reports)
        findings += _rebooted(facts.nodes, reports)
    findings += _stale(reports.values(), facts.now)
    for report in reports.values():
        findings += _report(report)
    yield from findings
    if not findings:
        yield Finding(Level.OK, _TOPIC, f"{number_of(len(reports), 'node')} with a fresh report.")


def _without_report(nodes: Sequence[Json], reports: Mapping[str, NodeReport]) -> Iterator[Finding]:
    with_pages = [node["metadata"]["name"] for node in nodes if _has_pages(node)]
    silent = [name for name in with_pages if name not in reports]
    if silent:
        one = len(silent) == 1
        yield Finding(
            Level.ERROR,
            _TOPIC,
            f"{'Node' if one else 'Nodes'} {listed(silent, MOST_NAMES)} {'has' if one else 'have'}"
            " huge pages and no HugeTLBNode: no agent holds pods to their limits there.",
            "See whether the agent runs there: tolerations, nodeSelector, its log.",
        )


def _has_pages(node: Json) -> bool:
    capacity = (node.get("status") or {}).get("capacity") or {}
    try:
        return bool(Charge.from_resources(capacity))
    except ValueError:
        return True


def _rebooted(nodes: Sequence[Json], reports: Mapping[str, NodeReport]) -> Iterator[Finding]:
    boots = {
        node["metadata"]["name"]: ((node.get("status") or {}).get("nodeInfo") or {}).get("bootID")
        for node in nodes
    }
    outdated = [
        name
        for name, report in reports.items()
        if boots.get(name) and report.boot_id and report.boot_id != boots[name]
    ]
    if outdated:
        yield Finding(
            Level.WARNING,
            _TOPIC,
            f"The report of {listed(outdated, MOST_NAMES)} is from an earlier boot of the node.",
            "See whether the agent runs there.",
        )


def _stale(reports: Iterable[NodeReport], now: datetime) -> Iterator[Finding]:
    stale = [
        f"{report.node} ({age(report.reported_at, now)})"
        for report in reports
        if report.reported_at is None or now - report.reported_at > STALE
    ]
    if stale:
        yield Finding(
            Level.ERROR,
            _TOPIC,
            f"No fresh report of {listed(stale, MOST_NAMES)}: pods that ended there stay charged.",
            "See the agent's log there; delete the Node object if the node is gone.",
        )


def _report(report: NodeReport) -> Iterator[Finding]:
    for condition in report.conditions:
        if condition.status != "True":
            yield Finding(
                Level.ERROR if condition.type == "Ready" else Level.WARNING,
                _TOPIC,
                f"{report.node}: {condition.type} is {condition.status} ({condition.reason}):"
                f" {condition.message}",
                f"See kubectl describe htn {report.node}.",
            )
    if report.unreadable:
        entries = "1 entry" if report.unreadable == 1 else f"{report.unreadable} entries"
        yield Finding(
            Level.WARNING,
            _TOPIC,
            f"The plugin can't read {entries} of the report of {report.node}.",
            "Use the plugin of the agent's release.",
        )
