"""What the kernel refuses a pod it counts above the pod too: there it is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.agent.shortage import Shortage
from hugetlb_quota.node import kubepods
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.pools import page_sizes
from tests.testnode import cgroup_tree
from tests.tracking import SMALL, Actor

LEVEL = "kubepods.slice/kubepods-burstable.slice"


class NoApi:
    async def create(self, *_: Any, **__: Any) -> dict[str, Any]:
        raise AssertionError("no pod is known, so nobody is to be told")


async def test_what_a_pod_is_refused_is_counted_whatever_its_depth(
    cgroup_subtree: Path, pages: Callable[[int], None]
) -> None:
    pods = [cgroup_subtree / LEVEL / f"kubepods-burstable-pod{uid}.slice" for uid in ("a", "b")]
    for pod in pods:
        cgroup_tree.make(cgroup_subtree, pod)
        cgroup_tree.write(pod / "hugetlb.2MB.rsvd.max", str(SMALL.bytes))
    container = pods[0] / "container"
    container.mkdir()
    shortage = Shortage(
        NoApi(),
        "n",
        lambda: list(kubepods.pods((cgroup_subtree,))),
        lambda: list(kubepods.roots((cgroup_subtree,))),
        page_sizes(HostRoot()),
        dict,
    )
    await shortage.look()
    pages(2)
    with Actor(container) as actor:
        actor.do("a = map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)")
        await shortage.look()
        assert shortage.refused[SMALL] == 0
        for times in (1, 2):
            with pytest.raises(OSError, match="Cannot allocate memory"):
                actor.do("map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)")
            await shortage.look()
            assert shortage.refused[SMALL] == times
