"""What tests on the real kernel need: root, cgroup2's hugetlb controller, huge pages.

A test that asks for a fixture here is skipped with a sentence when the machine cannot run it,
and fails instead where REQUIRE_LAYERS=1 says that it must.
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
from tests.testnode import cgroup_tree, naming, volumes
from tests.testnode.hugepages import page_sizes, reserved_pages

PAGE = 2 << 20
"""Bytes of the huge page that the `pages` fixture gives."""
GIGANTIC = 1 << 30
"""Bytes of the one that `gigantic_pages` gives."""


def require(sentence: str | None) -> None:
    """Skip the test for this reason, if there is one; fail it where layers are required."""
    if sentence is None:
        return
    if os.environ.get("REQUIRE_LAYERS") == "1":
        pytest.fail(f"REQUIRE_LAYERS=1, but: {sentence}")
    pytest.skip(sentence)


@pytest.fixture(scope="session")
def kernel() -> None:
    """Skips where the machine cannot run the kernel layer."""
    for check in (preflight._root, preflight._cgroup2, preflight._pages):
        require(check())


@pytest.fixture
def pages(kernel: None) -> Iterator[Callable[[int], None]]:
    """Call it with a count: that many 2 MiB pages more in the host's pool until the test ends."""
    with ExitStack() as borrowed:
        yield lambda count: borrowed.enter_context(reserved_pages(PAGE, count))


@pytest.fixture
def gigantic_pages(kernel: None) -> Iterator[Callable[[int], None]]:
    """As ``pages``, of 1 GiB; skips where the kernel has none to give.

    On a machine that has run for hours it mostly has none: some of its own pages, which can't be
    moved, are in every GiB. Seen by /proc/kpageflags, also after all caches were dropped, slabs
    shrunk and memory compacted. Pages set aside at boot (hugepagesz=1G) are the way.
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
    """A cgroup of this test alone, hugetlb enabled for its children; removed with all below it."""
    root = cgroup_tree.cgroup2_mount()
    subtree = root / f"hq-test-{os.getpid()}-{secrets.token_hex(4)}"
    cgroup_tree.make(root, subtree)
    yield subtree
    cgroup_tree.remove(subtree)


@pytest.fixture(scope="session")
def reader_program() -> Path:
    """The reader of the charge list, built; skips where a package for that is missing."""
    require(preflight._reader())
    return charge_reading.build()


@pytest.fixture
async def reader(kernel: None, reader_program: Path) -> AsyncIterator[ChargeReader]:
    reader = ChargeReader(reader_program)
    yield reader
    await reader.close()


@pytest.fixture
def cgroup(cgroup_subtree: Path) -> Callable[[str], Path]:
    """Call it with a path: a cgroup for processes there, below the test's own."""

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
    """A hugetlbfs of 2 MiB pages of this test alone, without a limit of its own."""
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
