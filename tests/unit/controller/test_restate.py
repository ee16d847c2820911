"""The status that a count writes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.controller.writing.conditions import Finding, turned
from hugetlb_quota.controller.writing.status_writer import restate
from hugetlb_quota.kube.quotas import QuotaObject

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
    assert turned(again.conditions, over.conditions) == over.conditions


def test_a_new_condition_counts_as_changed_only_if_it_is_false() -> None:
    good = restate(QUOTA, counter("2Mi"), [FITS], counted=QUOTA, now=NOW).conditions
    bad = restate(QUOTA, counter("66Mi"), [OVER], counted=QUOTA, now=NOW).conditions
    assert turned((), good) == ()
    assert turned((), bad) == bad
    assert turned(bad, good) == good
