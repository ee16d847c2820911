"""Unmodified PostgreSQL in a pod without a huge page request, with and without a limit at mmap.

With huge_pages=try PostgreSQL maps shared memory in huge pages, and uses small pages if mmap fails.
With ``max`` alone mmap succeeds, and the first touch kills PostgreSQL.
"""

from __future__ import annotations

import asyncio
import pwd
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import require
from tests.testnode import cgroup_tree
from tests.testnode.pod import Place, PodRun

# initdb starts a server with the default 128 MiB of shared buffers.
PAGES = 256
SECONDS = 120.0
Json = dict[str, Any]


@pytest.fixture
def initdb() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL is installed here: there is no /usr/lib/postgresql/*/bin/initdb")
    return found[-1]


@pytest.fixture
def place(cgroup_subtree: Path, tmp_path: Path) -> Place:
    place = Place(cgroup_tree.cgroup2_mount(), cgroup_subtree, tmp_path, "systemd")
    place.make()
    return place


async def run(place: Place, initdb: Path, *, limited: bool) -> Json:
    """Run initdb in a pod; return the terminated state. ``limited`` sets the agent's limit."""
    nobody = pwd.getpwnam("nobody")
    pod = {
        "metadata": {"name": "postgres", "namespace": "default", "uid": str(uuid.uuid4())},
        "spec": {
            "restartPolicy": "Never",
            # initdb refuses root.
            "securityContext": {"runAsUser": nobody.pw_uid, "runAsGroup": nobody.pw_gid},
            "initContainers": [
                {"name": "wait",
                 "command": ["sh", "-c", "until test -e /go/on; do sleep .02; done"],
                 "volumeMounts": [{"name": "go", "mountPath": "/go"}]}
            ],
            "containers": [
                {"name": "main", "command": [str(initdb), "-D", "/data/new", "--no-sync"],
                 "volumeMounts": [{"name": "data", "mountPath": "/data"}]}
            ],
            "volumes": [
                {"name": "data", "emptyDir": {}},
                {"name": "go", "hostPath": {"path": str(place.state_dir / "go")}},
            ],
        },
        "status": {"qosClass": "BestEffort"},
    }  # fmt: skip
    reports: list[Json] = []

    async def take(status: Json) -> None:
        reports.append(status)

    async with asyncio.timeout(SECONDS):
        running = PodRun(pod, place, take)
        task = asyncio.create_task(running.run())
        try:
            while not reports:
                await asyncio.sleep(0.02)
            assert (running.cgroup / "hugetlb.2MB.max").read_text() == "0\n"
            if limited:
                cgroup_tree.write(running.cgroup / "hugetlb.2MB.rsvd.max", "0")
            (place.state_dir / "go/on").touch()
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    terminated: Json = reports[-1]["containerStatuses"][0]["state"]["terminated"]
    return terminated


async def test_initdb_dies_of_a_bus_error_where_only_faults_are_limited(
    place: Place, initdb: Path, pages: Callable[[int], None]
) -> None:
    pages(PAGES)
    terminated = await run(place, initdb, limited=False)
    assert terminated["exitCode"] == 1
    assert "Bus error" in terminated["message"]


async def test_initdb_succeeds_on_small_pages_where_mmap_is_limited(
    place: Place, initdb: Path, pages: Callable[[int], None]
) -> None:
    pages(PAGES)
    terminated = await run(place, initdb, limited=True)
    assert terminated["exitCode"] == 0, terminated["message"]
    assert "Success" in terminated["message"]


def test_fails_instead_of_skipping_if_layers_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    require(None)
    monkeypatch.setenv("REQUIRE_LAYERS", "1")
    with pytest.raises(pytest.fail.Exception, match="no cgroup2"):
        require("no cgroup2 is mounted")
    monkeypatch.delenv("REQUIRE_LAYERS")
    with pytest.raises(pytest.skip.Exception, match="no cgroup2"):
        require("no cgroup2 is mounted")
