"""A quota read from JSON, and its status written as JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import ReservationId
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject, project_quota, status_body
from hugetlb_quota.page_size import PageSize

HELD = ReservationId("pod-1", "request-1")
SMALL, LARGE = PageSize(2 * 1024**2), PageSize(1024**3)
RAW: dict[str, Any] = {
    "apiVersion": "hugetlb.dev/v1alpha1",
    "kind": "HugeTLBQuota",
    "metadata": {
        "namespace": "db",
        "name": "leaf",
        "uid": "u",
        "resourceVersion": "9",
        "generation": 2,
        "managedFields": [{"manager": "kubectl"}],
    },
    "spec": {
        "hard": {"hugepages-2Mi": "256Mi", "hugepages-1Gi": 8 * 1024**3},
        "parentRef": {"namespace": "acme", "name": "tenant"},
        "podSelector": {"matchLabels": {"app": "pg"}},
    },
    "status": {
        "pods": {"hugepages-2Mi": "32Mi"},
        "reservations": [
            "pod-1 db/pg-0 2Mi:64Mi 2026-11-22T12:00:00Z request-1 0",
        ],
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Attached",
                "message": "",
                "lastTransitionTime": "2026-11-22T12:00:00Z",
            }
        ],
        "observedGeneration": 1,
    },
}


def test_a_quota_is_read() -> None:
    quota = QuotaObject.from_json(RAW)
    assert (quota.uid, quota.resource_version, quota.generation) == ("u", "9", 2)
    assert quota.quota.parent == QuotaKey("acme", "tenant")
    assert quota.quota.pod_selector.matches({"app": "pg"})
    assert not quota.quota.pod_selector.matches({"app": "other"})
    assert quota.quota.child_namespaces is None
    assert quota.counter.hard == Charge({SMALL: 256 * 1024**2, LARGE: 8 * 1024**3})
    assert quota.counter.used.of(SMALL) == 96 * 1024**2


def test_the_status_has_every_field() -> None:
    body = status_body(QuotaObject.from_json(RAW))
    assert body["metadata"] == {
        "namespace": "db",
        "name": "leaf",
        "uid": "u",
        "resourceVersion": "9",
    }
    assert body["status"] == {
        "observedGeneration": 1,
        "hard": {"hugepages-2Mi": "256Mi", "hugepages-1Gi": "8Gi"},
        "used": {"hugepages-2Mi": "96Mi", "hugepages-1Gi": "0"},
        "pods": {"hugepages-2Mi": "32Mi", "hugepages-1Gi": "0"},
        "retained": {},
        "retainedFiles": [],
        "reservations": RAW["status"]["reservations"],
        "summary": "2Mi: 96Mi/256Mi, 1Gi: 0/8Gi",
        "conditions": RAW["status"]["conditions"],
    }


def test_a_written_status_is_stored() -> None:
    quota = QuotaObject.from_json(RAW)
    assert not quota.is_stored  # `used` and other fields were not written yet
    again = QuotaObject.from_json({**RAW, "status": status_body(quota)["status"]})
    assert again.is_stored
    assert not replace(again, observed_generation=2).is_stored
    assert not again.with_counter(again.counter.release(HELD)).is_stored


def test_a_charged_size_without_a_limit_is_shown() -> None:
    raw = {**RAW, "spec": {"hard": {"hugepages-1Gi": "8Gi"}}}
    assert QuotaObject.from_json(raw).status()["summary"] == "2Mi: 96Mi/unlimited, 1Gi: 0/8Gi"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spec": {"hard": {"hugepages-3Mi": "3Mi"}}}, "spec.hard: 'hugepages-3Mi' is not"),
        ({"spec": {}}, "spec.hard: Field required."),
        ({"spec": None}, "spec: "),
        ({"spec": {"hard": {}, "newer": 1}}, "spec.newer: "),
    ],
)
def test_an_invalid_spec_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidQuota, match="HugeTLBQuota db/leaf is invalid") as refused:
        QuotaObject.from_json({**RAW, **changed})
    assert message in str(refused.value)
    kept = project_quota({**RAW, **changed})
    assert isinstance(kept, InvalidQuota)
    assert (kept.key, kept.resource_version) == (QuotaKey("db", "leaf"), 9)


def stored(**status: Any) -> QuotaObject:
    whole = status_body(QuotaObject.from_json(RAW))["status"]
    return QuotaObject.from_json({**RAW, "status": {**whole, "observedGeneration": 2, **status}})


def test_fields_of_a_newer_release_are_kept_and_refuse_nothing() -> None:
    newer = stored(
        escrow={"a": 1},
        retained={"hugepages-2Mi": "128Mi", "hugepages-7Ti": "7Ti"},
        conditions=[{**RAW["status"]["conditions"][0], "severity": "low"}],
        reservations=[*RAW["status"]["reservations"], f"{RAW['status']['reservations'][0]} more 9"],
    )
    assert newer.is_counted
    admitted = newer.with_counter(newer.counter.release(HELD))
    status = status_body(admitted)["status"]
    for field in ("escrow", "retained", "conditions"):
        assert status[field] == newer.stored[field]
    assert status["used"]["hugepages-2Mi"] == "160Mi"
    assert QuotaObject.from_json({**RAW, "status": status}).is_stored
    kept = stored(reservations=[f"{RAW['status']['reservations'][0]} more 9"])
    assert status_body(kept)["status"]["reservations"] == kept.stored["reservations"]


@pytest.mark.parametrize(
    "unread",
    [
        {"pods": {"hugepages-2Mi": "many"}},
        {"pods": ["hugepages-2Mi"]},
        {"retained": "128Mi"},
        {"reservations": ["pod-1 db/pg-0"]},
        {"reservations": [{"uid": "u"}]},
    ],
)
def test_an_unreadable_status_admits_nothing_and_is_rewritten(
    unread: dict[str, Any],
) -> None:
    quota = stored(**unread)
    assert not quota.is_counted
    assert "reservations" in unread or not quota.is_stored
    mended = quota.with_counter(replace(quota.counter, unreadable=()))
    again = QuotaObject.from_json({**RAW, "status": status_body(mended)["status"]})
    assert again.is_counted
    assert again.is_stored


@pytest.mark.parametrize(
    "status", [None, [], "none", {"conditions": [7], "observedGeneration": {}}]
)
def test_a_quota_with_any_status_is_read(status: Any) -> None:
    assert not QuotaObject.from_json({**RAW, "status": status}).is_counted


def test_sums_have_no_bound() -> None:
    sums = {"hugepages-1Gi": "17179869182Gi"}  # past 2^63: two pods of the largest request
    quota = stored(pods=sums)
    assert quota.is_counted
    assert status_body(quota)["status"]["pods"]["hugepages-1Gi"] == "17179869182Gi"
    assert quota.counter.used.of(LARGE) == 17179869182 * 1024**3


def test_an_unchanged_spec_is_not_parsed_again() -> None:
    before = QuotaObject.from_json(RAW)
    assert QuotaObject.from_json({**RAW, "spec": dict(RAW["spec"])}, before).quota is before.quota
    restored = {**RAW, "spec": {"hard": {}}}  # an older etcd: another spec of this generation
    assert QuotaObject.from_json(restored, before).quota.hard == Charge()
    newer = {**RAW, "metadata": {**RAW["metadata"], "generation": 3}, "spec": {"hard": {}}}
    assert QuotaObject.from_json(newer, before).quota.hard == Charge()
    goes = {**RAW, "metadata": {**RAW["metadata"], "deletionTimestamp": "2026-11-22T12:00:00Z"}}
    assert QuotaObject.from_json(goes, before).quota.terminating


def test_to_count_reads_the_valid_parts_of_a_spec() -> None:
    spec = {**RAW["spec"], "escrow": "1Gi", "hard": {"hugepages-3Mi": "3Mi"}}
    raw = {**RAW, "spec": spec, "metadata": {**RAW["metadata"], "generation": 3}}
    fresh = QuotaObject.to_count(raw)
    assert "spec.escrow" in fresh.invalid
    assert fresh.quota.parent == QuotaKey("acme", "tenant")
    assert not fresh.quota.pod_selector.matches({"app": "other"})
    assert fresh.counter.hard == Charge()
    assert fresh.counter.used.of(SMALL) == 96 * 1024**2
    before = QuotaObject.to_count(raw, QuotaObject.from_json(RAW))
    assert before.quota == QuotaObject.from_json(RAW).quota
    # A spec that could not be read is read again in the same generation.
    assert QuotaObject.to_count({**RAW, "metadata": raw["metadata"]}, fresh).invalid == ""
