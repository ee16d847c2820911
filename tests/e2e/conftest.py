"""One cluster, one installation of the chart, and a table of the scenes at the end."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e import collect, operator
from tests.e2e.host import Host, forget, nodes_with_pages
from tests.e2e.kubectl import CommandFailed, apply, kubectl
from tests.e2e.pods import pin

HERE = Path(__file__).resolve().parent
SCENE_TIMEOUT = 1200
"""In seconds. The first scene also installs the chart."""
ORDER = {"test_install.py": -1, "test_lifecycle.py": 1}
"""Files that do not run among the others.

The first file looks at the programs just after `helm install`, the last removes the operator.
"""
HUGETLBFS = "/dev/hugepages"
"""The mount point of systemd's hugetlbfs."""


def lacking() -> list[str]:
    """Return the missing programs and variables that the scenes need to reach a cluster."""
    programs = [name for name in ("kubectl", "helm") if shutil.which(name) is None]
    return programs + ([] if os.environ.get("KUBECONFIG") else ["KUBECONFIG"])


@dataclass
class Scene:
    """A row of the table."""

    name: str
    outcome: str = ""
    seconds: float = 0.0
    seen: list[str] = field(default_factory=list)


SCENES: dict[str, Scene] = {}


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """The node that has huge pages."""
    if lacks := lacking():
        pytest.skip(f"{', '.join(lacks)} is missing; `make e2e-vm` makes a cluster")
    nodes = nodes_with_pages()
    if not nodes:
        pytest.skip("no node of the cluster has huge pages of 2 MiB: reserve some (nr_hugepages)")
    pin(nodes[0])
    node = Host(nodes[0]["metadata"]["name"])
    node.start()
    yield node
    forget()


@pytest.fixture(scope="session")
def released(host: Host) -> Iterator[Host]:
    """The node, with the chart installed and all programs Ready."""
    with kept_on_failure(host):
        there = operator.is_installed()
        if not there:
            operator.install()
    yield host
    # Do not uninstall a release that this run did not install.
    if not there and not os.environ.get("E2E_LEAVE"):
        operator.uninstall()


@pytest.fixture(scope="session")
def installed(released: Host) -> Host:
    """The node, with the chart installed and the limits of its pods in force."""
    with kept_on_failure(released):
        operator.wait_enforced(released.node)
    return released


@contextmanager
def kept_on_failure(host: Host) -> Iterator[None]:
    """Collect files if the installation fails."""
    try:
        yield
    except (CommandFailed, AssertionError) as error:
        kept = collect.collect("install", host)
        raise AssertionError(f"{error}\nkept in {kept}") from error


@pytest.fixture
def namespace(request: pytest.FixtureRequest, installed: Host) -> Iterator[str]:
    """A new namespace for the scene."""
    name = "e2e-" + re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:50].strip(
        "-"
    )
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    kubectl("delete", "pods", "--all", "--namespace", name, "--wait=false", "--grace-period=1")
    kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture
def folder(installed: Host, namespace: str) -> Iterator[str]:
    """A new folder for the scene on the host's hugetlbfs."""
    if "hugetlbfs" not in installed.run(f"stat -f -c %T {HUGETLBFS} 2>/dev/null || true"):
        pytest.skip(f"the node has no hugetlbfs at {HUGETLBFS}")
    path = f"{HUGETLBFS}/{namespace}"
    installed.run(f"mkdir -p {path}")
    yield path
    installed.run(f"rm -rf {path}")


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function that adds a line to the scene's row in the table."""
    scene = SCENES.setdefault(request.node.nodeid, Scene(request.node.name))
    return scene.seen.append


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Set the timeout and the order of the scenes.

    If the command line names files, the scenes keep that order.
    """
    if not any(Path(argument).suffix == ".py" for argument in config.args):
        items.sort(key=lambda item: ORDER.get(item.path.name, 0))
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.timeout(SCENE_TIMEOUT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Time each scene, and collect files if it fails."""
    scene = SCENES.setdefault(item.nodeid, Scene(item.name))
    started = time.monotonic()
    try:
        result = yield
    except pytest.skip.Exception:
        scene.outcome = "skipped"
        raise
    except BaseException as error:
        scene.outcome = "FAILED"
        host = getattr(item, "funcargs", {}).get("installed")
        error.add_note(f"kept in {collect.collect(item.name, host)}")
        raise
    finally:
        scene.seconds = time.monotonic() - started
    scene.outcome = "ok"
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped scene unless $E2E_MAY_SKIP allows the reason.

    $E2E_MAY_SKIP has parts of the allowed reasons, separated by "|". Without the variable, every
    reason is allowed.
    """
    report = yield
    allowed = os.environ.get("E2E_MAY_SKIP")
    if allowed is None or not report.skipped or item.path.parent != HERE:
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    if not any(part and part in reason for part in allowed.split("|")):
        report.outcome = "failed"
        report.longrepr = f"{item.name} must not be skipped on this cluster. {reason}"
        SCENES.setdefault(item.nodeid, Scene(item.name)).outcome = "FAILED"
    return report


def lines(scene: Scene, width: int) -> list[str]:
    """The lines of a scene in the table."""
    first, *rest = scene.seen or [""]
    head = f"{scene.name:<{width}} {scene.outcome:<7} {scene.seconds:5.0f} s  {first}"
    return [head, *(f"{'':<{width}} {'':<7} {'':>7}  {line}" for line in rest)]


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Print the result of each scene instead of a dot, because a run takes minutes."""
    scene = SCENES.get(report.nodeid)
    if scene is None or report.when != "call":
        return None
    return report.outcome, "\n".join(lines(scene, 0)) + "\n", scene.outcome


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not SCENES:
        return
    terminalreporter.section("scenes")
    width = max(len(scene.name) for scene in SCENES.values())
    for scene in SCENES.values():
        for line in lines(scene, width):
            terminalreporter.write_line(line)
