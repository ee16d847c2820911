"""Decisions about pods while other requests and other programs write the same quotas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.lane import LARGEST_BATCH
from hugetlb_quota.admission.pods import PodAdmission
from hugetlb_quota.admission.review import Decision
from hugetlb_quota.kube import errors
from tests.unit.admission.fake_api import (
    NOW,
    FakeApi,
    Fate,
    admitting,
    create,
    decide_pod,
    namespace,
    pod,
    quota,
    reservation,
    with_tenant,
)


@pytest.fixture
def api() -> FakeApi:
    """An API server with acme/tenant of 256Mi, and db/leaf of 128Mi below."""
    return with_tenant(FakeApi())


class Intruding(FakeApi):
    """Calls ``intrude`` once, just before the first write."""

    def __init__(self) -> None:
        super().__init__()
        self.intrude: Callable[[], None] | None = None

    async def turn(self, request: str) -> Fate:
        fate = await super().turn(request)
        if request.startswith("PUT") and self.intrude is not None:
            act, self.intrude = self.intrude, None
            act()
        return fate


@pytest.fixture
def intruded() -> Intruding:
    """An API server with acme/tenant of 256Mi, and db/leaf of 128Mi below."""
    return with_tenant(Intruding())


async def test_after_a_conflict_the_newer_quota_is_decided_again(intruded: Intruding) -> None:
    def take_all() -> None:
        held = [reservation("other", "db/other", "128Mi")]
        raw = quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", reservations=held)
        raw["metadata"]["uid"] = intruded.raw("db/leaf")["metadata"]["uid"]
        intruded.put(raw)

    intruded.intrude = take_all
    decision = await decide_pod(intruded, create(pod()))
    assert "HugeTLBQuota db/leaf has no room: 128Mi of 128Mi is used" in decision.message
    assert intruded.reservations("db/leaf") == {"other": "128Mi"}


async def test_a_refusal_by_the_root_takes_the_reservation_on_the_leaf_back(
    intruded: Intruding,
) -> None:
    def lower() -> None:
        raw = intruded.raw("acme/tenant")
        raw["spec"]["hard"] = {"hugepages-2Mi": "2Mi"}
        intruded.put(raw)

    intruded.intrude = lower
    decision = await decide_pod(intruded, create(pod()))
    assert "HugeTLBQuota acme/tenant has room for 2Mi" in decision.message
    assert intruded.reservations("db/leaf") == {}


async def test_a_pod_is_decided_again_if_its_quota_moves_meanwhile(intruded: Intruding) -> None:
    def move() -> None:
        intruded.put(quota("db/root", {"hugepages-2Mi": "1Gi"}))
        raw = intruded.raw("db/leaf")
        raw["spec"]["parentRef"] = {"namespace": "db", "name": "root"}
        intruded.put(raw)

    intruded.intrude = move
    root_selects_nothing = {"matchLabels": {"no": "pod"}}
    intruded.put(quota("db/root", {"hugepages-2Mi": "1Gi"}, selector=root_selects_nothing))
    assert (await decide_pod(intruded, create(pod()))).allowed
    assert intruded.reservations("db/root") == {"pod-1": "64Mi"}
    assert intruded.reservations("acme/tenant") == {}


async def test_concurrent_requests_share_a_write(api: FakeApi) -> None:
    requests = [
        create(pod(f"pod-{index}", {"hugepages-2Mi": "8Mi"}), uid=f"request-{index}")
        for index in range(32)
    ]
    async with admitting(api, lambda: NOW) as admission:
        decisions = await asyncio.gather(
            *(admission.decide(request, Deadline.after(9)) for request in requests)
        )
    # In order of arrival: 16 pods fill the leaf.
    assert [decision.allowed for decision in decisions] == [True] * 16 + [False] * 16
    assert "has no room: 128Mi of 128Mi is used" in decisions[16].message
    assert set(api.reservations("acme/tenant")) == {f"pod-{index}" for index in range(16)}
    assert len(api.writes) == 2


async def test_a_refusal_reads_the_quota_again(intruded: Intruding) -> None:
    held = [reservation("other", "db/other", "64Mi")]
    leaf = quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", reservations=held)
    intruded.put(leaf)

    async def never() -> None:
        await asyncio.Event().wait()

    async with admitting(intruded, lambda: NOW) as admission:
        await admission._cache.ready()
        intruded.deliver = never  # type: ignore[method-assign]
        # The quota has room now, and the watch has not delivered the change.
        raw = intruded.raw("db/leaf")
        raw["status"]["reservations"] = []
        intruded.put(raw)
        large = create(pod(request={"hugepages-2Mi": "128Mi"}))
        deciding = asyncio.create_task(admission.decide(large, Deadline.after(9)))
        async with asyncio.timeout(5):
            while intruded.reservations("db/leaf") != {"pod-1": "128Mi"}:
                await asyncio.sleep(0.001)
        # There is no answer before the watch has delivered the write.
        await asyncio.sleep(0.05)
        assert not deciding.done()
        deciding.cancel()
        await asyncio.wait((deciding,))
    # The reservation of the cancelled request is taken back.
    assert intruded.reservations("db/leaf") == intruded.reservations("acme/tenant") == {}


async def test_a_burst_does_not_delay_another_namespace(api: FakeApi) -> None:
    api.put(namespace("quiet", tenant="acme"))
    api.put(quota("quiet/leaf", {"hugepages-2Mi": "1Gi"}, parent="acme/tenant"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "1Ti"}, parent="acme/tenant"))
    api.put(quota("acme/tenant", {"hugepages-2Mi": "1Ti"}, children={}))
    answered: list[str] = []

    async def admit(admission: PodAdmission, uid: str, where: str) -> None:
        raw = pod(uid, {"hugepages-2Mi": "2Mi"}, namespace=where)
        assert (await admission.decide(create(raw, uid=uid), Deadline.after(30))).allowed
        answered.append(uid)

    async with admitting(api, lambda: NOW) as admission:
        burst = [admit(admission, f"burst-{index}", "db") for index in range(600)]
        await asyncio.gather(*burst, admit(admission, "one", "quiet"))
    assert answered.index("one") <= 2 * LARGEST_BATCH


async def test_a_request_that_would_wait_too_long_is_refused_at_once() -> None:
    class Slow(FakeApi):
        async def turn(self, request: str) -> Fate:
            fate = await super().turn(request)
            await asyncio.sleep(0.3 if request.startswith("PUT") else 0)
            return fate

    slow = with_tenant(Slow())
    two_mib = {"hugepages-2Mi": "2Mi"}

    def start(admission: PodAdmission, uid: str, seconds: float) -> asyncio.Task[Decision]:
        request = create(pod(uid, two_mib), uid=uid)
        return asyncio.create_task(admission.decide(request, Deadline.after(seconds)))

    async with admitting(slow, lambda: NOW) as admission:
        first = start(admission, "a", 9)
        while not slow.writes:
            await asyncio.sleep(0.01)
        second = start(admission, "b", 9)
        assert (await first).allowed
        decision = await start(admission, "c", 0.2)
        assert not second.done()
        assert (await second).allowed
    assert decision.retry_after == 1
    assert "1 request already waits for the same quotas, which takes about 0." in decision.message
    assert set(slow.reservations("db/leaf")) == {"a", "b"}


async def test_a_lost_answer_to_a_write_takes_the_reservations_back() -> None:
    class Losing(FakeApi):
        async def turn(self, request: str) -> Fate:
            await super().turn(request)
            lost = len(self.writes) == 2 and request.startswith("PUT")
            return "answer lost" if lost else "answered"

    losing = with_tenant(Losing())
    with pytest.raises(errors.ApiUnreachable):
        await decide_pod(losing, create(pod()))
    # The second write did happen, although its answer was lost.
    assert losing.reservations("db/leaf") == losing.reservations("acme/tenant") == {}
