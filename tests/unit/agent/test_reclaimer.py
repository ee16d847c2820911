"""Reclaimer: the files that are removed, the published Events, and the reported failures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent import reclaim as module
from hugetlb_quota.agent.reading import SYSTEM, ChargedFile, Reading
from hugetlb_quota.agent.reclaim import Reclaimer, due_files, due_pods, project_waits
from hugetlb_quota.agent.report import Entry, Report
from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.node.reclaim import NotReclaimed, StillHeld, reclaim
from hugetlb_quota.page_size import PageSize

SMALL = PageSize(2 << 20)
ENDED = datetime(2026, 11, 26, tzinfo=UTC)
NOW = ENDED + timedelta(hours=1)
HELD = Charge({SMALL: 2 << 20})


@pytest.mark.parametrize(
    ("raw", "waits"),
    [
        ({"spec": {"reclaim": [{"uid": "u", "after": "10m"}]}}, {"u": timedelta(minutes=10)}),
        ({}, {}),
        ({"spec": None}, {}),
        ({"spec": {"reclaim": "all"}}, {}),
        (
            {"spec": {"reclaim": [7, {"uid": "u"}, {"uid": "v", "after": "soon"}, {"uid": "w"}]}},
            {},
        ),
        ({"spec": {"reclaim": [{"uid": "u", "after": "1s", "newer": 1}]}}, {}),
    ],
)
def test_keeps_the_files_if_a_wish_cannot_be_parsed(
    raw: Mapping[str, Any], waits: Mapping[str, timedelta]
) -> None:
    assert project_waits(raw) == waits


def test_pods_are_due_after_their_wait() -> None:
    gone = Entry("old", charged=HELD, ended_at=ENDED)
    entries = (
        gone,
        replace(gone, uid="live", live=True, ended_at=None),
        replace(gone, uid="young", ended_at=NOW),
        replace(gone, uid="kept"),
        replace(gone, uid="mirror", cgroup="hash"),
    )
    report = Report({each.cgroup_uid: each for each in entries})
    waits = dict.fromkeys(("old", "live", "young", "mirror"), NOW - ENDED)
    assert due_pods(report, waits, NOW) == {"old", "hash"}
    assert due_pods(report, waits, NOW - timedelta(seconds=1)) == frozenset()


def test_a_file_is_due_if_all_charged_pods_are_due() -> None:
    charges = {"a": {"u": 2}, "b": {"u": 2, "v": 2}, "c": {"u": 2, SYSTEM: 2}, "d": {}}
    files = [ChargedFile(path, None, SMALL, 7, 1, each) for path, each in charges.items()]
    assert [file.path for file in due_files(files, {"u"})] == ["a"]
    assert [file.path for file in due_files(files, {"u", "v"})] == ["a", "b"]


class Node:
    """A node with one file of a gone pod."""

    def __init__(self, point: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mount = Superblock(point.stat().st_dev, SMALL, None, 0, "/dev/hugepages", point)
        file = ChargedFile("f", self.mount, SMALL, self.mount.device, 1, {"u": 2 << 20})
        self.files = [file]
        self.entry = Entry("u", "ns", "p", charged=HELD, ended_at=ENDED)
        self.fails: Exception | None = None
        self.reclaimed: list[tuple[Path, list[str]]] = []
        self.published: list[Any] = []
        self.reads = 0
        self.waits = {"u": timedelta(minutes=10)}
        monkeypatch.setattr(module, "reclaim", self._reclaim)
        self.reclaimer = Reclaimer(
            self,
            "n",
            self,  # type: ignore[arg-type]
            lambda: Report({"u": self.entry}),
            lambda: self.waits,
        )

    async def read(self, largest: int | None) -> Reading:
        self.reads += 1
        return Reading(files=tuple(self.files))

    async def create(self, resource: object, body: Any, *_: object, **__: object) -> Any:
        self.published.append(body)
        return body

    def _reclaim(self, mount: Path, names: list[str], device: int, inode: int) -> None:
        if self.fails is not None:
            raise self.fails
        self.reclaimed.append((mount, names))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


async def test_publishes_an_event_on_the_pod(node: Node, tmp_path: Path) -> None:
    assert await node.reclaimer.reclaim_due(NOW) == 1
    assert node.reclaimed == [(tmp_path, ["f"])]
    (event,) = node.published
    assert event["regarding"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "ns",
        "name": "p",
        "uid": "u",
    }
    assert "/dev/hugepages/f on node n was truncated and removed: its pod is" in event["note"]


async def test_publishes_an_event_on_the_node_if_the_pod_has_no_name(node: Node) -> None:
    node.entry = replace(node.entry, namespace="", name="")
    await node.reclaimer.reclaim_due(NOW)
    (event,) = node.published
    regarding = event["regarding"]
    assert (regarding["kind"], regarding["name"], regarding["namespace"]) == (
        "HugeTLBNode",
        "n",
        "",
    )


async def test_reads_nothing_while_no_pod_is_due(node: Node) -> None:
    assert await node.reclaimer.reclaim_due(ENDED + timedelta(minutes=9)) == 0
    node.waits = {}
    assert await node.reclaimer.reclaim_due(NOW) == 0
    assert node.reads == 0


async def test_leaves_a_held_file_silently(node: Node) -> None:
    node.fails = StillHeld()
    assert await node.reclaimer.reclaim_due(NOW) == 0
    assert node.reclaimer.failures == ()


async def test_reports_a_missing_right_until_the_file_is_removed(node: Node) -> None:
    node.fails = NotReclaimed("Permission denied")
    await node.reclaimer.reclaim_due(NOW)
    (failure,) = node.reclaimer.failures
    assert "Permission denied" in failure
    assert "agent.reclaim=true" in failure
    node.fails = None
    await node.reclaimer.reclaim_due(NOW)
    assert node.reclaimer.failures == ()


async def test_passes_on_the_path_as_names(node: Node, tmp_path: Path) -> None:
    node.files = [replace(node.files[0], path="a/b/f")]
    assert await node.reclaimer.reclaim_due(NOW) == 1
    assert node.reclaimed == [(tmp_path, ["a", "b", "f"])]


@pytest.mark.parametrize("path", ["", "/f", "a//f", "a/", "./f", "../f", "a/../f"])
async def test_refuses_a_path_that_does_not_lead_down(
    node: Node, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "reclaim", reclaim)
    node.files = [replace(node.files[0], path=path)]
    assert await node.reclaimer.reclaim_due(NOW) == 0
    (failure,) = node.reclaimer.failures
    assert "its path does not lead down from its mount" in failure


async def test_messages_can_be_written_as_json(node: Node) -> None:
    bad = os.fsdecode(b"\xff")
    node.files = [replace(node.files[0], path=f"{bad}/f")]
    node.fails = NotReclaimed("Permission denied")
    await node.reclaimer.reclaim_due(NOW)
    (failure,) = node.reclaimer.failures
    assert failure.encode().startswith(b"/dev/hugepages/\\udcff/f on node n")
    far = replace(node.mount, device=node.mount.device + 1, point=f"/{bad}")
    node.files = [replace(node.files[0], mount=far)]
    await node.reclaimer.reclaim_due(NOW)
    (failure,) = node.reclaimer.failures
    assert b"the agent does not see /\\udcff." in failure.encode()


async def test_reports_a_mount_that_the_agent_cannot_see(node: Node) -> None:
    far = replace(node.mount, device=node.mount.device + 1)
    node.files = [replace(node.files[0], mount=far)]
    await node.reclaimer.reclaim_due(NOW)
    (failure,) = node.reclaimer.failures
    assert "the agent does not see /dev/hugepages" in failure
    assert "agent.reclaimPaths" in failure
    node.files = []
    await node.reclaimer.reclaim_due(NOW)
    assert node.reclaimer.failures == ()


@pytest.mark.parametrize("change", [{"mount": None}, {"linked": False}])
async def test_leaves_a_file_without_a_mount_or_a_name(node: Node, change: dict[str, Any]) -> None:
    node.files = [replace(node.files[0], **change)]
    assert await node.reclaimer.reclaim_due(NOW) == 0
    assert (node.reclaimed, node.reclaimer.failures) == ([], ())
