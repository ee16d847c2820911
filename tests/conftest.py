"""Run layers that mount in a new mount namespace, and count the outcomes of each layer.

With `-n` the tests run in several processes at the same time: see `_place`. With REQUIRE_LAYERS=1,
a skipped test of a layer below e2e fails the run, unless the reason is one of `OPTIONAL`. Some
machines can't avoid these reasons.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests import mount_namespace, preflight

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("unit", "model", "kernel", "cluster", "image", "e2e")
REQUIRED = ("unit", "model", "kernel", "cluster", "image")
#: Layers with tests and programs that mount; without root these tests are skipped.
MOUNTING = ("kernel", "cluster", "image")
#: A test that takes huge pages in another process.
AGENTS_BENCHMARK = "tests/cluster/test_bench.py::test_a_suite_writes_its_section[agent]"
#: Reasons of skips that REQUIRE_LAYERS=1 accepts.
OPTIONAL = (
    "no PostgreSQL is installed",
    "the kernel has no pages of 1 GiB",
    "too fragmented for pages of 1 GiB",
    "KUBEBUILDER_ASSETS is set",
    "no shm_next_id",
    "kernel matrix: the machine is no x86-64",
    "the repository has no commit before this commit",
    "CERT_MANAGER names no directory",
)

# No test asserts on wall time: a busy machine takes longer for each example.
SLOW = [HealthCheck.too_slow]
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=SLOW,
    # With REQUIRE_LAYERS=1 the examples are always the same, as in tests.seeds.
    derandomize=os.environ.get("REQUIRE_LAYERS") == "1",
)
settings.load_profile("any machine")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave the host's mounts before the first test and before any other thread."""
    if preflight._root() is None and any(_layer(i.nodeid) in MOUNTING for i in session.items):
        mount_namespace.enter()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Give each process of `-n` whole files; the files with the most tests come first."""
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = _place  # type: ignore[method-assign]
    return scheduler


def _place(nodeid: str) -> str:
    """The group of a test; the tests of a group run one after the other in the same process.

    The tests of a file share its fixtures. All tests that take huge pages are one group, because
    they share the host's pool.
    """
    file = nodeid.partition("::")[0]
    takes = _takes_huge_pages(file) or nodeid == AGENTS_BENCHMARK
    return "huge pages" if takes else file


@cache
def _takes_huge_pages(file: str) -> bool:
    """Whether the tests of a file take huge pages in their own process."""
    return _layer(file) == "kernel" or "reserved_pages" in (ROOT / file).read_text()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a table of outcomes by layer, and the reasons of all skips."""
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


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """With REQUIRE_LAYERS=1, fail the run if a test was skipped for another reason."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("REQUIRE_LAYERS") != "1" or reporter is None or session.exitstatus != 0:
        return
    not_allowed = [
        f"{report.nodeid}: {report.longrepr[2]}"
        for report in reporter.stats.get("skipped", ())
        if _layer(report.nodeid) in REQUIRED
        and isinstance(report.longrepr, tuple)
        and not any(reason in report.longrepr[2] for reason in OPTIONAL)
    ]
    if not_allowed:
        reporter.write_line("\nREQUIRE_LAYERS=1, but these tests were skipped:")
        for each in not_allowed:
            reporter.write_line(f"  {each}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _layer(nodeid: str) -> str | None:
    parts = Path(nodeid.partition("::")[0]).parts
    return parts[1] if len(parts) > 1 and parts[0] == "tests" and parts[1] in LAYERS else None
