"""Concurrent changes of quotas: if only one of two changes may be stored, the other is refused.

The fake API server works as the real API server. It calls admission with the stored object, and
stores the change only over the same version. After another write it calls admission again.
"""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.admission import quotas as quotas_module
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.changes import ChangeNotes
from hugetlb_quota.admission.commit import Committer
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.quotas import QuotaAdmission
from hugetlb_quota.admission.review import Decision
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS
from tests.unit.admission.fake_api import (
    CHANGES,
    FakeApi,
    Fate,
    Json,
    admitting_quotas,
    create,
    delete,
    namespace,
    quota,
    update,
)

SEEDS = range(50)
ALL: Json = {}


class Busy(FakeApi):
    """Each request takes a random number of turns of the event loop."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    async def turn(self, request: str) -> Fate:
        await self.wait()
        fate = await super().turn(request)
        await self.wait()
        return fate

    async def wait(self, longest: int = 9) -> None:
        for _ in range(self.random.randrange(longest)):
            await asyncio.sleep(0)

    async def store(self, admission: QuotaAdmission, key: str, **spec: Any) -> Decision:
        """Merge ``spec`` into the quota, or create the quota, as the API server does."""
        while True:
            old = self.stored(key)
            if old is None:
                new = quota(key, {}, counted=False)
            else:
                new = {**old, "metadata": {**old["metadata"]}}
            new = {**new, "spec": {**new["spec"], **spec}}
            request = create(new) if old is None else update(old, new)
            decision = await admission.decide(request, Deadline.after(60))
            if not decision.allowed:
                return decision
            await self.wait(200)
            if self.stored(key) is old:
                self.put(new)
                return decision

    def stored(self, key: str) -> Json | None:
        return self.objects.get((HUGETLB_QUOTAS.plural, *QuotaKey.parse(key)))

    def forest(self) -> Forest:
        names = [
            f"{raw['metadata']['namespace']}/{raw['metadata']['name']}"
            for (plural, _, _), raw in self.objects.items()
            if plural == "hugetlbquotas"
        ]
        labels = {
            name: raw["metadata"].get("labels", {})
            for (plural, _, name), raw in self.objects.items()
            if plural == "namespaces"
        }
        return Forest((self.quota(name).quota for name in names), labels)


def below(name: str) -> Json:
    return {"namespace": "ns", "name": name}


def hard(amount: str) -> Json:
    return {"hugepages-2Mi": amount}


@pytest.fixture(params=SEEDS)
def api(request: pytest.FixtureRequest) -> Busy:
    api = Busy(request.param)
    api.put(namespace("ns"))
    return api


async def race(api: Busy, *changes: tuple[str, Json]) -> list[Decision]:
    """Make the changes at the same time, each with its own replica; return the decisions."""
    replicas = [
        QuotaAdmission(api, Committer(api, QuotaCache(api)), ChangeNotes(api, CHANGES))
        for _ in changes
    ]
    return await asyncio.gather(
        *(
            api.store(replica, key, **spec)
            for replica, (key, spec) in zip(replicas, changes, strict=True)
        )
    )


async def test_two_changes_can_not_close_a_cycle(api: Busy) -> None:
    for name in "abc":
        api.put(quota(f"ns/{name}", hard("64Mi")))
    decisions = await race(
        api,
        ("ns/a", {"parentRef": below("b")}),
        ("ns/b", {"parentRef": below("c")}),
        ("ns/c", {"parentRef": below("a")}),
    )
    assert sorted(each.allowed for each in decisions) == [False, True, True]
    (refused,) = [each.message for each in decisions if not each.allowed]
    assert "lead in a cycle" in refused
    for each in api.forest():
        api.forest().chain(each.key)


async def test_two_quotas_can_not_be_created_below_each_other(api: Busy) -> None:
    decisions = await race(
        api, ("ns/a", {"parentRef": below("b")}), ("ns/b", {"parentRef": below("a")})
    )
    assert sorted(each.allowed for each in decisions) == [False, True]


async def test_a_child_is_not_raised_above_an_ancestor_that_is_lowered(api: Busy) -> None:
    api.put(quota("ns/root", hard("256Mi")))
    api.put(quota("ns/mid", {}, parent="ns/root"))
    api.put(quota("ns/leaf", hard("64Mi"), parent="ns/mid"))
    decisions = await race(
        api, ("ns/leaf", {"hard": hard("192Mi")}), ("ns/root", {"hard": hard("128Mi")})
    )
    assert sorted(each.allowed for each in decisions) == [False, True]


async def test_a_quota_is_not_created_above_a_parent_that_is_lowered(api: Busy) -> None:
    api.put(quota("ns/root", hard("256Mi")))
    new = {"hard": hard("192Mi"), "parentRef": below("root")}
    decisions = await race(api, ("ns/leaf", new), ("ns/root", {"hard": hard("128Mi")}))
    assert sorted(each.allowed for each in decisions) == [False, True]


async def test_a_widened_selector_can_not_close_a_cycle(api: Busy) -> None:
    api.put(namespace("far"))
    api.put(quota("far/a", hard("64Mi"), parent="ns/b"))  # ns/b does not let far/a attach
    api.put(quota("ns/b", hard("64Mi"), parent="ns/c"))
    api.put(quota("ns/c", hard("64Mi")))
    api.put(quota("far/a", hard("64Mi"), parent="ns/b", children=ALL))
    over = {"namespace": "far", "name": "a"}
    decisions = await race(api, ("ns/c", {"parentRef": over}), ("ns/b", {"childNamespaces": ALL}))
    assert sorted(each.allowed for each in decisions) == [False, True]


async def test_siblings_do_not_wait_for_each_other(api: Busy) -> None:
    api.put(quota("ns/root", hard("256Mi")))
    new = {"parentRef": below("root")}
    decisions = await race(api, *((f"ns/leaf-{number}", new) for number in range(4)))
    assert all(each.allowed for each in decisions)


@pytest.fixture
def quiet() -> FakeApi:
    """An API server with ns/root; ns/leaf may be created below."""
    api = FakeApi()
    api.put(namespace("ns"))
    api.put(quota("ns/root", hard("256Mi")))
    return api


NEW = quota("ns/leaf", hard("192Mi"), parent="ns/root")
LOWER = quota("ns/root", hard("128Mi"))


class Replicas:
    """Replicas of admission: one monotonic clock, and a wall clock each."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.seconds = 100.0

    def start(self, skew: timedelta = timedelta(0)) -> tuple[QuotaAdmission, ChangeNotes]:
        """A replica with a wall clock that is ahead by ``skew``."""

        def now() -> datetime:
            elapsed = timedelta(seconds=self.seconds)
            return datetime(2026, 11, 22, 12, 0, tzinfo=UTC) + elapsed + skew

        notes = ChangeNotes(
            self.api, CHANGES, now, lifetime=timedelta(seconds=34), clock=lambda: self.seconds
        )
        committer = Committer(self.api, QuotaCache(self.api))
        return QuotaAdmission(self.api, committer, notes), notes


@pytest.fixture
def replicas(quiet: FakeApi, monkeypatch: pytest.MonkeyPatch) -> Replicas:
    monkeypatch.setattr(quotas_module, "LONGEST_WAIT", 0.1)
    return Replicas(quiet)


async def lower(admission: QuotaAdmission, api: FakeApi) -> Decision:
    request = update(api.raw("ns/root"), LOWER, uid="another")
    return await admission.decide(request, Deadline.after(9))


async def test_a_noted_change_blocks_others_until_its_life_is_over(replicas: Replicas) -> None:
    api, (admission, _) = replicas.api, replicas.start()
    assert (await admission.decide(create(NEW), Deadline.after(9))).allowed
    assert api.noted == ["ns/leaf ns/root"]
    replicas.seconds += 63.9
    refused = await lower(admission, api)
    assert (refused.allowed, refused.retry_after) == (False, 1)
    assert "ns/leaf, above or below it, is being changed at the same time" in refused.message
    replicas.seconds += 0.1
    assert (await lower(admission, api)).allowed
    assert api.noted == ["ns/root -"]


@pytest.mark.parametrize("skew", [timedelta(hours=1), timedelta(hours=-1)], ids=["ahead", "behind"])
async def test_no_wall_clock_ends_or_lengthens_the_life_of_a_note(
    replicas: Replicas, skew: timedelta
) -> None:
    api, (one, _), (other, _) = replicas.api, replicas.start(), replicas.start(skew)
    assert (await one.decide(create(NEW), Deadline.after(9))).allowed
    assert not (await lower(other, api)).allowed
    replicas.seconds += 63.9
    assert not (await lower(other, api)).allowed
    replicas.seconds += 0.1
    assert (await lower(other, api)).allowed


async def test_a_replica_removes_a_note_only_after_it_has_watched_the_whole_life(
    replicas: Replicas,
) -> None:
    api, (one, notes) = replicas.api, replicas.start()
    assert (await one.decide(create(NEW), Deadline.after(9))).allowed
    replicas.seconds += 20
    # A replica that starts now does not see how old the note is.
    late, late_notes = replicas.start()
    await late_notes.look()
    replicas.seconds += 44
    await late_notes.look()
    assert api.noted == ["ns/leaf ns/root"]
    assert not (await lower(late, api)).allowed
    await notes.look()
    assert api.noted == []
    assert (await lower(late, api)).allowed


async def test_a_replica_reads_the_notes_only_if_a_life_is_over(replicas: Replicas) -> None:
    api, (admission, notes) = replicas.api, replicas.start()
    await notes.look()
    assert (await admission.decide(create(NEW), Deadline.after(9))).allowed
    before = len(api.requests)
    replicas.seconds += 63.9
    await notes.look()
    assert len(api.requests) == before
    replicas.seconds += 0.1
    await notes.look()
    await notes.look()
    where = "/".join(CHANGES)
    assert api.requests[before:] == [f"GET configmaps {where}", f"PUT configmaps {where}"]


async def test_the_note_of_a_creation_goes_when_the_quota_is_deleted(quiet: FakeApi) -> None:
    async with admitting_quotas(quiet) as admission:
        assert (await admission.decide(create(NEW), Deadline.after(9))).allowed
        assert (await admission.decide(delete(quiet.put(NEW)), Deadline.after(9))).allowed
        quiet.remove("ns/leaf")
        assert quiet.noted == []


async def test_dry_runs_and_refused_changes_are_not_noted(quiet: FakeApi) -> None:
    async with admitting_quotas(quiet) as admission:
        assert (await admission.decide(create(NEW, dry_run=True), Deadline.after(9))).allowed
        wrong = quota("ns/leaf", hard("512Mi"), parent="ns/root")
        assert not (await admission.decide(create(wrong), Deadline.after(9))).allowed
        quiet.put(NEW)
        assert (await admission.decide(create(NEW), Deadline.after(9))).allowed
    assert quiet.noted == []


async def test_the_note_of_a_move_without_room_is_withdrawn(quiet: FakeApi) -> None:
    used = {"hugepages-2Mi": "64Mi"}
    quiet.put(quota("ns/root", hard("256Mi"), pods={"hugepages-2Mi": "224Mi"}))
    old = quiet.put(quota("ns/leaf", hard("64Mi"), pods=used))
    new = {**old, "spec": {**old["spec"], "parentRef": below("root")}}
    async with admitting_quotas(quiet) as admission:
        refused = await admission.decide(update(old, new), Deadline.after(9))
    assert "can't be moved with its charge" in refused.message
    assert quiet.noted == []


@pytest.mark.parametrize(
    ("data", "message"), [("not a note", "Delete that line."), (None, "is missing")]
)
async def test_a_change_that_can_not_be_noted_is_refused(
    quiet: FakeApi, data: str | None, message: str
) -> None:
    where = ("configmaps", *CHANGES)
    if data is None:
        del quiet.objects[where]
    else:
        quiet.objects[where]["data"] = {"changes": data}
    async with admitting_quotas(quiet) as admission:
        refused = await admission.decide(create(NEW), Deadline.after(9))
        root = quota("ns/other", hard("64Mi"))
        assert (await admission.decide(create(root), Deadline.after(9))).allowed
    assert not refused.allowed
    assert message in refused.message
