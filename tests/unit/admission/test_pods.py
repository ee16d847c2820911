"""Decisions on pods, one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.lane import LARGEST_BATCH
from hugetlb_quota.admission.pods import PodAdmission
from hugetlb_quota.admission.review import (
    AdmissionRequest,
    Decision,
    GroupResource,
    MalformedReview,
    UserInfo,
)
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.resources import Resource
from tests.unit.admission.fake_api import (
    FakeApi,
    Fate,
    Json,
    admitting,
    create,
    namespace,
    pod,
    quota,
    reservation,
    update,
)

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.fixture
def api() -> FakeApi:
    """Tenant acme/tenant of 256Mi, and db/leaf of 128Mi under it."""
    api = FakeApi()
    api.put(namespace("acme"))
    api.put(namespace("db", tenant="acme"))
    api.put(
        quota(
            "acme/tenant",
            {"hugepages-2Mi": "256Mi"},
            children={"matchLabels": {"tenant": "acme"}},
        )
    )
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant"))
    return api


async def decide(api: FakeApi, request: AdmissionRequest, seconds: float = 9.0) -> Decision:
    async with admitting(api, lambda: NOW) as admission:
        return await admission.decide(request, Deadline.after(seconds))


async def test_a_pod_that_fits_is_reserved_on_its_whole_chain(api: FakeApi) -> None:
    assert (await decide(api, create(pod()))).allowed
    assert api.reservations("db/leaf") == api.reservations("acme/tenant") == {"pod-1": "64Mi"}
    assert api.writes == [
        "PUT hugetlbquotas/status db/leaf",
        "PUT hugetlbquotas/status acme/tenant",
    ]
    status = api.raw("db/leaf")["status"]
    assert status["used"] == {"hugepages-2Mi": "64Mi"}
    assert status["summary"] == "2Mi: 64Mi/128Mi"
    assert status["reservations"] == [
        "pod-1 db/name-of-pod-1 2Mi:64Mi 2026-11-22T12:00:34Z request-1 0"
    ]


async def test_a_reservation_outlives_every_request_that_may_still_create_the_pod(
    api: FakeApi,
) -> None:
    await decide(api, create(pod()), seconds=9.0)
    (held,) = api.quota("db/leaf").counter.reservations
    # The API server ends its request 34 s after the begin, and that was before it asked.
    assert held.expires == NOW + timedelta(seconds=34)


async def test_a_reservation_lives_as_long_as_this_api_servers_requests(api: FakeApi) -> None:
    async with admitting(api, lambda: NOW, lifetime=timedelta(seconds=300)) as pods:
        await pods.decide(create(pod()), Deadline.after(9.0))
    (held,) = api.quota("db/leaf").counter.reservations
    assert held.expires == NOW + timedelta(seconds=300)


async def test_every_quota_that_refuses_is_named_and_nothing_is_written(api: FakeApi) -> None:
    decision = await decide(api, create(pod(request={"hugepages-2Mi": "512Mi"})))
    assert not decision.allowed
    assert "HugeTLBQuota db/leaf has room for 128Mi" in decision.message
    assert "HugeTLBQuota acme/tenant has room for 256Mi" in decision.message
    assert api.writes == []


async def test_an_ancestor_alone_can_refuse(api: FakeApi) -> None:
    api.put(quota("db/leaf", {"hugepages-2Mi": "1Gi"}, parent="acme/tenant"))
    decision = await decide(api, create(pod(request={"hugepages-2Mi": "512Mi"})))
    assert "acme/tenant" in decision.message
    assert "HugeTLBQuota db/leaf" not in decision.message


async def test_expired_reservations_of_others_still_count_and_stay(api: FakeApi) -> None:
    others = [reservation("other", "db/other", "128Mi", "2020-01-01T00:00:00Z")]
    api.put(
        quota(
            "db/leaf",
            {"hugepages-2Mi": "128Mi"},
            parent="acme/tenant",
            reservations=others,
        )
    )
    assert not (await decide(api, create(pod()))).allowed
    assert api.reservations("db/leaf") == {"other": "128Mi"}


async def test_a_request_sent_again_replaces_its_reservation(api: FakeApi) -> None:
    for _ in range(3):
        assert (await decide(api, create(pod(request={"hugepages-2Mi": "128Mi"})))).allowed
    assert len(api.raw("db/leaf")["status"]["reservations"]) == 1
    assert api.reservations("db/leaf") == {"pod-1": "128Mi"}


async def test_a_request_refused_the_second_time_gives_back_what_the_first_held(
    api: FakeApi,
) -> None:
    # The first came no further than the leaf.
    half = [reservation("pod-1", "db/name-of-pod-1", "128Mi", request="request-1")]
    leaf = {"hugepages-2Mi": "128Mi"}
    api.put(quota("db/leaf", leaf, parent="acme/tenant", reservations=half))
    api.put(quota("acme/tenant", {"hugepages-2Mi": "2Mi"}, children={}))
    assert not (await decide(api, create(pod(request={"hugepages-2Mi": "128Mi"})))).allowed
    assert api.reservations("db/leaf") == api.reservations("acme/tenant") == {}


async def test_only_the_request_that_reserved_takes_back(api: FakeApi) -> None:
    granted = create(pod(request={"hugepages-2Mi": "128Mi"}), uid="granted")
    assert (await decide(api, granted)).allowed
    api.raw("acme/tenant")["spec"]["hard"] = {"hugepages-2Mi": "2Mi"}
    refused = create(pod(request={"hugepages-2Mi": "256Mi"}), uid="refused")
    assert not (await decide(api, refused)).allowed
    assert api.reservations("db/leaf") == api.reservations("acme/tenant") == {"pod-1": "128Mi"}


async def test_a_second_request_for_a_pod_needs_no_second_room(api: FakeApi) -> None:
    # As when the API server tries an update again that met a conflict.
    for number in range(2):
        request = create(pod(request={"hugepages-2Mi": "128Mi"}), uid=f"request-{number}")
        assert (await decide(api, request)).allowed
    assert len(api.raw("db/leaf")["status"]["reservations"]) == 2
    assert api.raw("db/leaf")["status"]["used"] == {"hugepages-2Mi": "128Mi"}


async def test_a_reservation_of_a_relabelled_pod_tells_since_when(api: FakeApi) -> None:
    old = pod(labels={"app": "none"}, resourceVersion="12")
    api.put(quota("db/leaf", {}, selector={"matchLabels": {"app": "gold"}}))
    assert (await decide(api, update(old, pod(labels={"app": "gold"})))).allowed
    (held,) = api.quota("db/leaf").counter.reservations
    assert held.since == 12


async def test_no_more_is_reserved_than_an_object_holds(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hugetlb_quota.accounting.counter.LARGEST_RESERVATIONS", 110)
    two_mib = {"hugepages-2Mi": "2Mi"}
    assert (await decide(api, create(pod("a", two_mib), uid="a"))).allowed
    assert (await decide(api, create(pod("b", two_mib), uid="b"))).allowed
    decision = await decide(api, create(pod("c", two_mib), uid="c"))
    assert "HugeTLBQuota db/leaf holds 2 reservations for pods being created" in decision.message
    assert set(api.reservations("db/leaf")) == set(api.reservations("acme/tenant")) == {"a", "b"}


async def test_a_status_that_can_not_be_read_admits_nothing_until_it_is_mended(
    api: FakeApi,
) -> None:
    api.put(
        quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", reservations=["what"])
    )
    decision = await decide(api, create(pod()), seconds=0.4)
    assert "the quota's status could not be read" in decision.message
    assert api.writes == []


async def test_a_dry_run_decides_and_writes_nothing(api: FakeApi) -> None:
    assert (await decide(api, create(pod(), dry_run=True))).allowed
    large = pod(request={"hugepages-2Mi": "512Mi"})
    assert not (await decide(api, create(large, dry_run=True))).allowed
    assert api.writes == []


@pytest.mark.parametrize(
    "raw",
    [
        pod(request={"cpu": "1"}),
        pod(request={"hugepages-2Mi": "0"}),
        pod(request={"hugepages-1Gi": "1Gi"}, namespace="elsewhere"),
    ],
    ids=["no huge pages", "zero", "no quota there"],
)
async def test_what_charges_nothing_is_allowed(api: FakeApi, raw: dict[str, Any]) -> None:
    assert (await decide(api, create(raw))).allowed
    assert api.writes == []


async def test_a_size_that_no_quota_limits_is_counted_all_the_same(api: FakeApi) -> None:
    assert (await decide(api, create(pod(request={"hugepages-1Gi": "4Gi"})))).allowed
    assert api.raw("acme/tenant")["status"]["used"]["hugepages-1Gi"] == "4Gi"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"hugepages-2Mi": "-2Mi"}, "negative"),
        ({"hugepages-2Mi": "9223372036854775808"}, "2^63"),
        ({"hugepages-3Mi": "3Mi"}, "'hugepages-3Mi' is not a huge page size"),
        ({"hugepages-2Mi": "lots"}, "'lots' is not a quantity"),
    ],
)
async def test_a_malformed_demand_is_refused_with_the_reason(
    api: FakeApi, request_: dict[str, str], said: str
) -> None:
    decision = await decide(api, create(pod(request=request_)))
    assert not decision.allowed
    assert said in decision.message
    assert "db/name-of-pod-1" in decision.message
    assert api.writes == []


MIRROR = {"kubernetes.io/config.mirror": "hash"}


async def test_only_a_node_may_show_a_mirror_pod(api: FakeApi) -> None:
    raw = pod(request={"hugepages-2Mi": "1Ti"}, annotations=MIRROR)
    nodes = UserInfo("system:node:a", ("system:nodes",))
    assert (await decide(api, create(raw, user_info=nodes))).allowed
    for request in (raw, pod(request={"cpu": "1"}, annotations=MIRROR)):
        forged = await decide(api, create(request, user_info=UserInfo("tenant")))
        assert "which only a kubelet may set" in forged.message
    assert api.writes == []


async def test_a_refusal_names_who_refuses(api: FakeApi) -> None:
    leaf, tenant = QuotaKey("db", "leaf"), QuotaKey("acme", "tenant")
    small, large = {"hugepages-2Mi": "200Mi"}, {"hugepages-2Mi": "512Mi"}
    assert (await decide(api, create(pod(request=small)))).by == (leaf,)
    assert set((await decide(api, create(pod(request=large)))).by) == {leaf, tenant}
    api.put(namespace("db"))
    assert (await decide(api, create(pod()))).by == (leaf,)
    api.put(namespace("db", tenant="acme"))
    api.put(quota("acme/tenant", small, children={}, terminating=True))
    assert (await decide(api, create(pod()))).by == (tenant,)


async def test_a_missing_parent_refuses(api: FakeApi) -> None:
    del api.objects["hugetlbquotas", "acme", "tenant"]
    decision = await decide(api, create(pod()))
    assert "names the parent acme/tenant, which does not exist" in decision.message
    assert api.writes == []


async def test_a_parent_that_does_not_let_the_namespace_attach_refuses(api: FakeApi) -> None:
    api.put(namespace("db", tenant="other"))
    assert "does not let quotas of namespace db attach" in (
        (await decide(api, create(pod()))).message
    )


async def test_a_charge_is_attached_to_the_parent_that_it_goes_to(api: FakeApi) -> None:
    assert (await decide(api, create(pod()))).allowed
    assert api.raw("db/leaf")["status"]["attachedTo"] == "acme/tenant"
    assert "attachedTo" not in api.raw("acme/tenant")["status"]


async def test_a_pod_that_leaves_a_quota_is_charged_already_where_that_is_attached(
    api: FakeApi,
) -> None:
    hard = {"hugepages-2Mi": "128Mi"}
    api.put(namespace("db"))
    api.put(namespace("glue", tenant="acme"))
    leaf = {"matchLabels": {"at": "leaf"}}
    other = {"matchLabels": {"at": "other"}}
    tenant = "acme/tenant"
    api.put(quota("db/leaf", hard, selector=leaf, parent=tenant, attached_to=tenant))
    api.put(quota("glue/mid", hard, parent=tenant, children={}))
    api.put(quota("db/other", hard, parent="glue/mid", selector=other))
    request = update(pod(labels={"at": "leaf"}), pod(labels={"at": "other"}))
    assert (await decide(api, request)).allowed
    assert api.reservations("db/other") == api.reservations("glue/mid") == {"pod-1": "64Mi"}
    assert api.reservations("acme/tenant") == {}


async def test_a_cycle_refuses_and_ends(api: FakeApi) -> None:
    api.put(quota("acme/tenant", {}, parent="db/leaf", children={}))
    api.put(quota("db/leaf", {}, parent="acme/tenant", children={}))
    assert "cycle" in (await decide(api, create(pod()))).message


@pytest.mark.parametrize(("levels", "admitted"), [(16, True), (17, False), (40, False)])
async def test_a_chain_of_many_levels_is_refused_as_too_long(
    api: FakeApi, levels: int, admitted: bool
) -> None:
    # Elsewhere, so that each level has to be looked up.
    for level in range(1, levels):
        above = f"acme/q{level + 1}" if level + 1 < levels else None
        api.put(quota(f"acme/q{level}", {}, parent=above, children={}))
    api.put(quota("db/leaf", {}, parent="acme/q1"))
    decision = await decide(api, create(pod()))
    assert decision.allowed == admitted
    assert admitted or "over more than 16 levels" in decision.message


async def test_a_quota_that_is_being_deleted_takes_no_pod(api: FakeApi) -> None:
    api.put(
        quota(
            "acme/tenant",
            {"hugepages-2Mi": "256Mi"},
            children={"matchLabels": {}},
            terminating=True,
        )
    )
    assert "acme/tenant is being deleted" in (await decide(api, create(pod()))).message


async def test_a_quota_that_was_never_counted_takes_no_pod(api: FakeApi) -> None:
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", counted=False))
    decision = await decide(api, create(pod()), seconds=0.4)
    assert not decision.allowed
    assert "has not yet counted the pods under HugeTLBQuota db/leaf" in decision.message
    assert api.writes == []


async def test_a_pod_waits_a_moment_for_the_first_count(api: FakeApi) -> None:
    leaf = {"hugepages-2Mi": "128Mi"}
    api.put(quota("db/leaf", leaf, parent="acme/tenant", counted=False))
    deciding = asyncio.create_task(decide(api, create(pod())))
    await asyncio.sleep(0.15)
    assert not deciding.done()
    api.put(quota("db/leaf", leaf, parent="acme/tenant", pods={"hugepages-2Mi": "96Mi"}))
    # What was counted meanwhile leaves too little.
    assert "96Mi by pods" in (await deciding).message


async def test_an_invalid_quota_in_the_namespace_refuses(api: FakeApi) -> None:
    api.put(quota("db/old", {"hugepages-3Mi": "3Mi"}))
    decision = await decide(api, create(pod()))
    assert "HugeTLBQuota db/old is invalid" in decision.message
    assert api.writes == []


async def test_a_pod_without_a_uid_can_not_be_reserved_for(api: FakeApi) -> None:
    assert "no UID" in (await decide(api, create(pod(uid="")))).message


def relabelled(**labels: str) -> AdmissionRequest:
    return update(pod(labels={"app": "old"}), pod(labels=labels))


async def test_a_relabelled_pod_is_charged_only_where_it_was_not(api: FakeApi) -> None:
    api.put(
        quota(
            "db/gold",
            {"hugepages-2Mi": "64Mi"},
            parent="acme/tenant",
            selector={"matchLabels": {"app": "gold"}},
        )
    )
    assert (await decide(api, relabelled(app="gold"))).allowed
    assert api.writes == ["PUT hugetlbquotas/status db/gold"]


async def test_a_relabelled_pod_needs_room_where_it_goes(api: FakeApi) -> None:
    api.put(quota("db/gold", {"hugepages-2Mi": 0}, selector={"matchLabels": {"app": "gold"}}))
    decision = await decide(api, relabelled(app="gold"))
    assert "HugeTLBQuota db/gold has no room" in decision.message


@pytest.mark.parametrize(
    ("old", "new", "moves"),
    [
        ({}, {"deletionTimestamp": "2026-11-22T12:00:00Z"}, False),
        ({"phase": "Running"}, {"phase": "Succeeded"}, False),
        ({"phase": "Succeeded"}, {"phase": "Succeeded"}, True),
    ],
    ids=["leaving", "finishing with the same request", "finished"],
)
async def test_only_a_finished_pod_moves_for_free(
    api: FakeApi, old: dict[str, str], new: dict[str, str], moves: bool
) -> None:
    api.put(quota("db/gold", {"hugepages-2Mi": 0}, selector={"matchLabels": {"app": "gold"}}))
    before, after = pod(labels={"app": "old"}), pod(labels={"app": "gold"})
    before["status"], after["status"] = old, new
    if "deletionTimestamp" in new:
        after["metadata"] |= new
    assert (await decide(api, update(before, after))).allowed == moves


async def test_a_relabelled_pod_that_stays_where_it_is_writes_nothing(api: FakeApi) -> None:
    assert (await decide(api, relabelled(app="new"))).allowed
    assert api.writes == []


class Intruding(FakeApi):
    """Lets something happen just before the n-th status write."""

    def __init__(self, *others: FakeApi) -> None:
        super().__init__()
        self.intrude: Any = None

    async def turn(self, request: str) -> Fate:
        fate = await super().turn(request)
        if request.startswith("PUT") and self.intrude is not None:
            act, self.intrude = self.intrude, None
            act()
        return fate


@pytest.fixture
def intruded(api: FakeApi) -> Intruding:
    intruded = Intruding()
    intruded.objects, intruded.version = api.objects, api.version
    return intruded


async def test_on_a_conflict_it_reads_again_and_checks_again(intruded: Intruding) -> None:
    def take_all() -> None:
        held = [reservation("other", "db/other", "128Mi")]
        raw = quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", reservations=held)
        raw["metadata"]["uid"] = intruded.raw("db/leaf")["metadata"]["uid"]
        intruded.put(raw)

    intruded.intrude = take_all
    decision = await decide(intruded, create(pod()))
    assert "HugeTLBQuota db/leaf has no room: 128Mi of 128Mi is used" in decision.message
    assert intruded.reservations("db/leaf") == {"other": "128Mi"}


async def test_a_refusal_by_the_root_takes_back_what_the_leaf_holds(intruded: Intruding) -> None:
    def lower() -> None:
        raw = intruded.raw("acme/tenant")
        raw["spec"]["hard"] = {"hugepages-2Mi": "2Mi"}
        intruded.put(raw)

    intruded.intrude = lower
    decision = await decide(intruded, create(pod()))
    assert "HugeTLBQuota acme/tenant has room for 2Mi" in decision.message
    assert intruded.reservations("db/leaf") == {}


async def test_a_quota_that_moves_meanwhile_is_decided_on_anew(intruded: Intruding) -> None:
    def move() -> None:
        intruded.put(quota("db/root", {"hugepages-2Mi": "1Gi"}))
        raw = intruded.raw("db/leaf")
        raw["spec"]["parentRef"] = {"namespace": "db", "name": "root"}
        intruded.put(raw)

    intruded.intrude = move
    root_selects_nothing = {"matchLabels": {"no": "pod"}}
    intruded.put(quota("db/root", {"hugepages-2Mi": "1Gi"}, selector=root_selects_nothing))
    assert (await decide(intruded, create(pod()))).allowed
    assert intruded.reservations("db/root") == {"pod-1": "64Mi"}
    assert intruded.reservations("acme/tenant") == {}


async def test_requests_at_once_are_written_together(api: FakeApi) -> None:
    requests = [
        create(pod(f"pod-{index}", {"hugepages-2Mi": "8Mi"}), uid=f"request-{index}")
        for index in range(32)
    ]
    async with admitting(api, lambda: NOW) as admission:
        decisions = await asyncio.gather(
            *(admission.decide(request, Deadline.after(9)) for request in requests)
        )
    # In order of arrival, each its own answer: 16 fill the leaf.
    assert [decision.allowed for decision in decisions] == [True] * 16 + [False] * 16
    assert "has no room: 128Mi of 128Mi is used" in decisions[16].message
    assert set(api.reservations("acme/tenant")) == {f"pod-{index}" for index in range(16)}
    assert len(api.writes) == 2


async def test_only_a_fresh_read_refuses(intruded: Intruding) -> None:
    held = [reservation("other", "db/other", "64Mi")]
    leaf = quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", reservations=held)
    intruded.put(leaf)

    async def never() -> None:
        await asyncio.Event().wait()

    async with admitting(intruded, lambda: NOW) as admission:
        await admission._cache.ready()
        intruded.deliver = never  # type: ignore[method-assign]
        # Room is made, and the watch does not tell of it.
        raw = intruded.raw("db/leaf")
        raw["status"]["reservations"] = []
        intruded.put(raw)
        large = create(pod(request={"hugepages-2Mi": "128Mi"}))
        deciding = asyncio.create_task(admission.decide(large, Deadline.after(9)))
        async with asyncio.timeout(5):
            while intruded.reservations("db/leaf") != {"pod-1": "128Mi"}:
                await asyncio.sleep(0.001)
        # Nor does the answer go out before the watch has told what was written.
        await asyncio.sleep(0.05)
        assert not deciding.done()
        deciding.cancel()
        await asyncio.wait((deciding,))
    # Who gave up meanwhile holds nothing.
    assert intruded.reservations("db/leaf") == intruded.reservations("acme/tenant") == {}


async def test_nothing_waits_for_a_burst_of_another_namespace(api: FakeApi) -> None:
    api.put(namespace("quiet", tenant="acme"))
    api.put(quota("quiet/leaf", {"hugepages-2Mi": "1Gi"}, parent="acme/tenant"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "1Ti"}, parent="acme/tenant"))
    api.put(quota("acme/tenant", {"hugepages-2Mi": "1Ti"}, children={}))
    answered: list[str] = []

    async def ask(admission: PodAdmission, uid: str, where: str) -> None:
        raw = pod(uid, {"hugepages-2Mi": "2Mi"}, namespace=where)
        assert (await admission.decide(create(raw, uid=uid), Deadline.after(30))).allowed
        answered.append(uid)

    async with admitting(api, lambda: NOW) as admission:
        burst = [ask(admission, f"burst-{index}", "db") for index in range(600)]
        await asyncio.gather(*burst, ask(admission, "one", "quiet"))
    assert answered.index("one") <= 2 * LARGEST_BATCH


async def test_who_can_not_be_served_in_time_is_told_at_once(api: FakeApi) -> None:
    class Slow(FakeApi):
        async def turn(self, request: str) -> Fate:
            fate = await super().turn(request)
            await asyncio.sleep(0.3 if request.startswith("PUT") else 0)
            return fate

    slow = Slow()
    slow.objects, slow.version = api.objects, api.version
    two_mib = {"hugepages-2Mi": "2Mi"}

    def ask(admission: PodAdmission, uid: str, seconds: float) -> asyncio.Task[Decision]:
        request = create(pod(uid, two_mib), uid=uid)
        return asyncio.create_task(admission.decide(request, Deadline.after(seconds)))

    async with admitting(slow, lambda: NOW) as admission:
        first = ask(admission, "a", 9)
        while not slow.writes:
            await asyncio.sleep(0.01)
        second = ask(admission, "b", 9)
        assert (await first).allowed
        decision = await ask(admission, "c", 0.2)
        assert not second.done()
        assert (await second).allowed
    assert decision.retry_after == 1
    assert "requests already wait for the same quotas, which takes about 0." in decision.message
    assert set(slow.reservations("db/leaf")) == {"a", "b"}


async def test_an_etcd_that_was_restored_is_followed_anew(api: FakeApi) -> None:
    two_mib = {"hugepages-2Mi": "2Mi"}
    async with admitting(api, lambda: NOW) as admission:
        assert (await admission.decide(create(pod("a", two_mib)), Deadline.after(9))).allowed
        # A backup from before all this: versions go back, and the leaf had no room then.
        full = quota("db/leaf", {"hugepages-2Mi": "0"}, parent="acme/tenant")
        full["metadata"]["uid"] = api.raw("db/leaf")["metadata"]["uid"]
        api.version = 1
        api.put(full)
        api.put(api.raw("acme/tenant"))
        request = create(pod("b", two_mib), uid="b")
        decision = await admission.decide(request, Deadline.after(9))
    assert "HugeTLBQuota db/leaf has no room" in decision.message


class Restored(FakeApi):
    """After :meth:`restore` its watch says nothing until it has come to where it was before.

    As kube-apiserver's does: it tells only of what is later than the position asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0

    def restore(self) -> None:
        self.lost, self.version = self.version, 1
        for raw in list(self.objects.values()):
            self.put(raw)
        self.version += 1

    async def watch(
        self, resource: Resource, resource_version: str, *args: Any, **fields: Any
    ) -> AsyncIterator[Json]:
        began_before = not self.lost
        async for event in super().watch(resource, resource_version, *args, **fields):
            later = int(event["object"]["metadata"]["resourceVersion"]) > self.lost
            if later or not began_before:
                yield event


@pytest.mark.parametrize("where", ["db", "free"], ids=["governed", "governed by nothing known"])
async def test_what_a_lost_history_has_told_proves_nothing(where: str) -> None:
    api = Restored()
    for name in (*"abcdefghij", "db", "free"):
        api.put(namespace(name))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}))
    async with admitting(api, lambda: NOW) as admission:
        for _ in range(10):
            api.put(api.raw("db/leaf"))
        # The watch has come to all of this when the charge is confirmed.
        assert (await admission.decide(create(pod("a")), Deadline.after(9))).allowed
        api.restore()
        api.put(quota(f"{where}/new", {"hugepages-2Mi": 0}))
        assert api.version < api.lost
        request = create(pod("c", {"hugepages-2Mi": "2Mi"}, namespace=where), uid="c")
        decision = await admission.decide(request, Deadline.after(9))
        assert f"HugeTLBQuota {where}/new has no room" in decision.message
        assert not decision.allowed
    assert "c" not in api.reservations("db/leaf")


async def test_a_write_that_the_watch_never_comes_to_is_refused_in_time_and_taken_back() -> None:
    class Silent(FakeApi):
        silent = False

        async def deliver(self) -> None:
            if self.silent:
                await asyncio.Event().wait()

    api = Silent()
    api.put(namespace("db"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}))
    async with admitting(api, lambda: NOW) as admission:
        assert (await admission.decide(create(pod("a")), Deadline.after(9))).allowed
        api.silent = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await admission.decide(create(pod("b"), uid="b"), Deadline.after(9))
    assert set(api.reservations("db/leaf")) == {"a"}


async def test_an_unreachable_api_takes_back_what_was_written(api: FakeApi) -> None:
    class Losing(FakeApi):
        async def turn(self, request: str) -> Fate:
            await super().turn(request)
            lost = len(self.writes) == 2 and request.startswith("PUT")
            return "answer lost" if lost else "answered"

    losing = Losing()
    losing.objects, losing.version = api.objects, api.version
    with pytest.raises(errors.ApiUnreachable):
        await decide(losing, create(pod()))
    # The second write did happen, though nobody heard of it.
    assert losing.reservations("db/leaf") == losing.reservations("acme/tenant") == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)
PLACES = [
    (place, *path)
    for place in ("object", "old_object")
    for path in (
        (),
        ("metadata",),
        ("metadata", "uid"),
        ("metadata", "name"),
        ("metadata", "namespace"),
        ("metadata", "labels"),
        ("metadata", "labels", "app"),
        ("metadata", "annotations"),
        ("metadata", "resourceVersion"),
        ("spec",),
        ("spec", "containers"),
        ("spec", "initContainers"),
        ("spec", "overhead"),
        ("spec", "resources"),
        ("status",),
        ("status", "phase"),
    )
]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), JSON, st.sampled_from(["CREATE", "UPDATE"]))
async def test_whatever_is_sent_is_decided_or_called_malformed(
    api: FakeApi, place: tuple[str, ...], value: Any, operation: str
) -> None:
    objects: dict[str, Any] = {"object": pod(labels={"app": "a"}), "old_object": pod()}
    holder = objects
    for name in place[:-1]:
        holder = holder.setdefault(name, {})
    holder[place[-1]] = value
    request = AdmissionRequest(
        uid="request-1",
        resource=GroupResource("", "pods"),
        operation=operation,
        namespace="db",
        object=objects["object"] if isinstance(objects["object"], dict) else None,
        old_object=objects["old_object"] if isinstance(objects["old_object"], dict) else None,
    )
    with suppress(MalformedReview):
        await decide(api, request)
    # Whatever was reserved, the controller can read.
    assert api.quota("db/leaf").is_readable
    for held in api.quota("db/leaf").counter.reservations:
        assert all(held.pod.partition("/"))


@pytest.mark.parametrize("changed", [{"name": ""}, {"name": None}, {"uid": "two words"}])
async def test_a_pod_that_no_api_server_sends_is_malformed(
    api: FakeApi, changed: dict[str, Any]
) -> None:
    raw = pod()
    raw["metadata"] |= changed
    with pytest.raises(MalformedReview):
        await decide(api, create(raw))
    assert api.writes == []


async def test_where_a_quota_is_required_a_pod_without_one_is_refused_and_told_what_to_do(
    api: FakeApi,
) -> None:
    api.put(namespace("free"))
    api.put(quota("free/some", {"hugepages-2Mi": "64Mi"}, selector={"matchLabels": {"a": "b"}}))
    ungoverned = pod("p1", namespace="free")
    assert (await decide(api, create(ungoverned))).allowed
    async with admitting(api, lambda: NOW, require_quota=True) as admission:

        async def asked(request: AdmissionRequest) -> Decision:
            return await admission.decide(request, Deadline.after(9.0))

        refused = await asked(create(ungoverned))
        assert refused.message == (
            "pod free/name-of-p1 asks for huge pages, but no HugeTLBQuota of namespace free selects"
            " the pod, and this cluster gives huge pages only under a quota (requireQuota). Give"
            " the pod labels that a HugeTLBQuota of free selects, or ask an administrator for a"
            " quota there."
        )
        assert refused.cause == "rule"
        governed = pod("p1", namespace="free", labels={"a": "b"})
        assert (await asked(create(governed))).allowed
        assert (await asked(create(pod("p2", {}, namespace="free")))).allowed
        # A pod does not leave its last quota; one that never had any may be relabelled.
        assert not (await asked(update(governed, ungoverned))).allowed
        assert (
            await asked(update(ungoverned, pod("p1", namespace="free", labels={"x": "y"})))
        ).allowed


async def test_where_a_quota_is_required_a_finished_pod_stays_under_one(api: FakeApi) -> None:
    """Otherwise nobody would pay for the pages that the pod left in files."""
    api.put(quota("db/gold", {"hugepages-2Mi": 0}, selector={"matchLabels": {"app": "gold"}}))
    api.put(quota("db/leaf", {"hugepages-2Mi": 0}, selector={"matchLabels": {"app": "leaf"}}))
    before = pod(labels={"app": "leaf"})
    before["status"] = {"phase": "Succeeded"}
    async with admitting(api, lambda: NOW, require_quota=True) as admission:
        for app, allowed in (("gold", True), ("none", False)):
            after = pod(labels={"app": app})
            decision = await admission.decide(update(before, after), Deadline.after(9.0))
            assert decision.allowed == allowed, app
    assert api.writes == []
