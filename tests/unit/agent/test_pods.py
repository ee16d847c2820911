"""NodePods: the pod of each cgroup, what the pod may use, and claims of static pods."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.pods import NodePods
from hugetlb_quota.kube.pods import Container, Pod
from hugetlb_quota.page_size import PageSize

SIZE = PageSize(2 << 20)
DEMAND = Charge({SIZE: 8 << 20})
HASH = "9f" * 16


def pod(uid: str = "u", **more: object) -> Pod:
    return replace(Pod(uid, "ns", uid, 1, {}, demand=DEMAND), **more)  # type: ignore[arg-type]


def seen(pods: NodePods) -> dict[str, tuple[str, bool]]:
    """Return the UID of the pod, and True if it has ended, by the UID in the cgroup's name."""
    return {uid: (each.pod.uid, each.ended) for uid, each in pods.seen().items()}


def with_pods(*added: Pod) -> NodePods:
    pods = NodePods()
    for each in added:
        pods.changed(None, each)
    return pods


def test_a_pod_may_use_its_demand_and_its_containers_their_requests() -> None:
    containers = (Container("c", "1f", DEMAND), Container("not yet created", None, DEMAND))
    allowance = with_pods(pod(containers=containers)).allowance("u")
    assert allowance is not None
    assert (allowance.demand, dict(allowance.containers)) == (DEMAND, {"1f": DEMAND})


def test_a_pod_without_a_demand_may_use_nothing() -> None:
    allowance = with_pods(pod(demand=Charge())).allowance("u")
    assert allowance is not None
    assert not allowance.demand


def test_an_unseen_pod_has_no_allowance() -> None:
    assert with_pods(pod()).allowance("other") is None


def test_keeps_a_deleted_pod_until_it_is_forgotten() -> None:
    pods = with_pods(pod())
    pods.changed(pod(), None)
    assert seen(pods) == {"u": ("u", True)}
    assert pods.allowance("u") is not None
    pods.forget({"u"}, pods.seen())
    assert seen(pods) == {"u": ("u", True)}
    pods.forget(set(), pods.seen())
    assert seen(pods) == {}
    # A pod that is in the API is never forgotten.
    pods.changed(None, pod())
    pods.forget(set(), pods.seen())
    assert seen(pods) == {"u": ("u", False)}


def test_keeps_a_pod_deleted_during_a_pass_until_the_next_pass() -> None:
    pods = with_pods(pod())
    before = pods.seen()
    pods.changed(pod(), None)
    pods.forget(set(), before)
    assert seen(pods) == {"u": ("u", True)}
    pods.forget(set(), {})  # as if the pod was bound and deleted during the pass
    assert seen(pods) == {"u": ("u", True)}
    pods.forget(set(), pods.seen())
    assert seen(pods) == {}


def test_counts_the_ends_of_pods_with_demand() -> None:
    pods = with_pods(pod("a"), pod("b", demand=Charge()))
    pods.changed(pod("a"), pod("a", finished=True))
    pods.changed(pod("a", finished=True), None)
    pods.changed(pod("b", demand=Charge()), None)
    assert pods.ends == 2


def test_adds_up_the_demand_of_all_pods() -> None:
    pods = with_pods(pod("a"), pod("b"), pod("over", finished=True))
    assert pods.demand() == Charge({SIZE: 16 << 20})


def test_finds_a_static_pod_by_its_hash() -> None:
    pods = with_pods(pod("mirror", static_hash=HASH))
    assert seen(pods) == {HASH: ("mirror", False)}
    assert pods.allowance(HASH) is not None
    assert pods.allowance("mirror") is None


def test_a_new_mirror_pod_replaces_the_old_mirror_pod() -> None:
    old, new = pod("old", static_hash=HASH), pod("new", static_hash=HASH)
    pods = with_pods(old)
    pods.changed(old, None)
    assert seen(pods) == {HASH: ("old", True)}
    pods.changed(None, new)
    assert seen(pods) == {HASH: ("new", False)}
    pods.forget({HASH}, pods.seen())
    pods.changed(new, None)
    assert seen(pods) == {HASH: ("new", True)}


@pytest.mark.parametrize("state", ["running", "deleted", "reported"])
def test_a_real_uid_always_wins(state: str) -> None:
    victim, thief = pod("victim"), pod("thief", static_hash="victim", demand=Charge())
    pods = with_pods(thief)
    if state == "reported":
        pods.remember({}, frozenset({"victim"}))
        assert seen(pods) == {"thief": ("thief", False)}
        return
    pods.changed(None, victim)
    if state == "deleted":
        pods.changed(victim, None)
    assert seen(pods) == {"victim": ("victim", state == "deleted"), "thief": ("thief", False)}
    allowance = pods.allowance("victim")
    assert allowance is not None
    assert allowance.demand == DEMAND


def test_ignores_two_pods_that_claim_the_same_hash() -> None:
    pods = with_pods(pod("one", static_hash=HASH), pod("two", static_hash=HASH))
    assert seen(pods) == {"one": ("one", False), "two": ("two", False)}
    assert pods.allowance(HASH) is None


def test_a_reported_static_pod_keeps_its_hash() -> None:
    pods = with_pods(pod("one", static_hash=HASH), pod("two", static_hash=HASH))
    pods.remember({HASH: "one"}, frozenset())
    assert seen(pods) == {HASH: ("one", False), "two": ("two", False)}
