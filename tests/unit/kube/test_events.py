"""The Events that the programs make, and the count of an Event that happens again."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from hugetlb_quota.kube import errors
from hugetlb_quota.kube.events import LONGEST_NOTE, Regarding, count, event
from hugetlb_quota.kube.resources import Resource

Json = dict[str, Any]
NODE = Regarding("v1", "Node", "", "n1")
POD = Regarding("v1", "Pod", "db", "pg-0", "u")


def made(regarding: Regarding, *, note: str = "A sentence.", suffix: str = "") -> Json:
    return event(
        regarding,
        kind="Warning",
        reason="Reason",
        note=note,
        program="agent",
        instance="i" * 200,
        action="Act",
        suffix=suffix,
    )


def test_an_event_is_in_the_namespace_of_its_object() -> None:
    body = made(POD)
    assert body["metadata"]["namespace"] == "db"
    assert body["regarding"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "db",
        "name": "pg-0",
        "uid": "u",
    }
    assert (body["reportingController"], body["reportingInstance"]) == (
        "hugetlb.dev/agent",
        "i" * 128,
    )


def test_an_event_about_a_cluster_scoped_object_is_in_the_default_namespace() -> None:
    assert made(NODE)["metadata"]["namespace"] == "default"


def test_a_long_note_is_cut() -> None:
    assert made(POD, note="n" * LONGEST_NOTE)["note"] == "n" * LONGEST_NOTE
    note = made(POD, note="n" * (LONGEST_NOTE + 1))["note"]
    assert (len(note), note[-4:]) == (LONGEST_NOTE, "n...")


@pytest.mark.parametrize("name", ["pg-0", "x" * 253, "x" * 241 + "-.yyyy"])
def test_the_name_of_an_event_is_valid_and_ends_with_the_suffix(name: str) -> None:
    found = made(Regarding("v1", "Pod", "db", name), suffix="suffix0001")["metadata"]["name"]
    assert len(found) <= 253
    assert found.endswith(".suffix0001")
    assert found.startswith(name[:241].rstrip("-."))
    assert ".." not in found
    assert "-." not in found


def test_two_events_without_a_suffix_have_different_names() -> None:
    assert made(POD)["metadata"]["name"] != made(POD)["metadata"]["name"]


class Api:
    """Stores one Event; other processes write `races` times between our read and our write."""

    def __init__(self, races: int = 0) -> None:
        self.stored: Json | None = None
        self.races = races

    def _race(self, body: Json) -> None:
        if self.races:
            self.races -= 1
            self._add(body)

    def _add(self, body: Json) -> None:
        if self.stored is None:
            self.stored = {**copy.deepcopy(body), "series": None, "version": 1}
        else:
            before = (self.stored.get("series") or {}).get("count", 1)
            self.stored |= {
                "series": {"count": before + 1},
                "version": self.stored["version"] + 1,
            }

    async def get(
        self, resource: Resource, name: str, namespace: str | None = None, *, timeout: float = 1
    ) -> Json:
        if self.stored is None:
            raise errors.NotFound(404, "NotFound", "")
        return copy.deepcopy(self.stored)

    async def create(
        self, resource: Resource, body: Json, namespace: str | None = None, *, timeout: float = 1
    ) -> Json:
        self._race(body)
        if self.stored is not None:
            raise errors.AlreadyExists(409, "AlreadyExists", "")
        self.stored = {**copy.deepcopy(body), "version": 1}
        return body

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: Json,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        timeout: float = 1,
    ) -> Json:
        self._race(body)
        assert self.stored is not None
        if body["version"] != self.stored["version"]:
            raise errors.Conflict(409, "Conflict", "")
        self.stored = {**copy.deepcopy(body), "version": body["version"] + 1}
        return body

    @property
    def count(self) -> int:
        assert self.stored is not None
        found: int = (self.stored.get("series") or {}).get("count", 1)
        return found


async def test_a_single_event_has_no_series() -> None:
    api = Api()
    await count(api, made(POD, suffix="s"), 1)
    assert api.stored is not None
    assert "series" not in api.stored


async def test_a_repeated_event_is_counted_and_keeps_its_note() -> None:
    api = Api()
    await count(api, made(POD, suffix="s", note="first"), 2)
    await count(api, made(POD, suffix="s", note="second"), 3)
    assert api.count == 5
    assert api.stored is not None
    assert api.stored["note"] == "first"


@pytest.mark.parametrize("races", [1, 4])
async def test_concurrent_counts_are_all_counted(races: int) -> None:
    api = Api(races)
    await count(api, made(POD, suffix="s"), 10)
    assert api.count == races + 10


async def test_a_count_that_loses_every_attempt_raises() -> None:
    with pytest.raises(errors.Conflict):
        await count(Api(races=5), made(POD, suffix="s"), 10)
