"""The status that a count writes, also after a write of another program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.recount import RetainedFile
from hugetlb_quota.accounting.reservation import ReservationId
from hugetlb_quota.api.model import Condition
from hugetlb_quota.controller.counting.books import Books
from hugetlb_quota.controller.counting.unread import UnreadCharges
from hugetlb_quota.controller.expiry import Expiry
from hugetlb_quota.controller.term import Term
from hugetlb_quota.controller.writing.conditions import Finding
from hugetlb_quota.controller.writing.quota_events import QuotaEvents
from hugetlb_quota.controller.writing.status_writer import StatusWriter, restate
from hugetlb_quota.controller.writing.write_plan import WritePlan
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.lease import LeadershipLost
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.quotas import QuotaObject
from tests.unit.admission.fake_api import FakeApi, Fate, Json
from tests.unit.admission.fake_api import quota as json_of_quota

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
QUOTA = QuotaObject.from_json(
    {
        "metadata": {"namespace": "ns", "name": "q", "resourceVersion": "7", "generation": 2},
        "spec": {"hard": {"hugepages-2Mi": "64Mi"}},
    }
)
FITS = Finding("WithinLimits", True, "Fits", "Everything fits.")
OVER = Finding("WithinLimits", False, "OverLimit", "Too much.")


def counter(amount: str) -> Counter:
    pods = Charge.from_resources({"hugepages-2Mi": amount})
    return replace(QUOTA.counter, pods=pods)


def test_a_count_of_an_older_spec_leaves_the_newer_spec_uncounted() -> None:
    before = replace(QUOTA, generation=1)
    assert not restate(QUOTA, counter("2Mi"), [FITS], counted=before, now=NOW).is_counted
    assert restate(QUOTA, counter("2Mi"), [FITS], counted=QUOTA, now=NOW).is_counted


def test_a_quota_created_again_does_not_get_the_count_of_the_deleted_quota() -> None:
    before = replace(QUOTA, uid="before")
    assert restate(QUOTA, counter("2Mi"), [FITS], counted=before, now=NOW) is QUOTA


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    first = restate(QUOTA, counter("2Mi"), [FITS], counted=QUOTA, now=NOW)
    later = NOW + timedelta(minutes=1)
    again = restate(first, counter("4Mi"), [FITS], counted=QUOTA, now=later)
    assert again.conditions == first.conditions
    over = restate(again, counter("66Mi"), [OVER], counted=QUOTA, now=later)
    assert over.conditions[0].last_transition_time == later


class Api(FakeApi):
    """An API with one quota. Before each of the next writes, another program writes the quota.

    ``between``: the quota as the other program writes it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.put(json_of_quota("ns/q", {"hugepages-2Mi": "64Mi"}))
        self.between: list[Json] = []
        self.error: errors.ApiError | None = None

    async def turn(self, request: str) -> Fate:
        fate = await super().turn(request)
        if self.error is not None:
            raise self.error
        if request.startswith("PUT") and self.between:
            self.put(self.between.pop(0))
        return fate


class KeptEvents:
    """Ends no reservation, and keeps the Events instead of publishing them."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    async def gone(self, _: Counter) -> frozenset[ReservationId | str]:
        return frozenset()

    def retained(self, before: QuotaObject, files: Iterable[RetainedFile]) -> None:
        self.reasons += ["Retained" for _ in files]

    async def conditions_changed(self, _: QuotaObject, conditions: Iterable[Condition]) -> None:
        self.reasons += [each.reason for each in conditions]


class Leader:
    """A controller with the term 5 that has counted one pod of 66Mi under a limit of 64Mi."""

    def __init__(self) -> None:
        self.api, self.events, self.books = Api(), KeptEvents(), Books()
        self.lease: int | Exception = 5
        self.term = Term(self._read_lease)
        demand = Charge.from_resources({"hugepages-2Mi": "66Mi"})
        self.quota = self.api.quota("ns/q")
        self.books.store.quota_changed(None, self.quota)
        self.books.store.pod_changed(None, Pod("uid", "ns", "pod", 8, {}, demand=demand))
        self.books.count(9, 1)
        self.writer = StatusWriter(
            self.api,
            self.books,
            UnreadCharges(),
            cast(Expiry, self.events),
            self.term,
            cast(QuotaEvents, self.events),
        )

    async def _read_lease(self) -> int:
        if isinstance(self.lease, Exception):
            raise self.lease
        return self.lease

    async def write(self) -> bool:
        await self.term.is_held()
        plan = WritePlan(self.books.input.forest, (self.quota,), frozenset(), frozenset(), ())
        return await self.writer.write(self.quota, plan)

    @property
    def status(self) -> Any:
        return self.api.raw("ns/q")["status"]


@pytest.fixture
def leader() -> Leader:
    return Leader()


async def test_writes_the_count_with_the_term_and_publishes_the_bad_conditions(
    leader: Leader,
) -> None:
    assert await leader.write()
    assert leader.status["pods"] == {"hugepages-2Mi": "66Mi"}
    assert leader.status["countedUnder"] == "5"
    assert leader.events.reasons == ["OverLimit"]
    assert leader.api.requests == ["PUT hugetlbquotas/status ns/q"]


async def test_a_count_that_the_status_shows_is_not_written_again(leader: Leader) -> None:
    await leader.write()
    leader.quota = leader.api.quota("ns/q")
    leader.term.number = 6  # a new term alone is no reason to write
    assert await leader.write()
    assert len(leader.api.writes) == 1


async def test_the_reservation_that_another_program_wrote_stays(leader: Leader) -> None:
    reserved = ["new ns/new 2Mi:2Mi 2030-01-01T00:00:00Z request 0"]
    hard = {"hugepages-2Mi": "64Mi"}
    other = json_of_quota("ns/q", hard, reservations=reserved)
    other["metadata"]["uid"] = leader.quota.uid
    leader.api.between = [other]
    assert await leader.write()
    assert leader.status["pods"] == {"hugepages-2Mi": "66Mi"}
    assert [line.split()[0] for line in leader.status["reservations"]] == ["new"]


async def test_a_refused_write_is_tried_again_later(leader: Leader) -> None:
    leader.api.error = errors.Forbidden(403, "Forbidden", "no")
    assert not await leader.write()


async def test_a_quota_deleted_before_the_write_needs_no_write(leader: Leader) -> None:
    leader.api.remove("ns/q")
    assert await leader.write()
    assert leader.events.reasons == []


async def test_a_later_term_is_not_overwritten_unless_this_controller_holds_the_lease(
    leader: Leader,
) -> None:
    later = leader.api.raw("ns/q")
    leader.api.put({**later, "status": {**later["status"], "countedUnder": "9"}})
    leader.quota = leader.api.quota("ns/q")
    await leader.term.is_held()
    leader.lease = LeadershipLost("another leads")
    with pytest.raises(LeadershipLost):
        await leader.write()
    leader.lease = 5
    assert not await leader.write()
    assert leader.api.writes == []
    assert await leader.write()
    assert leader.status["countedUnder"] == "5"
