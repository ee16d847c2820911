"""Which tests run in the same process of `pytest -n`."""

from __future__ import annotations

import pytest

from benchmarks import __main__ as bench
from tests import conftest

HUGE_PAGES = "huge pages"


@pytest.mark.parametrize(
    ("test", "place"),
    [
        ("tests/kernel/test_node_cgroup.py::test_a", HUGE_PAGES),
        ("tests/cluster/test_agent.py::test_a[b::c]", HUGE_PAGES),
        ("tests/cluster/test_chart.py::test_a[agent]", "tests/cluster/test_chart.py"),
        (
            "tests/unit/preflight/test_preflight.py::test_a",
            "tests/unit/preflight/test_preflight.py",
        ),
        (conftest.AGENTS_BENCHMARK, HUGE_PAGES),
    ],
)
def test_all_tests_that_take_huge_pages_run_in_one_process(test: str, place: str) -> None:
    assert conftest._place(test) == place


def test_the_agents_benchmark_exists() -> None:
    file, _, test = conftest.AGENTS_BENCHMARK.partition("::")
    name, _, suite = test.removesuffix("]").partition("[")
    assert f"def {name}(" in (conftest.ROOT / file).read_text()
    assert suite in {each.name for each in bench.SUITES}
