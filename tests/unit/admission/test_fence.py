"""A quota that was created just before a pod is never missed, even if the watch is late.

The API server orders all writes by resourceVersion, as etcd does. The watch delivers each event
after a random number of turns of the event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.pods import PodAdmission
from tests.unit.admission.fake_api import FakeApi, Json, admitting, create, namespace, pod, quota

TRIES = 10_000
ROOM, NONE = {"hugepages-2Mi": "1Ti"}, {"hugepages-2Mi": 0}
NOBODY = {"matchLabels": {"no": "pod"}}
#: The watch is late by at most so many turns of the event loop.
LATEST = 12


class Late(FakeApi):
    """An API server with a watch that delivers each event after a random number of turns."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    async def deliver(self) -> None:
        for _ in range(self.random.randrange(LATEST)):
            await asyncio.sleep(0)


def new_quota(api: FakeApi, where: str) -> None:
    api.put(quota(f"{where}/new", NONE))


def another_selector(api: FakeApi, where: str) -> None:
    raw = api.raw(f"{where}/full")
    api.put({**raw, "spec": {**raw["spec"], "podSelector": {}}, **bumped(raw)})


def another_parent(api: FakeApi, where: str) -> None:
    above = {"namespace": where, "name": "full"}
    raw = api.raw(f"{where}/leaf")
    api.put({**raw, "spec": {**raw["spec"], "parentRef": above}, **bumped(raw)})


def another_limit(api: FakeApi, where: str) -> None:
    raw = api.raw(f"{where}/leaf")
    api.put({**raw, "spec": {**raw["spec"], "hard": NONE}, **bumped(raw)})


def bumped(raw: Json) -> Json:
    """A new generation, as after a change of the spec, that the controller has counted."""
    generation = raw["metadata"]["generation"] + 1
    return {
        "metadata": {**raw["metadata"], "generation": generation},
        "status": {**raw["status"], "observedGeneration": generation},
    }


CHANGES: tuple[Callable[[FakeApi, str], None], ...] = (
    new_quota,
    another_selector,
    another_parent,
    another_limit,
)


async def is_allowed(admission: PodAdmission, uid: str, where: str) -> bool:
    raw = pod(uid, {"hugepages-2Mi": "2Mi"}, namespace=where)
    return (await admission.decide(create(raw, uid=uid), Deadline.after(60))).allowed


async def taken_back(admission: PodAdmission) -> None:
    """Wait until the reservations of refused and repeated attempts are taken back."""
    while admission._committer._uncharger.tasks:
        await asyncio.sleep(0)


@pytest.mark.parametrize("governed", [True, False], ids=["governed", "not governed"])
async def test_a_quota_created_just_before_the_pod_is_never_missed(governed: bool) -> None:
    api = Late(seed=1)
    api.put(namespace("ns"))
    missed: list[str] = []
    async with admitting(api) as admission:
        for number in range(TRIES // 2):
            where = f"ns-{number}"
            api.put(quota(f"{where}/full", NONE, selector=NOBODY))
            if governed:
                api.put(quota(f"{where}/leaf", ROOM))
            change = api.random.choice(CHANGES if governed else CHANGES[:2])
            # Another pod comes before the change; sometimes the watch is late, and sometimes not.
            for _ in range(api.random.randrange(LATEST)):
                await asyncio.sleep(0)
            before = asyncio.create_task(is_allowed(admission, f"before-{number}", where))
            for _ in range(api.random.randrange(LATEST)):
                await asyncio.sleep(0)
            change(api, where)
            if await is_allowed(admission, f"pod-{number}", where):
                missed.append(f"{change.__name__} at {number}")
            await before
            await taken_back(admission)
            for name in ("full", "leaf", "new"):
                if ("hugetlbquotas", where, name) in api.objects:
                    assert f"pod-{number}" not in api.reservations(f"{where}/{name}")
                    api.remove(f"{where}/{name}")
    assert missed == []


async def test_a_pod_that_is_decided_again_is_charged_to_every_quota() -> None:
    # The reservation of the first attempt is taken back while the second attempt is decided.
    api = Late(seed=2)
    api.put(namespace("ns"))
    again = 0
    async with admitting(api) as admission:
        for number in range(200):
            where = f"ns-{number}"
            api.put(quota(f"{where}/leaf", ROOM))
            while not admission._cache.get(QuotaKey(where, "leaf")):
                await asyncio.sleep(0)
            api.put(quota(f"{where}/new", ROOM))
            assert await is_allowed(admission, f"pod-{number}", where)
            await taken_back(admission)
            for name in ("leaf", "new"):
                assert f"pod-{number}" in api.reservations(f"{where}/{name}")
            (line,) = api.raw(f"{where}/leaf")["status"]["reservations"]
            again += f" pod-{number}.2 " in line
    assert again
