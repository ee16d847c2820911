"""Many concurrent pods, with API requests in any order, also lost: no limit is exceeded.

hypothesis chooses the order: each API request waits until hypothesis picks the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.admission import commit, lane
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.pods import PodAdmission
from hugetlb_quota.admission.review import Decision
from hugetlb_quota.kube import errors, status
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.page_size import PageSize
from tests.unit.admission.fake_api import FakeApi, Fate, admitting, create, namespace, pod, quota

SIZE = PageSize(2 * 1024**2)
CHAINS = {
    "a": ("a/leaf", "t/tenant"),
    "b": ("b/leaf", "t/tenant"),
    "c": ("c/leaf", "c/middle", "t/tenant"),
}


class Picked(FakeApi):
    """Each request waits until the test picks it. Each written quota is compared with its limit."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[asyncio.Future[Fate]] = []
        self.exceeded: list[str] = []
        self.over = False
        self.begun = False

    async def turn(self, request: str) -> Fate:
        self.requests.append(request)
        if not self.begun:
            return "answered"
        if self.over:
            return "lost"
        future: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        return await future

    async def deliver(self) -> None:
        if self.begun and not self.over:
            future: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
            self.waiting.append(future)
            await future

    def wrote(self, key: str) -> None:
        counter = self.quota(key).counter
        if counter.used.of(SIZE) > counter.hard.of(SIZE):
            self.exceeded.append(f"{key}: {counter}")

    def end(self) -> None:
        """Let all waiting requests fail, because hypothesis may end an example early."""
        self.over = True
        for future in self.waiting:
            if not future.done():
                future.set_result("lost")

    def held(self, key: str) -> set[str]:
        return set(self.reservations(key))


def world(hard: dict[str, int]) -> Picked:
    api = Picked()
    api.put(namespace("t"))
    parents = {link: above for c in CHAINS.values() for link, above in pairwise(c)}
    for name in CHAINS:
        api.put(namespace(name, in_tenant="yes"))
    for key in {link for chain in CHAINS.values() for link in chain}:
        api.put(
            quota(
                key,
                {"hugepages-2Mi": f"{2 * hard[key]}Mi"},
                parent=parents.get(key),
                selector={} if key.endswith("leaf") else {"matchLabels": {"no": "pod"}},
                children={"matchLabels": {"in_tenant": "yes"}},
            )
        )
    return api


async def run(
    api: Picked,
    demands: list[tuple[str, int]],
    pick: Callable[[int], int],
    fate: Callable[[], Fate],
    count: bool,
) -> dict[str, bool]:
    """Decide all pods at the same time, with two replicas; whether each is admitted, by UID."""
    async with admitting(api) as first, admitting(api) as second:
        for replica in (first, second):
            await replica._cache.ready()
        api.begun = True
        return await _run(api, (first, second), demands, pick, fate, count)


async def _run(
    api: Picked,
    replicas: tuple[PodAdmission, PodAdmission],
    demands: list[tuple[str, int]],
    pick: Callable[[int], int],
    fate: Callable[[], Fate],
    count: bool,
) -> dict[str, bool]:
    admitted: dict[str, bool] = {}

    async def admit(index: int, where: str, pages: int) -> None:
        uid = f"{where}-{index}"
        raw = pod(uid, {"hugepages-2Mi": f"{2 * pages}Mi"}, namespace=where)
        request = create(raw, uid=f"request-of-{uid}")
        try:
            decision = await replicas[index % 2].decide(request, Deadline.after(3600))
        except errors.ApiUnreachable:
            decision = Decision(allowed=False)
        admitted[uid] = decision.allowed
        if decision.allowed and count:
            await count_pod(uid, where)

    async def count_pod(uid: str, where: str) -> None:
        """Count the pod as the controller does: one write per quota, from reservation to pods."""

        def counted(quota: QuotaObject) -> QuotaObject:
            counter: Counter = quota.counter
            (mine,) = (each for each in counter.reservations if each.uid == uid)
            return quota.with_counter(
                replace(counter.release(mine.id), pods=counter.pods + mine.charge)
            )

        for key in CHAINS[where]:
            await status.compare_and_swap(api, api.quota(key).key, counted, within=3600)

    tasks = [
        asyncio.create_task(admit(index, where, pages))
        for index, (where, pages) in enumerate(demands)
    ]
    for task in tasks:
        # If hypothesis ends this example early, no other code reads the errors of its tasks.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    closing: list[asyncio.Task[None]] = []
    try:
        while True:
            for _ in range(30):  # until every request waits
                await asyncio.sleep(0)
            if not api.waiting:
                if all(task.done() for task in tasks):
                    if closing:
                        break
                    closing = [
                        asyncio.create_task(replica._committer.close()) for replica in replicas
                    ]
                continue
            api.waiting.pop(pick(len(api.waiting))).set_result("answered" if count else fate())
    finally:
        api.end()
    await asyncio.gather(*tasks, *closing)
    return admitted


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after a Conflict at once: these tests vary only the order."""
    monkeypatch.setattr(status, "FIRST_BACKOFF", 0.0)
    monkeypatch.setattr(status, "LONGEST_BACKOFF", 0.0)
    monkeypatch.setattr(commit, "PATIENCE", 0.0)
    for name in ("FIRST_GATHERING", "LONGEST_GATHERING", "LONGEST_RETURN"):
        monkeypatch.setattr(lane, name, 0.0)


LIMITS = st.fixed_dictionaries(
    {
        "a/leaf": st.integers(0, 4),
        "b/leaf": st.integers(0, 4),
        "c/leaf": st.integers(0, 4),
        "c/middle": st.integers(0, 4),
        "t/tenant": st.integers(1, 6),
    }
)
DEMANDS = st.lists(
    st.tuples(st.sampled_from(sorted(CHAINS)), st.integers(1, 3)), min_size=1, max_size=5
)
QUICKLY = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@QUICKLY
@given(LIMITS, DEMANDS, st.data())
def test_a_pod_is_reserved_on_all_quotas_or_none_and_never_above_a_limit(
    hard: dict[str, int], demands: list[tuple[str, int]], data: st.DataObject
) -> None:
    api = world(hard)
    admitted = asyncio.run(
        run(
            api,
            demands,
            pick=lambda waiting: data.draw(st.integers(0, waiting - 1)),
            fate=lambda: "answered",
            count=False,
        )
    )
    assert api.exceeded == []
    for key in hard:
        under = {uid for uid, yes in admitted.items() if yes and key in CHAINS[uid[0]]}
        assert api.held(key) == under
    # A single pod is admitted if it fits.
    used = {key: api.quota(key).counter.used for key in hard}
    for index, (where, pages) in enumerate(demands):
        alone = all(used[key] == Charge({SIZE: 0}) for key in CHAINS[where])
        fits = all(pages <= hard[key] for key in CHAINS[where])
        if len(demands) == 1 and alone:
            assert admitted[f"{where}-{index}"] == fits


@QUICKLY
@given(LIMITS, DEMANDS, st.data())
def test_no_limit_is_exceeded_while_the_controller_counts(
    hard: dict[str, int], demands: list[tuple[str, int]], data: st.DataObject
) -> None:
    api = world(hard)
    admitted = asyncio.run(
        run(
            api,
            demands,
            pick=lambda waiting: data.draw(st.integers(0, waiting - 1)),
            fate=lambda: "answered",
            count=True,
        )
    )
    assert api.exceeded == []
    for key in hard:
        expected = sum(
            pages
            for index, (where, pages) in enumerate(demands)
            if key in CHAINS[where] and admitted[f"{where}-{index}"]
        )
        assert api.quota(key).counter.used.of(SIZE) == expected * SIZE.bytes
        assert api.held(key) == set()


@QUICKLY
@given(LIMITS, DEMANDS, st.data())
def test_lost_requests_may_leave_reservations_and_never_lose_one(
    hard: dict[str, int], demands: list[tuple[str, int]], data: st.DataObject
) -> None:
    api = world(hard)
    fates: st.SearchStrategy[Fate] = st.sampled_from(
        ["answered", "answered", "answered", "lost", "answer lost"]
    )
    admitted = asyncio.run(
        run(
            api,
            demands,
            pick=lambda waiting: data.draw(st.integers(0, waiting - 1)),
            fate=lambda: data.draw(fates),
            count=False,
        )
    )
    assert api.exceeded == []
    for key in hard:
        under = {uid for uid, yes in admitted.items() if yes and key in CHAINS[uid[0]]}
        assert api.held(key) >= under
