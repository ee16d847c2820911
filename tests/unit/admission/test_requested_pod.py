"""The pod in an admission request, and its demand."""

from __future__ import annotations

from typing import Any

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.demand import MalformedDemand
from hugetlb_quota.admission.requested_pod import RequestedPod, demand_of
from hugetlb_quota.admission.review import MalformedReview
from hugetlb_quota.page_size import PageSize
from tests.unit.admission.fake_api import create, pod, update

SMALL = PageSize(2 << 20)


def test_a_new_pod_has_no_earlier_state() -> None:
    raw = pod(labels={"app": "a"}, resourceVersion="7")
    raw["status"] = {"phase": "Succeeded"}
    assert RequestedPod.of(create(raw)) == RequestedPod(
        uid="pod-1",
        namespace="db",
        name="name-of-pod-1",
        labels={"app": "a"},
        old_labels=None,
        finished=False,
        mirror=False,
        request="request-1",
        since=0,
    )


def test_an_updated_pod_has_its_old_labels_and_resource_version() -> None:
    old = pod(labels={"app": "a"}, resourceVersion="7")
    found = RequestedPod.of(update(old, pod(labels={"app": "b"}, resourceVersion="8")))
    assert (found.labels, found.old_labels, found.since) == ({"app": "b"}, {"app": "a"}, 7)
    assert RequestedPod.of(update(pod(), pod())).old_labels == {}


@pytest.mark.parametrize(
    ("phase", "finished"),
    [("Succeeded", True), ("Failed", True), ("Running", False), (None, False)],
)
def test_a_pod_had_finished_if_its_old_phase_says_so(phase: str | None, finished: bool) -> None:
    old, new = pod(), pod()
    old["status"], new["status"] = {"phase": phase}, {"phase": "Succeeded"}
    assert RequestedPod.of(update(old, new)).finished == finished


def test_a_pod_without_a_name_is_named_by_its_prefix() -> None:
    request = create(pod(generateName="worker-", name=""))
    assert str(RequestedPod.of(request)) == "db/worker-"


def test_a_mirror_of_a_static_pod_has_an_annotation() -> None:
    raw = pod(annotations={"kubernetes.io/config.mirror": "hash"})
    assert RequestedPod.of(create(raw)).mirror


def test_an_old_api_server_sends_no_uid() -> None:
    assert RequestedPod.of(create(pod(uid=""))).uid == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"name": ""},
        {"name": None},
        {"name": 5},
        {"uid": "two words"},
        {"labels": {"app": 1}},
        {"labels": "app=a"},
        {"annotations": ["a"]},
    ],
)
def test_a_field_that_no_api_server_sends_is_malformed(changed: dict[str, Any]) -> None:
    raw = pod()
    raw["metadata"] |= changed
    with pytest.raises(MalformedReview):
        RequestedPod.of(create(raw))


def test_a_request_with_an_invalid_uid_is_malformed() -> None:
    with pytest.raises(MalformedReview, match="'two words' is not a UID"):
        RequestedPod.of(create(pod(), uid="two words"))


def test_the_demand_is_what_the_containers_request() -> None:
    assert demand_of(create(pod(request={"hugepages-2Mi": "4Mi", "cpu": "1"}))) == Charge(
        {SMALL: 4 << 20}
    )


def test_an_invalid_amount_is_a_malformed_demand() -> None:
    with pytest.raises(MalformedDemand, match="'lots' is not a quantity"):
        demand_of(create(pod(request={"hugepages-2Mi": "lots"})))


@pytest.mark.parametrize(
    "spec", [[], {"containers": 5}, {"containers": ["main"]}, {"containers": [{"resources": 1}]}]
)
def test_a_spec_of_another_form_is_malformed(spec: object) -> None:
    with pytest.raises(MalformedReview, match=r"request\.object\.spec"):
        demand_of(create({**pod(), "spec": spec}))
