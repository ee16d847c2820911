"""The conditions of a quota: their sentences, their times, and which changes are worth an Event."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import IDENTITIES_KEPT, ChargedPod
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.controller.counting.count import Held
from hugetlb_quota.controller.writing.conditions import Finding, conditions, findings, turned

ROOT = Quota(QuotaKey("ns", "root"), Charge.from_resources({"hugepages-2Mi": "64Mi"}))
LEAF = Quota(
    QuotaKey("ns", "leaf"), Charge.from_resources({"hugepages-2Mi": "32Mi"}), parent=ROOT.key
)
NOW = datetime(2026, 1, 1, 12, 30, 15, 999, tzinfo=UTC)


def found(quota: Quota, *others: Quota, pods: str = "0") -> tuple[Finding, ...]:
    counter = Counter(quota.key, quota.hard, pods=Charge.from_resources({"hugepages-2Mi": pods}))
    return findings(quota, counter=counter, forest=Forest([quota, *others], {}))


@pytest.mark.parametrize(
    ("quota", "root", "reason", "sentence"),
    [
        (ROOT, None, "Root", "HugeTLBQuota ns/root is a root."),
        (LEAF, ROOT, "Attached", "Each pod is charged on the whole chain ns/leaf -> ns/root."),
        (
            replace(LEAF, hard=Charge.from_resources({"hugepages-2Mi": "128Mi"})),
            ROOT,
            "LimitAboveParent",
            "The limit of 128Mi of hugepages-2Mi can't be reached: HugeTLBQuota ns/root above has"
            " the limit 64Mi.",
        ),
    ],
)
def test_an_attached_quota_is_ready(
    quota: Quota, root: Quota | None, reason: str, sentence: str
) -> None:
    ready, *_ = found(quota, *([] if root is None else [root]))
    assert (ready.type, ready.good, ready.reason) == ("Ready", True, reason)
    assert ready.message == sentence


@pytest.mark.parametrize(
    ("quota", "root", "reason", "sentence"),
    [
        (
            replace(ROOT, terminating=True),
            None,
            "Terminating",
            "HugeTLBQuota ns/root is being deleted and admits no pods. The quota stays until"
            " nothing is charged to it.",
        ),
        (
            LEAF,
            replace(ROOT, terminating=True),
            "Terminating",
            "HugeTLBQuota ns/root, above ns/leaf, is being deleted, so no pods are admitted under"
            " ns/leaf. Change spec.parentRef.",
        ),
        (LEAF, None, "ParentNotFound", "Until then its pods are refused."),
        (
            replace(LEAF, attached_to=ROOT.key),
            replace(ROOT, parent=LEAF.key),
            "Cycle",
            "The charge of ns/leaf stays charged to ns/root too.",
        ),
    ],
)
def test_a_quota_that_admits_no_pods_is_not_ready(
    quota: Quota, root: Quota | None, reason: str, sentence: str
) -> None:
    ready, *_ = found(quota, *([] if root is None else [root]))
    assert (ready.type, ready.good, ready.reason) == ("Ready", False, reason)
    assert sentence in ready.message


def test_the_message_about_a_charge_above_a_limit_has_both_numbers() -> None:
    assert found(LEAF, ROOT, pods="32Mi")[1].good
    over = found(LEAF, ROOT, pods="34Mi")[1]
    assert (over.type, over.good, over.reason) == ("WithinLimits", False, "OverLimit")
    assert over.message == (
        "In HugeTLBQuota ns/leaf, 34Mi of hugepages-2Mi is charged and the limit is 32Mi. Nothing"
        " more is admitted until pods end or the limit is raised."
    )


FOREST = Forest([ROOT, LEAF], {})
COUNTER = Counter(LEAF.key, LEAF.hard)
DEMAND = Charge.from_resources({"hugepages-2Mi": "64Mi"})
HELD = (Held(ChargedPod("uid", DEMAND, frozenset({LEAF.key})), frozenset({"worker"})),)
LINE = Reservation("uid", "ns/pod", DEMAND, NOW, "request")


def test_the_message_about_a_silent_node_has_the_held_charge_and_the_remedy() -> None:
    *others, silent = findings(
        LEAF, counter=COUNTER, forest=FOREST, held=HELD, silent={"worker", "other"}
    )
    assert all(each.good for each in others)
    assert (silent.good, silent.reason) == (False, "AgentSilent")
    assert silent.message == (
        "64Mi of hugepages-2Mi of an ended pod stays charged, because the agent does not report on"
        " worker. Start the agent there. If the node is gone, delete its Node; if the node is off,"
        " taint it with node.kubernetes.io/out-of-service. Then the charge ends."
    )
    assert all(each.good for each in findings(LEAF, counter=COUNTER, forest=FOREST, held=HELD))


def test_a_node_with_a_report_that_leaves_out_pods_is_not_silent() -> None:
    def found(*, leaving_out: set[str], silent: set[str], counter: Counter = COUNTER) -> Finding:
        return findings(
            LEAF, counter=counter, forest=FOREST, held=HELD, silent=silent, leaving_out=leaving_out
        )[-1]

    full = found(leaving_out={"worker", "other"}, silent=set())
    assert (full.good, full.reason) == (False, "ReportTooLarge")
    assert full.message == (
        "64Mi of hugepages-2Mi of an ended pod stays charged. There is no room for all pods in the"
        " report of worker. Remove files that gone pods left there; the condition ReportComplete of"
        " the HugeTLBNode says more."
    )
    assert found(leaving_out={"other"}, silent=set()).good
    # If the node is silent and its report leaves out pods, the reason is the silence.
    assert found(leaving_out={"worker"}, silent={"worker"}).reason == "AgentSilent"
    lines = tuple(
        replace(LINE, uid=str(n), counted=("worker", "other")[n % 2])
        for n in range(IDENTITIES_KEPT)
    )
    many = replace(COUNTER, reservations=lines)
    for leaving_out, sentence in (
        ({"worker"}, "report on other. There is no room for all pods in the report of worker."),
        (
            {"worker", "other"},
            "remembered. There is no room for all pods in the report of other, worker.",
        ),
    ):
        finding = found(leaving_out=leaving_out, silent=set(), counter=many)
        assert finding.reason == "ReportTooLarge"
        assert sentence in finding.message


def test_a_quota_without_room_for_another_identity_has_a_condition() -> None:
    def found(count: int, word: str) -> Finding:
        lines = tuple(replace(LINE, uid=str(n), counted=word) for n in range(count))
        counter = replace(COUNTER, reservations=lines)
        return findings(LEAF, counter=counter, forest=FOREST)[-1]

    assert found(IDENTITIES_KEPT - 1, "worker").good
    assert found(IDENTITIES_KEPT, "-").good  # these pods wait for a node
    full = found(IDENTITIES_KEPT, "worker")
    assert (full.good, full.reason) == (False, "TooManyUnreported")
    assert full.message == (
        "status.reservations remembers 256 pods that no node has reported, and has no room for"
        " more. If the pod of a reservation may have run unseen, the reservation stays charged."
        " The oldest running pods are not remembered. Make sure that the agents report on worker."
    )
    assert "Make sure that the agents report." in found(IDENTITIES_KEPT, "?").message


GOOD = Finding("Ready", True, "Root", "All is well.")
BAD = Finding("Ready", False, "Cycle", "Change something.")


def test_the_transition_time_changes_only_with_the_status() -> None:
    first = conditions([GOOD], [], 1, NOW)
    assert first[0].last_transition_time == NOW.replace(microsecond=0)
    later = NOW + timedelta(hours=1)
    (same,) = conditions([replace(GOOD, reason="Attached")], first, 2, later)
    assert same.last_transition_time == first[0].last_transition_time
    assert (same.reason, same.observed_generation) == ("Attached", 2)
    (other,) = conditions([BAD], first, 2, later)
    assert other.last_transition_time == later.replace(microsecond=0)


def test_a_change_of_status_or_reason_and_a_new_bad_condition_have_turned() -> None:
    good, bad = conditions([GOOD], [], 1, NOW), conditions([BAD], [], 1, NOW)
    renamed = conditions([replace(GOOD, reason="Attached")], [], 1, NOW)
    reworded = conditions([replace(GOOD, message="All is fine.")], [], 1, NOW)
    assert turned([], good) == ()
    assert turned([], bad) == bad
    assert turned(good, bad) == bad
    assert turned(bad, good) == good
    assert turned(good, renamed) == renamed
    assert turned(good, reworded) == ()
