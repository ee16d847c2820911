"""What tests on the real kernel need: root, cgroup2's hugetlb controller, huge pages.

A test that asks for a fixture here is skipped with a sentence when the machine cannot run it,
and fails instead where REQUIRE_LAYERS=1 says that it must.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import preflight
from tests.testnode import cgroup_tree
from tests.testnode.hugepages import reserved_pages

PAGE = 2 << 20
"""Bytes of the huge page that the `pages` fixture gives."""


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
def cgroup_subtree(kernel: None) -> Iterator[Path]:
    """A cgroup of this test alone, hugetlb enabled for its children; removed with all below it."""
    root = cgroup_tree.cgroup2_mount()
    subtree = root / f"hq-test-{os.getpid()}-{secrets.token_hex(4)}"
    cgroup_tree.make(root, subtree)
    yield subtree
    cgroup_tree.remove(subtree)
