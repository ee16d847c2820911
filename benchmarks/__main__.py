"""``python -m benchmarks [--quick] [--only NAME] [--out DIRECTORY]``: runs all suites.

The tables of each suite become a section of DIRECTORY/performance.md, between two marks. Text
outside the marks stays. The measurements and charts go to DIRECTORY/performance/.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import svg
from benchmarks.report import Chart, Machine
from tests.kube.build import kubernetes_version

TREE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Suite:
    """A module of benchmarks, its title, and its command line.

    `quick`: the command line of a short run. `minutes`: the time limit.
    """

    name: str
    title: str
    words: str
    quick: str
    minutes: float


SUITES = (
    Suite("admission", "Admission", "admission --minutes 7", "admission --quick", 10),
    Suite(
        "controller",
        "Controller",
        "controller",
        "controller --pods 100 --quotas 20 --nodes 5 --seconds 2 --ends 2",
        20,
    ),
    Suite(
        "agent",
        "Agent",
        "agent --seconds 20",
        "agent --pods 5 --many-pods 5 --files 100 --seconds 2 --opens 200 --openers 20"
        " --rounds 100 --ends 2 --burst 5",
        4,
    ),
)
"""All suites together end within 20 minutes on two quiet cores."""


def main() -> None:
    """Run all suites; then exit with code 1 if a suite failed."""
    arguments = _arguments()
    chosen = [suite for suite in SUITES if arguments.only in (None, suite.name)]
    out: Path = arguments.out or (TREE / ("build/benchmarks" if arguments.quick else "docs"))
    (out / "performance").mkdir(parents=True, exist_ok=True)
    failed = [suite.name for suite in chosen if not _run(suite, out, quick=arguments.quick)]
    if failed:
        sys.exit(f"Failed, and unchanged in {out}: {', '.join(failed)}.")
    print(f"{out / 'performance.md'} is written.", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a short run without useful figures",
    )
    parser.add_argument("--only", choices=[suite.name for suite in SUITES])
    parser.add_argument("--out", type=Path, help="default: docs; with --quick build/benchmarks")
    return parser.parse_args()


def _run(suite: Suite, out: Path, *, quick: bool) -> bool:
    """Run one suite and write its section; return whether the suite succeeded."""
    module, *words = shlex.split(suite.quick if quick else suite.words)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "figures.json"
        command = [sys.executable, "-m", f"benchmarks.{module}", *words, "--json", str(file)]
        try:
            done = subprocess.run(
                command, cwd=TREE, stdout=subprocess.PIPE, text=True, timeout=suite.minutes * 60
            )
        except subprocess.TimeoutExpired:
            print(f"{suite.name}: not done in {suite.minutes:g} minutes.", file=sys.stderr)
            return False
        if done.returncode:
            print(f"{suite.name}: exit code {done.returncode}.", file=sys.stderr)
            return False
        figures = json.loads(file.read_text())
    seconds = round(time.monotonic() - began)
    print(f"{suite.name} took {seconds} s\n\n{done.stdout}")
    charts = figures.get("charts", ()) if isinstance(figures, dict) else ()
    for chart in charts:
        drawn = Chart.from_json(chart)
        (out / "performance" / f"{drawn.file}.svg").write_text(svg.draw(drawn))
    (out / "performance" / f"{suite.name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    page = out / "performance.md"
    before = page.read_text() if page.exists() else "# Performance\n"
    page.write_text(put_section(before, suite.name, _section(suite, done.stdout, charts, seconds)))
    return True


def _section(suite: Suite, tables: str, charts: Sequence[dict[str, Any]], seconds: int) -> str:
    pictures = [f"![{chart['title']}](performance/{chart['file']}.svg)" for chart in charts]
    if not re.search(r"^\|", tables, re.MULTILINE):
        tables = f"```text\n{tables.rstrip()}\n```"  # the suite printed lines for a terminal
    about = (
        f"{datetime.now(UTC):%Y-%m-%d}, revision {_revision()}, Kubernetes {kubernetes_version()}."
        f" {Machine.this()}; etcd, the API server and all clients ran on the same machine."
        f" `python -m benchmarks --only {suite.name}` took {seconds} s."
        f" All measurements: [{suite.name}.json](performance/{suite.name}.json)."
    )
    return "\n\n".join((f"## {suite.title}", about, *pictures, tables.strip()))


def put_section(page: str, name: str, section: str) -> str:
    """`page` with `section` between the marks of `name`, or at the end if there are no marks."""
    begin, end = f"<!-- {name}: made by make bench -->", f"<!-- {name}: end -->"
    block = f"{begin}\n{section}\n{end}"
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if found.search(page):
        return found.sub(lambda _: block, page)
    return f"{page.rstrip()}\n\n{block}\n"


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=10)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
