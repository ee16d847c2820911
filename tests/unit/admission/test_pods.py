"""Decisions about pods, one request at a time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.review import (
    AdmissionRequest,
    Decision,
    GroupResource,
    MalformedReview,
    UserInfo,
)
from tests.unit.admission.fake_api import (
    NOW,
    FakeApi,
    admitting,
    create,
    decide_pod,
    namespace,
    pod,
    quota,
    reservation,
    update,
    with_tenant,
)


@pytest.fixture
def api() -> FakeApi:
    """An API server with acme/tenant of 256Mi, and db/leaf of 128Mi below."""
    return with_tenant(FakeApi())


async def test_a_pod_that_fits_is_reserved_on_its_whole_chain(api: FakeApi) -> None:
    assert (await decide_pod(api, create(pod()))).allowed
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


async def test_a_reservation_outlives_the_request_that_creates_the_pod(
    api: FakeApi,
) -> None:
    await decide_pod(api, create(pod()), seconds=9.0)
    (held,) = api.quota("db/leaf").counter.reservations
    # The API server ends its request after 34 s, counted from before it calls admission.
    assert held.expires == NOW + timedelta(seconds=34)


async def test_a_reservation_lives_as_long_as_the_api_servers_requests(api: FakeApi) -> None:
    async with admitting(api, lambda: NOW, lifetime=timedelta(seconds=300)) as pods:
        await pods.decide(create(pod()), Deadline.after(9.0))
    (held,) = api.quota("db/leaf").counter.reservations
    assert held.expires == NOW + timedelta(seconds=300)


async def test_a_refusal_names_every_quota_without_room_and_writes_nothing(api: FakeApi) -> None:
    decision = await decide_pod(api, create(pod(request={"hugepages-2Mi": "512Mi"})))
    assert not decision.allowed
    assert "HugeTLBQuota db/leaf has room for 128Mi" in decision.message
    assert "HugeTLBQuota acme/tenant has room for 256Mi" in decision.message
    assert api.writes == []


async def test_a_refusal_names_only_the_ancestor_if_only_the_ancestor_has_no_room(
    api: FakeApi,
) -> None:
    api.put(quota("db/leaf", {"hugepages-2Mi": "1Gi"}, parent="acme/tenant"))
    decision = await decide_pod(api, create(pod(request={"hugepages-2Mi": "512Mi"})))
    assert "acme/tenant" in decision.message
    assert "HugeTLBQuota db/leaf" not in decision.message


async def test_expired_reservations_of_other_pods_still_count(api: FakeApi) -> None:
    others = [reservation("other", "db/other", "128Mi", "2020-01-01T00:00:00Z")]
    api.put(
        quota(
            "db/leaf",
            {"hugepages-2Mi": "128Mi"},
            parent="acme/tenant",
            reservations=others,
        )
    )
    assert not (await decide_pod(api, create(pod()))).allowed
    assert api.reservations("db/leaf") == {"other": "128Mi"}


async def test_a_repeated_request_keeps_one_reservation(api: FakeApi) -> None:
    for _ in range(3):
        assert (await decide_pod(api, create(pod(request={"hugepages-2Mi": "128Mi"})))).allowed
    assert len(api.raw("db/leaf")["status"]["reservations"]) == 1
    assert api.reservations("db/leaf") == {"pod-1": "128Mi"}


async def test_a_repeated_request_that_is_refused_takes_its_first_reservation_back(
    api: FakeApi,
) -> None:
    # The first attempt reserved only on the leaf.
    half = [reservation("pod-1", "db/name-of-pod-1", "128Mi", request="request-1")]
    leaf = {"hugepages-2Mi": "128Mi"}
    api.put(quota("db/leaf", leaf, parent="acme/tenant", reservations=half))
    api.put(quota("acme/tenant", {"hugepages-2Mi": "2Mi"}, children={}))
    assert not (await decide_pod(api, create(pod(request={"hugepages-2Mi": "128Mi"})))).allowed
    assert api.reservations("db/leaf") == api.reservations("acme/tenant") == {}


async def test_a_refused_request_keeps_the_reservations_of_other_requests(api: FakeApi) -> None:
    granted = create(pod(request={"hugepages-2Mi": "128Mi"}), uid="granted")
    assert (await decide_pod(api, granted)).allowed
    api.raw("acme/tenant")["spec"]["hard"] = {"hugepages-2Mi": "2Mi"}
    refused = create(pod(request={"hugepages-2Mi": "256Mi"}), uid="refused")
    assert not (await decide_pod(api, refused)).allowed
    assert api.reservations("db/leaf") == api.reservations("acme/tenant") == {"pod-1": "128Mi"}


async def test_two_requests_for_one_pod_need_room_once(api: FakeApi) -> None:
    # As when the API server repeats an update after a Conflict.
    for number in range(2):
        request = create(pod(request={"hugepages-2Mi": "128Mi"}), uid=f"request-{number}")
        assert (await decide_pod(api, request)).allowed
    assert len(api.raw("db/leaf")["status"]["reservations"]) == 2
    assert api.raw("db/leaf")["status"]["used"] == {"hugepages-2Mi": "128Mi"}


async def test_a_reservation_of_a_relabelled_pod_has_its_resource_version(api: FakeApi) -> None:
    old = pod(labels={"app": "none"}, resourceVersion="12")
    api.put(quota("db/leaf", {}, selector={"matchLabels": {"app": "gold"}}))
    assert (await decide_pod(api, update(old, pod(labels={"app": "gold"})))).allowed
    (held,) = api.quota("db/leaf").counter.reservations
    assert held.since == 12


async def test_a_quota_refuses_more_reservations_than_its_object_holds(
    api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hugetlb_quota.accounting.counter.LARGEST_RESERVATIONS", 110)
    two_mib = {"hugepages-2Mi": "2Mi"}
    assert (await decide_pod(api, create(pod("a", two_mib), uid="a"))).allowed
    assert (await decide_pod(api, create(pod("b", two_mib), uid="b"))).allowed
    decision = await decide_pod(api, create(pod("c", two_mib), uid="c"))
    assert "HugeTLBQuota db/leaf holds 2 reservations for pods being created" in decision.message
    assert set(api.reservations("db/leaf")) == set(api.reservations("acme/tenant")) == {"a", "b"}


async def test_a_quota_with_an_unreadable_status_admits_no_pod(
    api: FakeApi,
) -> None:
    api.put(
        quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", reservations=["garbage"])
    )
    decision = await decide_pod(api, create(pod()), seconds=0.4)
    assert "the quota's status could not be read" in decision.message
    assert api.writes == []


async def test_a_dry_run_is_decided_and_writes_nothing(api: FakeApi) -> None:
    assert (await decide_pod(api, create(pod(), dry_run=True))).allowed
    large = pod(request={"hugepages-2Mi": "512Mi"})
    assert not (await decide_pod(api, create(large, dry_run=True))).allowed
    assert api.writes == []


async def test_a_refused_dry_run_names_the_silent_nodes_as_a_refused_create_does(
    api: FakeApi,
) -> None:
    sentence = "64Mi of an ended pod stays charged, because the agent does not report on worker."
    raw = api.raw("db/leaf")
    raw["status"]["conditions"] = [
        {
            "type": "NodesReporting",
            "status": "False",
            "reason": "AgentSilent",
            "message": sentence,
            "lastTransitionTime": "2026-11-22T12:00:00Z",
        }
    ]
    api.put(raw)
    large = pod(request={"hugepages-2Mi": "512Mi"})
    tried = await decide_pod(api, create(large, dry_run=True))
    assert f" {sentence} Ask for less," in tried.message
    assert tried == await decide_pod(api, create(large))


@pytest.mark.parametrize(
    "raw",
    [
        pod(request={"cpu": "1"}),
        pod(request={"hugepages-2Mi": "0"}),
        pod(request={"hugepages-1Gi": "1Gi"}, namespace="elsewhere"),
    ],
    ids=["no huge pages", "zero", "no quota there"],
)
async def test_a_pod_that_charges_nothing_is_allowed(api: FakeApi, raw: dict[str, Any]) -> None:
    assert (await decide_pod(api, create(raw))).allowed
    assert api.writes == []


async def test_a_page_size_without_a_limit_is_counted_too(api: FakeApi) -> None:
    assert (await decide_pod(api, create(pod(request={"hugepages-1Gi": "4Gi"})))).allowed
    assert api.raw("acme/tenant")["status"]["used"]["hugepages-1Gi"] == "4Gi"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"hugepages-2Mi": "-2Mi"}, "negative"),
        ({"hugepages-2Mi": "9223372036854775808"}, "2^63"),
        ({"hugepages-3Mi": "3Mi"}, "'hugepages-3Mi' is not a huge page size"),
        ({"hugepages-2Mi": "lots"}, "'lots' is not a quantity"),
    ],
)
async def test_a_malformed_demand_is_refused_with_the_reason(
    api: FakeApi, request_: dict[str, str], message: str
) -> None:
    decision = await decide_pod(api, create(pod(request=request_)))
    assert not decision.allowed
    assert message in decision.message
    assert "db/name-of-pod-1" in decision.message
    assert api.writes == []


MIRROR = {"kubernetes.io/config.mirror": "hash"}


async def test_only_a_kubelet_may_create_a_mirror_pod(api: FakeApi) -> None:
    raw = pod(request={"hugepages-2Mi": "1Ti"}, annotations=MIRROR)
    nodes = UserInfo("system:node:a", ("system:nodes",))
    assert (await decide_pod(api, create(raw, user_info=nodes))).allowed
    for request in (raw, pod(request={"cpu": "1"}, annotations=MIRROR)):
        forged = await decide_pod(api, create(request, user_info=UserInfo("tenant")))
        assert "which only a kubelet may set" in forged.message
    assert api.writes == []


async def test_a_decision_has_the_quotas_that_refuse(api: FakeApi) -> None:
    leaf, tenant = QuotaKey("db", "leaf"), QuotaKey("acme", "tenant")
    small, large = {"hugepages-2Mi": "200Mi"}, {"hugepages-2Mi": "512Mi"}
    assert (await decide_pod(api, create(pod(request=small)))).by == (leaf,)
    assert set((await decide_pod(api, create(pod(request=large)))).by) == {leaf, tenant}
    api.put(namespace("db"))
    assert (await decide_pod(api, create(pod()))).by == (leaf,)
    api.put(namespace("db", tenant="acme"))
    api.put(quota("acme/tenant", small, children={}, terminating=True))
    assert (await decide_pod(api, create(pod()))).by == (tenant,)


async def test_a_missing_parent_refuses(api: FakeApi) -> None:
    del api.objects["hugetlbquotas", "acme", "tenant"]
    decision = await decide_pod(api, create(pod()))
    assert "names the parent acme/tenant, which does not exist" in decision.message
    assert api.writes == []


async def test_a_parent_that_does_not_let_the_namespace_attach_refuses(api: FakeApi) -> None:
    api.put(namespace("db", tenant="other"))
    assert "does not let quotas of namespace db attach" in (
        (await decide_pod(api, create(pod()))).message
    )


async def test_a_charge_attaches_the_quota_to_its_parent(api: FakeApi) -> None:
    assert (await decide_pod(api, create(pod()))).allowed
    assert api.raw("db/leaf")["status"]["attachedTo"] == "acme/tenant"
    assert "attachedTo" not in api.raw("acme/tenant")["status"]


async def test_a_relabelled_pod_is_not_charged_again_on_an_attached_ancestor(
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
    assert (await decide_pod(api, request)).allowed
    assert api.reservations("db/other") == api.reservations("glue/mid") == {"pod-1": "64Mi"}
    assert api.reservations("acme/tenant") == {}


async def test_a_cycle_of_quotas_refuses(api: FakeApi) -> None:
    api.put(quota("acme/tenant", {}, parent="db/leaf", children={}))
    api.put(quota("db/leaf", {}, parent="acme/tenant", children={}))
    assert "cycle" in (await decide_pod(api, create(pod()))).message


@pytest.mark.parametrize(("levels", "admitted"), [(16, True), (17, False), (40, False)])
async def test_a_chain_of_many_levels_is_refused_as_too_long(
    api: FakeApi, levels: int, admitted: bool
) -> None:
    # In another namespace, so that admission climbs level by level.
    for level in range(1, levels):
        above = f"acme/q{level + 1}" if level + 1 < levels else None
        api.put(quota(f"acme/q{level}", {}, parent=above, children={}))
    api.put(quota("db/leaf", {}, parent="acme/q1"))
    decision = await decide_pod(api, create(pod()))
    assert decision.allowed == admitted
    assert admitted or "over more than 16 levels" in decision.message


async def test_a_quota_that_is_being_deleted_refuses(api: FakeApi) -> None:
    api.put(
        quota(
            "acme/tenant",
            {"hugepages-2Mi": "256Mi"},
            children={"matchLabels": {}},
            terminating=True,
        )
    )
    assert "acme/tenant is being deleted" in (await decide_pod(api, create(pod()))).message


async def test_an_uncounted_quota_refuses(api: FakeApi) -> None:
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant", counted=False))
    decision = await decide_pod(api, create(pod()), seconds=0.4)
    assert not decision.allowed
    assert "has not yet counted the pods under HugeTLBQuota db/leaf" in decision.message
    assert api.writes == []


async def test_a_pod_waits_for_the_first_count(api: FakeApi) -> None:
    leaf = {"hugepages-2Mi": "128Mi"}
    api.put(quota("db/leaf", leaf, parent="acme/tenant", counted=False))
    deciding = asyncio.create_task(decide_pod(api, create(pod())))
    await asyncio.sleep(0.15)
    assert not deciding.done()
    api.put(quota("db/leaf", leaf, parent="acme/tenant", pods={"hugepages-2Mi": "96Mi"}))
    # The counted pods leave too little room.
    assert "96Mi by pods" in (await deciding).message


async def test_an_invalid_quota_in_the_namespace_refuses(api: FakeApi) -> None:
    api.put(quota("db/old", {"hugepages-3Mi": "3Mi"}))
    decision = await decide_pod(api, create(pod()))
    assert "HugeTLBQuota db/old is invalid" in decision.message
    assert api.writes == []


async def test_a_pod_without_a_uid_is_refused(api: FakeApi) -> None:
    assert "no UID" in (await decide_pod(api, create(pod(uid="")))).message


def relabelled(**labels: str) -> AdmissionRequest:
    return update(pod(labels={"app": "old"}), pod(labels=labels))


async def test_a_relabelled_pod_is_charged_only_on_its_new_quotas(api: FakeApi) -> None:
    api.put(
        quota(
            "db/gold",
            {"hugepages-2Mi": "64Mi"},
            parent="acme/tenant",
            selector={"matchLabels": {"app": "gold"}},
        )
    )
    assert (await decide_pod(api, relabelled(app="gold"))).allowed
    assert api.writes == ["PUT hugetlbquotas/status db/gold"]


async def test_a_relabelled_pod_needs_room_in_its_new_quotas(api: FakeApi) -> None:
    api.put(quota("db/gold", {"hugepages-2Mi": 0}, selector={"matchLabels": {"app": "gold"}}))
    decision = await decide_pod(api, relabelled(app="gold"))
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
async def test_only_a_finished_pod_is_relabelled_without_room(
    api: FakeApi, old: dict[str, str], new: dict[str, str], moves: bool
) -> None:
    api.put(quota("db/gold", {"hugepages-2Mi": 0}, selector={"matchLabels": {"app": "gold"}}))
    before, after = pod(labels={"app": "old"}), pod(labels={"app": "gold"})
    before["status"], after["status"] = old, new
    if "deletionTimestamp" in new:
        after["metadata"] |= new
    assert (await decide_pod(api, update(before, after))).allowed == moves


async def test_a_relabelled_pod_that_keeps_its_quotas_writes_nothing(api: FakeApi) -> None:
    assert (await decide_pod(api, relabelled(app="new"))).allowed
    assert api.writes == []


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
async def test_any_request_is_decided_or_malformed(
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
        await decide_pod(api, request)
    # The controller can read all reservations.
    assert api.quota("db/leaf").is_readable
    for held in api.quota("db/leaf").counter.reservations:
        assert all(held.pod.partition("/"))


async def test_if_quotas_are_required_an_ungoverned_pod_is_refused(
    api: FakeApi,
) -> None:
    api.put(namespace("free"))
    api.put(quota("free/some", {"hugepages-2Mi": "64Mi"}, selector={"matchLabels": {"a": "b"}}))
    ungoverned = pod("p1", namespace="free")
    assert (await decide_pod(api, create(ungoverned))).allowed
    async with admitting(api, lambda: NOW, require_quota=True) as admission:

        async def answer(request: AdmissionRequest) -> Decision:
            return await admission.decide(request, Deadline.after(9.0))

        refused = await answer(create(ungoverned))
        assert refused.message == (
            "pod free/name-of-p1 asks for huge pages, but no HugeTLBQuota of namespace free selects"
            " the pod, and this cluster gives huge pages only under a quota (requireQuota). Give"
            " the pod labels that a HugeTLBQuota of free selects, or ask an administrator for a"
            " quota there."
        )
        assert refused.cause == "rule"
        governed = pod("p1", namespace="free", labels={"a": "b"})
        assert (await answer(create(governed))).allowed
        assert (await answer(create(pod("p2", {}, namespace="free")))).allowed
        # A pod must not leave its last quota; a pod that never had a quota may be relabelled.
        assert not (await answer(update(governed, ungoverned))).allowed
        assert (
            await answer(update(ungoverned, pod("p1", namespace="free", labels={"x": "y"})))
        ).allowed


async def test_if_quotas_are_required_a_finished_pod_keeps_its_quota(api: FakeApi) -> None:
    """Otherwise no quota would pay for the pages that the pod left in files."""
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
