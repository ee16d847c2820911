from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Reservation
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject, project_quota, status_body
from hugetlb_quota.page_size import PageSize

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
            {
                "uid": "pod-1",
                "pod": "db/pg-0",
                "charge": {"hugepages-2Mi": "64Mi"},
                "expires": "2026-11-22T12:00:00.000001Z",
            }
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


def test_it_is_read() -> None:
    quota = QuotaObject.from_json(RAW)
    assert (quota.uid, quota.resource_version, quota.generation) == ("u", "9", 2)
    assert quota.quota.parent == QuotaKey("acme", "tenant")
    assert quota.quota.pod_selector.matches({"app": "pg"})
    assert not quota.quota.pod_selector.matches({"app": "other"})
    assert quota.quota.child_namespaces is None
    assert quota.counter.hard == Charge({SMALL: 256 * 1024**2, LARGE: 8 * 1024**3})
    assert quota.counter.used.of(SMALL) == 96 * 1024**2


def test_the_status_tells_it_all_once() -> None:
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
        "unreported": [],
        "summary": "2Mi: 96Mi/256Mi, 1Gi: 0/8Gi",
        "conditions": RAW["status"]["conditions"],
    }


def test_what_was_written_is_read_back_as_stored() -> None:
    quota = QuotaObject.from_json(RAW)
    assert not quota.is_stored  # used and the rest were not written yet
    again = QuotaObject.from_json({**RAW, "status": status_body(quota)["status"]})
    assert again.is_stored
    assert not replace(again, observed_generation=2).is_stored
    assert not again.with_counter(again.counter.release("pod-1")).is_stored


def test_who_is_unreported_is_kept_by_whoever_writes_the_counter() -> None:
    told = {
        "uid": "u-1",
        "pod": "db/gone",
        "node": "worker",
        "charge": {"hugepages-2Mi": "8Mi"},
        "quotas": ["db/all", "db/leaf"],
        "cgroup": "0a1b",
    }
    raw = {**RAW, "status": {**RAW["status"], "unreported": [told]}}
    quota = QuotaObject.from_json(raw)
    admitted = quota.with_counter(quota.counter.release("pod-1"))
    assert status_body(admitted)["status"]["unreported"] == [told]
    assert not replace(admitted, unreported=()).is_stored


def test_expiry_is_written_in_utc() -> None:
    quota = QuotaObject.from_json(RAW)
    east = timezone(timedelta(hours=2))
    moment = datetime(2026, 11, 22, 14, 0, 0, 5, tzinfo=east)
    changed = quota.with_counter(
        quota.counter.charge(Reservation("pod-1", "db/pg-0", Charge({SMALL: 1}), moment))
    )
    (written,) = status_body(changed)["status"]["reservations"]
    assert written["expires"] == "2026-11-22T12:00:00.000005Z"
    read = QuotaObject.from_json({**RAW, "status": status_body(changed)["status"]})
    assert read.counter.reservations[0].expires == moment
    assert read.counter.reservations[0].expires.tzinfo == UTC


def test_a_size_that_is_charged_and_not_limited_is_shown_too() -> None:
    raw = {**RAW, "spec": {"hard": {"hugepages-1Gi": "8Gi"}}}
    assert QuotaObject.from_json(raw).status().summary == "2Mi: 96Mi/unlimited, 1Gi: 0/8Gi"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"spec": {"hard": {"hugepages-3Mi": "3Mi"}}}, "spec.hard: 'hugepages-3Mi' names no"),
        ({"spec": {}}, "spec.hard: Field required."),
        ({"spec": None}, "spec: "),
        ({"status": {"pods": {"hugepages-2Mi": "many"}}}, "'many' is not a quantity"),
        ({"status": {"reservations": [{"uid": "u"}]}}, "status.reservations.0.pod: Field required"),
    ],
)
def test_what_can_not_be_understood_is_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidQuota, match="HugeTLBQuota db/leaf is invalid") as refused:
        QuotaObject.from_json({**RAW, **changed})
    assert said in str(refused.value)
    kept = project_quota({**RAW, **changed})
    assert isinstance(kept, InvalidQuota)
    assert (kept.key, kept.resource_version) == (QuotaKey("db", "leaf"), 9)
