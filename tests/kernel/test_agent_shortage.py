"""Shortage on real cgroups: the kernel also counts refusals in the ancestors of a pod."""

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
        raise AssertionError("the API has shown no pod, so there is no Event to publish")


async def test_counts_refusals_at_any_depth_below_a_pod(
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
