"""Fixtures for tests on the real kernel: root, cgroup2's hugetlb controller, huge pages.

A test that uses a fixture of this file is skipped with a sentence if the machine can't run the
test. With REQUIRE_LAYERS=1 the test fails instead.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hugetlb_quota.node.charge_reader import ChargeReader
from tests import preflight
from tests.kernel import charge_reading
from tests.kernel.agent_process import Agent, Api, Pod
from tests.kernel.ways import SIZES, WAYS, Size, remove_segments
from tests.testnode import cgroup_tree, naming, volumes
from tests.testnode.hugepages import page_sizes, reserved_pages
from tests.tracking import hugetlbfs as mounted

PAGE = 2 << 20
"""The bytes of each page of the fixture `pages`."""
GIGANTIC = 1 << 30
"""The bytes of each page of the fixture `gigantic_pages`."""


def require(sentence: str | None) -> None:
    """Skip the test if there is a sentence; fail the test if layers are required."""
    if sentence is None:
        return
    if os.environ.get("REQUIRE_LAYERS") == "1":
        pytest.fail(f"REQUIRE_LAYERS=1, but: {sentence}")
    pytest.skip(sentence)


@pytest.fixture(scope="session")
def kernel() -> None:
    """Skip the test if the machine can't run the kernel layer."""
    for check in (preflight._root, preflight._cgroup2, preflight._pages):
        require(check())


@pytest.fixture
def pages(kernel: None) -> Iterator[Callable[[int], None]]:
    """Return a function that adds 2 MiB pages to the host's pool until the test ends."""
    with ExitStack() as borrowed:
        yield lambda count: borrowed.enter_context(reserved_pages(PAGE, count))


@pytest.fixture
def gigantic_pages(kernel: None) -> Iterator[Callable[[int], None]]:
    """Return a function that adds 1 GiB pages; skip the test if the kernel can't give any.

    A machine that has run for hours rarely has a free GiB: every GiB has some pages of the kernel
    that can't be moved. /proc/kpageflags showed this, also after all caches were dropped, slabs
    shrunk and memory compacted. Pages reserved at boot (hugepagesz=1G) help.
    """
    if GIGANTIC not in page_sizes():
        pytest.skip("the kernel has no pages of 1 GiB")
    with ExitStack() as borrowed:

        def borrow(count: int) -> None:
            try:
                borrowed.enter_context(reserved_pages(GIGANTIC, count))
            except RuntimeError as error:
                pytest.skip(f"memory is too small or too fragmented for pages of 1 GiB: {error}")

        yield borrow


@pytest.fixture
def cgroup_subtree(kernel: None) -> Iterator[Path]:
    """A cgroup of this test alone with hugetlb for its children; removed with all cgroups below."""
    root = cgroup_tree.cgroup2_mount()
    subtree = root / f"hq-test-{os.getpid()}-{secrets.token_hex(4)}"
    cgroup_tree.make(root, subtree)
    yield subtree
    cgroup_tree.remove(subtree)


@pytest.fixture(scope="session")
def reader_program() -> Path:
    """Build the reader of the charge list; skip the test if a package for the build is missing."""
    require(preflight._reader())
    return charge_reading.build()


@pytest.fixture
async def reader(kernel: None, reader_program: Path) -> AsyncIterator[ChargeReader]:
    reader = ChargeReader(reader_program)
    yield reader
    await reader.close()


@pytest.fixture
def cgroup(cgroup_subtree: Path) -> Callable[[str], Path]:
    """Return a function that makes a cgroup for processes, at a path below the test's cgroup."""

    def make(path: str) -> Path:
        cgroup = cgroup_subtree / path
        cgroup_tree.make(cgroup_tree.cgroup2_mount(), cgroup.parent)
        cgroup.mkdir()
        return cgroup

    return make


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    api = Api(tmp_path / "kubeconfig")
    await api.start()
    yield api
    await api.stop()


@pytest.fixture
async def agent(
    api: Api, cgroup_subtree: Path, tmp_path: Path, reader_program: Path
) -> AsyncIterator[Agent]:
    for qos in ("Guaranteed", "Burstable"):
        cgroup_tree.make(cgroup_subtree, cgroup_subtree / naming.qos_level("systemd", qos))
    agent = Agent(api, cgroup_subtree, tmp_path / "agent.log")
    yield agent
    if agent.process:
        await agent.end(signal.SIGKILL)


@pytest.fixture
def hugetlbfs(kernel: None, tmp_path: Path) -> Iterator[Path]:
    """A hugetlbfs of 2 MiB pages of this test alone, without ``size=``."""
    point = tmp_path / "huge"
    point.mkdir()
    volumes.mount("hugetlbfs", point, "pagesize=2M")
    yield point
    for file in point.iterdir():
        file.unlink()
    volumes.unmount_below(point)


@pytest.fixture
async def pod(agent: Agent) -> AsyncIterator[Callable[[str], Pod]]:
    made: list[Pod] = []

    def make(uid: str) -> Pod:
        made.append(Pod(agent, uid))
        return made[-1]

    yield make
    for each in made:
        if each.cgroup.exists():
            each.end()


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> Size:
    """Each page size of tests.kernel.ways, with enough pages in the pool to try the ways."""
    size = SIZES[request.param]
    borrow = request.getfixturevalue("pages" if request.param == "2Mi" else "gigantic_pages")
    borrow(size.pages * min(size.ways, len(WAYS)))
    return size


@pytest.fixture
def point(size: Size, tmp_path: Path) -> Iterator[Path]:
    """A hugetlbfs with pages of ``size``."""
    with mounted(tmp_path / "huge", page=str(size.page.bytes)) as superblock:
        yield superblock.path


@pytest.fixture
def segments(kernel: None) -> Iterator[list[int]]:
    """A list for the IDs of System V segments, which are removed after the test."""
    ids: list[int] = []
    yield ids
    remove_segments(ids)
