"""Which reservations end although the controller has counted no pod for them."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.controller import expiry
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.controller.expiry import APART, SUPERSEDED_FOR, Expiry
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.informer import Informer, ObjectKey
from hugetlb_quota.kube.pods import Pod, project_demanding_pod
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS, PODS, Resource
from tests.unit.admission.fake_api import Json, pod, quota

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
HELD = Reservation("p", "db/name-of-p", Charge(), LONG_AGO, "r", 80)


class Api:
    """Has the pod ``now``. ``reads``: the number of reads of the pod."""

    def __init__(self, now: Json | None = None) -> None:
        self.now = now
        self.reads = 0

    async def get(self, *_: Any, **__: Any) -> Json:
        self.reads += 1
        if self.now is None:
            raise errors.NotFound(404, "NotFound", "no such pod")
        return self.now


class Watching:
    """An Expiry with its clock, and with the objects that its informers have seen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, api: object) -> None:
        self.now = 1000.0
        monkeypatch.setattr(expiry, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.pods: Informer[Pod] = Informer(cast(Connection, api), PODS, project_demanding_pod)
        connection = cast(Connection, api)
        self.quotas = Informer(connection, HUGETLB_QUOTAS, QuotaObject.to_count)
        lifetime = timedelta(seconds=60)
        self.expiry = Expiry(connection, Census(), self.pods, self.quotas, lifetime)

    def sees(self, version: int) -> None:
        raw = at(version)
        self.pods._apply(ObjectKey("db", "name-of-p"), "p", project_demanding_pod(raw), version)

    def sees_quota(self, raw: Json) -> None:
        key = ObjectKey(raw["metadata"]["namespace"], raw["metadata"]["name"])
        self.quotas._apply(key, raw["metadata"]["uid"], QuotaObject.to_count(raw), 1)

    async def gone(self, *held: Reservation, after: float = 0.0, **unreadable: Any) -> set[str]:
        """The requests with reservations that are gone, after ``after`` more seconds."""
        self.now += after
        counter = Counter(QuotaKey("db", "leaf"), Charge(), reservations=held, **unreadable)
        self.expiry.note([counter])
        gone = await self.expiry.gone(counter)
        return {each if isinstance(each, str) else each.request for each in gone}


def at(version: int) -> Json:
    raw = pod("p", {"hugepages-2Mi": "64Mi"}, namespace="db")
    raw["metadata"]["resourceVersion"] = str(version)
    return raw


def at_generation(generation: int) -> Json:
    """A quota that had another parent at generation 4."""
    raw = quota("db/moving", {"hugepages-2Mi": "8Mi"}, parent=f"db/parent-{generation}")
    raw["metadata"] |= {"generation": generation, "resourceVersion": str(90 + generation)}
    raw["metadata"].setdefault("uid", "uid-of-moving")
    return raw


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Watching:
    """The API server does not have the pod."""
    return Watching(monkeypatch, Api())


async def test_two_reads_some_time_apart_prove_that_a_pod_will_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api()
    watching = Watching(monkeypatch, api)
    assert await watching.gone(HELD) == set()
    assert await watching.gone(HELD, after=59) == set()
    assert api.reads == 0  # the life of the reservation is not over
    assert await watching.gone(HELD, after=1) == set()
    assert await watching.gone(HELD, after=APART - 1) == set()
    assert api.reads == 1
    assert await watching.gone(HELD, after=1) == {"r"}
    assert api.reads == 2


@pytest.mark.parametrize("hours", [-1, 1])
async def test_the_clock_of_a_replica_neither_ends_nor_lengthens_a_life(
    absent: Watching, hours: int
) -> None:
    expires = datetime.now(UTC) + timedelta(hours=hours)
    held = replace(HELD, expires=expires)
    assert await absent.gone(held) == set()
    assert await absent.gone(held, after=59) == set()
    assert await absent.gone(held, after=APART) == set()  # the first read: the life was not over
    assert await absent.gone(held, after=APART) == {"r"}


async def test_a_new_controller_needs_not_watch_a_life_that_is_marked_as_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api(at(90))
    first = Watching(monkeypatch, api)
    assert await first.gone(HELD) == set()
    assert await first.gone(HELD, after=40) == set()
    # The second controller leads now. During its watch a replica of admission marks the
    # reservation.
    second = Watching(monkeypatch, api)
    assert await second.gone(HELD) == set()
    assert await second.gone(HELD, after=20) == set()
    assert api.reads == 0
    over = HELD.as_over()
    # The controller still reads the pod twice. A pod that exists keeps its reservation.
    assert await second.gone(over) == set()
    assert await second.gone(over, after=APART) == set()
    api.now = None
    assert await second.gone(over) == set()
    assert await second.gone(over, after=APART - 1) == set()
    assert await second.gone(over, after=1) == {"r"}


async def test_the_second_read_sees_a_create_that_a_pause_delayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = Api()
    watching = Watching(monkeypatch, api)
    await watching.gone(HELD)
    assert await watching.gone(HELD, after=60) == set()
    api.now = at(90)
    assert await watching.gone(HELD, after=APART) == set()
    # The pod is deleted before the informer has seen it. The proof begins again.
    api.now = None
    assert await watching.gone(HELD, after=APART) == set()
    assert await watching.gone(HELD, after=APART) == {"r"}


async def test_a_reservation_stays_until_the_controller_sees_the_present_pod(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The life is over and the pod was read, but the reservation is for this version of the pod."""
    held = replace(HELD, since=90)

    class Racing(Api):
        async def get(self, *_: Any, **__: Any) -> Json:
            watching.sees(90)  # during the read
            return at(90)

    watching = Watching(monkeypatch, Racing())
    watching.sees(80)
    await watching.gone(held)
    assert await watching.gone(held, after=60) == set()
    assert await watching.gone(held, after=APART) == set()
    assert await watching.gone(held, after=APART) == {"r"}


@pytest.mark.parametrize("since", [0, 80], ids=["created", "relabelled"])
async def test_a_pod_that_is_counted_after_its_change_ends_its_reservation_elsewhere(
    absent: Watching, since: int
) -> None:
    """The pod was relabelled before its first count, or the change was lost."""
    held = replace(HELD, since=since)
    absent.sees(since or 80)
    if since:
        assert await absent.gone(held) == set()
        assert await absent.gone(held, after=SUPERSEDED_FOR) == set()
        absent.sees(81)
    assert await absent.gone(held) == set()
    assert await absent.gone(held, after=SUPERSEDED_FOR - 1) == set()
    assert await absent.gone(held, after=1) == {"r"}
    # A later change has a reservation of its own.
    later = replace(HELD, since=81, request="later")
    assert await absent.gone(later, after=SUPERSEDED_FOR) == set()


async def test_a_pod_that_the_controller_sees_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller finds thousands of marked reservations of pods after a long absence."""
    api = Api(at(81))
    watching = Watching(monkeypatch, api)
    watching.sees(81)
    over = HELD.as_over()
    assert await watching.gone(over) == set()
    assert await watching.gone(over, after=SUPERSEDED_FOR) == {"r"}
    assert api.reads == 0


async def test_the_reservation_of_a_quota_that_moved_stays_until_the_controller_sees_the_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The watch of quotas may be silent for longer than the life of the reservation."""
    before = at_generation(4)

    class Moves:
        def __init__(self) -> None:
            self.now = before

        async def get(self, resource: Resource, name: str, namespace: str) -> Json:
            assert (resource, namespace, name) == (HUGETLB_QUOTAS, "db", "moving")
            return self.now

    api = Moves()
    watching = Watching(monkeypatch, api)
    watching.sees_quota(before)
    held = replace(HELD, uid=before["metadata"]["uid"], pod="db/moving", since=4)
    await watching.gone(held)
    assert await watching.gone(held, after=60) == set()
    api.now = at_generation(5)
    assert await watching.gone(held, after=APART) == set()
    assert await watching.gone(held, after=APART) == set()
    # Now the controller sees the move. If the quota attaches to the new parent, the count ends the
    # reservation. If not, nothing is charged to this quota.
    watching.sees_quota(api.now)
    assert await watching.gone(held) == set()
    assert await watching.gone(held, after=APART) == {"r"}


async def test_the_reservation_of_a_quota_that_did_not_move_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = at_generation(4)
    watching = Watching(monkeypatch, Api(now))
    watching.sees_quota(now)
    held = replace(HELD, uid=now["metadata"]["uid"], pod="db/moving", since=4)
    await watching.gone(held)
    assert await watching.gone(held, after=60) == set()
    assert await watching.gone(held, after=APART) == {"r"}


async def test_the_expiry_knows_when_its_next_result_may_differ(absent: Watching) -> None:
    began = absent.now
    assert absent.expiry.next_due(began) == math.inf
    await absent.gone(HELD)
    assert absent.expiry.next_due(began) == began + 60
    absent.sees(81)
    await absent.gone(HELD)
    assert absent.expiry.next_due(began) == began + SUPERSEDED_FOR
    absent.sees(80)
    await absent.gone(HELD, after=60)
    assert absent.expiry.next_due(absent.now) == began + 60 + APART
    await absent.gone()
    assert absent.expiry.next_due(began) == math.inf


async def test_a_reservation_with_an_invalid_pod_name_ends_no_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The API server answers an empty name with the list of all pods.
    watching = Watching(monkeypatch, Api({"kind": "PodList", "items": []}))
    names = ("ns/", "/", "", "ns/p")
    held = [replace(HELD, uid=f"u-{name}", pod=name, request=name or "-") for name in names]
    assert await watching.gone(*held, unreadable=("garbage",)) == set()
    assert await watching.gone(*held, unreadable=("garbage",), after=60) == {"garbage"}
    assert await watching.gone(*held, unreadable=("garbage",), after=APART) == {
        "garbage",
        *(each.request for each in held),
    }
