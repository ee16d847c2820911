"""Counts what ran at each layer, so that a layer that was skipped is never overlooked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

LAYERS = ("unit", "kernel", "cluster", "e2e")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Draw a table of outcomes by layer, and each reason for a skip."""
    outcomes: dict[str, Counter[str]] = {layer: Counter() for layer in LAYERS}
    reasons: Counter[tuple[str, str]] = Counter()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            layer = _layer(report.nodeid)
            if layer is None:
                continue
            outcomes[layer][outcome] += 1
            if outcome == "skipped" and isinstance(report.longrepr, tuple):
                reasons[layer, report.longrepr[2].removeprefix("Skipped: ")] += 1
    terminalreporter.section("layers")
    terminalreporter.write_line(f"{'layer':<10}{'passed':>8}{'failed':>8}{'skipped':>9}")
    for layer in LAYERS:
        counts = outcomes[layer]
        failed = counts["failed"] + counts["error"]
        terminalreporter.write_line(
            f"{layer:<10}{counts['passed']:>8}{failed:>8}{counts['skipped']:>9}"
        )
    for (layer, reason), times in sorted(reasons.items()):
        terminalreporter.write_line(f"{layer}: {times} skipped: {reason}")


def _layer(nodeid: str) -> str | None:
    parts = Path(nodeid.partition("::")[0]).parts
    return parts[1] if len(parts) > 1 and parts[0] == "tests" and parts[1] in LAYERS else None
