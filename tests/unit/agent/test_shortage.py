"""Shortage: the pods with an Event, the time between two Events, and the note."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.pods import SeenPod
from hugetlb_quota.agent.shortage import MOST_EVENTS, REST, Shortage
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.node.kubepods import PodCgroup, Qos
from hugetlb_quota.page_size import PageSize

SMALL, LARGE = PageSize(2 << 20), PageSize(1 << 30)


class Node:
    """Cgroups as folders, and the published Events."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pods: dict[str, PodCgroup] = {}
        self.shown: dict[str, SeenPod] = {}
        self.now = 0.0
        self.events: list[tuple[str, str]] = []
        self.refused = Counter[PageSize]()
        self.shortage = self.start()

    def start(self) -> Shortage:
        cgroups, seen = lambda: tuple(self.pods.values()), lambda: self.shown
        roots, sizes = (self.folder,), (SMALL, LARGE)
        return Shortage(self, "n1", cgroups, lambda: roots, sizes, seen, lambda: self.now)

    async def create(self, resource: Resource, body: Any, *_: Any, **__: Any) -> dict[str, Any]:
        self.events.append((body["regarding"]["name"], body["note"]))
        return {}

    def count(self, uid: str, refused: int, size: PageSize = SMALL) -> None:
        path = self.folder / f"pod{uid}"
        path.mkdir(exist_ok=True)
        own = path / f"{size.cgroup}.events"
        more = refused - (int(own.read_text().split()[1]) if own.exists() else 0)
        own.write_text(f"max {refused}\n")
        # The kernel counts the refusals in every ancestor too.
        self.refused[size] += more
        (self.folder / own.name).write_text(f"max {self.refused[size]}\n")
        self.pods[uid] = PodCgroup(uid, Qos.BURSTABLE, path)

    def show(self, uid: str, mib: int) -> None:
        pod = Pod(uid, "ns", f"name-{uid}", 1, {}, demand=Charge({SMALL: mib << 20}))
        self.shown[uid] = SeenPod(pod, ended=False)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_publishes_one_event_in_a_while_with_all_refusals(node: Node) -> None:
    await node.shortage.look()
    node.show("a", 64)
    node.count("a", 0)
    await node.shortage.look()
    node.count("a", 1)
    await node.shortage.look()
    assert node.events == [
        (
            "name-a",
            "This pod tried once to reserve more than its 64Mi of hugepages-2Mi: mmap fails with"
            " ENOMEM, and some programs go on with small pages. If the pod needs more, raise"
            " resources.limits.hugepages-2Mi.",
        )
    ]
    for count in (3, 7, 12):
        node.count("a", count)
        await node.shortage.look()
    assert len(node.events) == 1
    node.now += REST
    await node.shortage.look()
    assert "tried 11 times to reserve" in node.events[1][1]
    assert node.shortage.refused == {SMALL: 12, LARGE: 0}


async def test_publishes_no_refusals_that_an_earlier_agent_has_counted(node: Node) -> None:
    node.show("a", 64)
    node.count("a", 5)
    again = node.start()
    await again.look()
    assert node.events == []
    node.count("a", 6)
    await again.look()
    assert "tried once" in node.events[0][1]


async def test_waits_for_the_api_and_names_a_size_that_the_pod_does_not_request(node: Node) -> None:
    await node.shortage.look()
    node.count("a", 2, LARGE)
    await node.shortage.look()
    assert node.events == []
    node.show("a", 64)
    await node.shortage.look()
    assert (
        "tried 2 times to take pages of hugepages-1Gi, which it does not ask for"
        in (node.events[0][1])
    )


async def test_publishes_a_few_events_at_a_time_and_forgets_gone_pods(
    node: Node,
) -> None:
    await node.shortage.look()
    for number in range(MOST_EVENTS + 3):
        node.show(f"p{number}", 2)
        node.count(f"p{number}", 1)
    await node.shortage.look()
    assert len(node.events) == MOST_EVENTS
    await node.shortage.look()
    assert len({name for name, _ in node.events}) == len(node.events) == MOST_EVENTS + 3
    node.pods.clear()
    await node.shortage.look()
    assert node.shortage._pods == {}


async def test_a_new_cgroup_with_an_old_name_starts_at_zero(node: Node) -> None:
    node.show("a", 64)
    node.count("a", 0)
    await node.shortage.look()
    node.count("a", 2)
    await node.shortage.look()
    node.pods.clear()
    await node.shortage.look()
    (node.folder / "poda" / f"{SMALL.cgroup}.events").unlink()
    node.count("a", 2)
    await node.shortage.look()
    assert node.shortage.refused[SMALL] == 4
