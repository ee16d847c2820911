"""Each orphan is reported once, in the log and by one Event for each node."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from hugetlb_quota.controller.counting.count import Orphan
from hugetlb_quota.controller.writing.orphans import OrphanReporter
from hugetlb_quota.kube.connection import Connection


class Api:
    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []

    async def create(self, _: Any, body: dict[str, Any], *__: Any, **___: Any) -> dict[str, Any]:
        assert (body["reason"], body["type"]) == ("NobodyPays", "Warning")
        assert body["metadata"]["namespace"] == "default"
        self.notes.append((body["regarding"]["name"], body["note"]))
        return body


async def test_each_orphan_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    api = Api()
    orphans = OrphanReporter(cast(Connection, api), "me")
    nameless, named = Orphan("a", "uid", ""), Orphan("b", "other", "ns/pod")
    for found in ({nameless}, {nameless}, {nameless, named}, {named}):
        orphans.report(frozenset(found))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert [node for node, _ in api.notes] == ["a", "b"]
    assert "charged to pod of UID uid, and no quota" in api.notes[0][1]
    assert "charged to pod ns/pod, and no quota" in api.notes[1][1]
    assert api.notes[1][1].endswith(
        "Remove the pod's files, or create a quota that selects the pod."
    )
    assert len(caplog.records) == 2


async def test_many_orphans_on_one_node_make_one_event() -> None:
    api = Api()
    orphans = OrphanReporter(cast(Connection, api), "me")
    orphans.report(frozenset(Orphan("a", str(number), f"ns/{number}") for number in range(7)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    ((node, note),) = api.notes
    assert node == "a"
    assert "charged to 7 pods: ns/0, ns/1, ns/2, ns/3, ns/4 and 2 more, and no quota" in note
    assert note.endswith("Remove the pods' files, or create a quota that selects the pods.")
    assert len(note) < 1024
