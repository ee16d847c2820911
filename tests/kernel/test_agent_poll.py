"""Poll on real cgroups: it notices each change of a charge, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hugetlb_quota.agent.poll import PODS, THE_REST, Poll
from hugetlb_quota.node import kubepods
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.pools import page_sizes
from tests.testnode import cgroup_tree
from tests.tracking import Actor
from tests.waiting import eventually

LEVEL = "kubepods.slice/kubepods-burstable.slice"
SECONDS = 20.0
#: The number of a comparison that includes only the sums.
SUMS = 1


@pytest.fixture
def cgroups(cgroup_subtree: Path) -> tuple[Path, Path]:
    made = [cgroup_subtree / LEVEL / f"kubepods-burstable-pod{uid}.slice" for uid in ("a", "b")]
    for pod in made:
        cgroup_tree.make(cgroup_subtree, pod.parent)
        pod.mkdir()
    return made[0], made[1]


@pytest.fixture
def poll(cgroups: tuple[Path, Path], cgroup_subtree: Path) -> Iterator[Poll]:
    parents = (cgroup_subtree,)
    poll = Poll(
        HostRoot(),
        parents,
        page_sizes(HostRoot()),
        lambda: list(kubepods.pods(parents)),
        asyncio.Event(),
    )
    assert poll.moved(0)
    poll.moved(SUMS)  # the first comparison has found the roots
    assert not poll.moved(SUMS)
    yield poll
    poll.close()


def test_notices_pages_given_back_after_a_pass_has_read_them(
    poll: Poll, cgroups: tuple[Path, Path], pages: Callable[[int], None]
) -> None:
    pages(2)
    poll.moved(SUMS)
    with Actor(cgroups[0]) as actor:
        actor.do("a = map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)")
        poll.compare_with_now()  # and a pass reads
    assert poll.moved(SUMS)


def test_notices_charged_pages_and_pages_given_back(
    poll: Poll, cgroups: tuple[Path, Path], pages: Callable[[int], None]
) -> None:
    pages(2)
    poll.moved(SUMS)
    with Actor(cgroups[0]) as actor:
        actor.do("a = map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)")
        assert poll.moved(SUMS)
        assert not poll.moved(SUMS)
        actor.do("touch(a, 0)")  # the page was charged before
        assert not poll.moved(SUMS)
    assert poll.moved(SUMS)
    assert not poll.moved(SUMS)


def test_notices_two_changes_that_leave_the_sum_unchanged(
    poll: Poll, cgroups: tuple[Path, Path], pages: Callable[[int], None]
) -> None:
    pages(2)
    with Actor(cgroups[0]) as one, Actor(cgroups[1]) as other:
        one.do("a = map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)")
        poll.moved(PODS)
        one.do("unmap(a, 1)")
        other.do("a = map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)")
        assert not poll.moved(SUMS)
        assert poll.moved(PODS)
        assert not poll.moved(PODS)


def test_notices_pages_that_the_host_takes(poll: Poll, pages: Callable[[int], None]) -> None:
    pages(1)
    poll.moved(SUMS)
    with Actor() as host:
        host.do("map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)")
        assert poll.moved(SUMS)


def test_notices_new_pods_and_changed_pools(
    poll: Poll, cgroups: tuple[Path, Path], pages: Callable[[int], None]
) -> None:
    poll.moved(THE_REST)
    assert not poll.moved(THE_REST)
    pages(1)
    assert poll.moved(THE_REST)
    with Actor(cgroups[1]) as actor:
        actor.do("a = map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)")
        poll.moved(PODS)
        cgroups[0].rmdir()
        assert not poll.moved(PODS)  # the watcher reports this
        cgroups[0].mkdir()
        assert poll.moved(PODS)


def test_reads_pods_only_while_kubepods_is_charged(
    poll: Poll, cgroups: tuple[Path, Path], pages: Callable[[int], None]
) -> None:
    def kept() -> set[str]:
        """Return the names of the pods' files that this process has open."""
        links = (each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
        return {link.name for link in links if link.parent in cgroups}

    pages(1)
    poll.moved(PODS)
    assert kept() == set()
    with Actor(cgroups[0]) as actor:
        actor.do("a = map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)")
        poll.moved(PODS)
        assert kept() == {"hugetlb.2MB.rsvd.current"}
        actor.do("unmap(a, 1)")

        def is_closed() -> bool:
            poll.moved(PODS)
            return not kept()

        eventually(is_closed)


async def test_sets_due_at_each_change_and_ends_with_its_task(
    cgroups: tuple[Path, Path], cgroup_subtree: Path, pages: Callable[[int], None]
) -> None:
    due, before = asyncio.Event(), threading.active_count()
    parents, sizes = (cgroup_subtree,), page_sizes(HostRoot())
    poll = Poll(HostRoot(), parents, sizes, lambda: list(kubepods.pods(parents)), due)
    # In debug mode, the loop raises an error if another thread calls a function of the loop that
    # only the loop's thread may call.
    asyncio.get_running_loop().set_debug(True)
    task = asyncio.create_task(poll.run())
    pages(1)
    with Actor(cgroups[0]) as actor:
        for act in ("a = map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)", "unmap(a, 1)"):
            async with asyncio.timeout(SECONDS):
                await due.wait()
            assert not task.done(), task
            due.clear()
            actor.do(act)
        async with asyncio.timeout(SECONDS):
            await due.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()
    assert threading.active_count() == before
    poll.close()
