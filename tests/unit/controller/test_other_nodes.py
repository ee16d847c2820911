"""What a node tells of pods that are not its own: it adds what it holds, and takes nothing."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from hugetlb_quota.accounting.attribution import Attribution, read_lines
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.recount import ChargedPod, Identity, Retained, recount, tally
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.controller.census import Census
from hugetlb_quota.controller.count import Count
from hugetlb_quota.controller.node_history import evidence
from hugetlb_quota.controller.nodes import NodeReport, ReportedFile, ReportedPod
from hugetlb_quota.controller.snapshot import Snapshot
from hugetlb_quota.kube.pods import Pod
from tests.unit.controller.test_census import (
    BOTH,
    DEMAND,
    FOREST,
    GONE,
    LATER,
    LEFT,
    LINE,
    LIVE,
    NAMELESS,
    POD,
    SELECTING,
    SMALL,
    TEAM,
    WORKERS,
    A,
    B,
    deleted,
    kept,
    report,
    snapshot,
    uids,
)

TINY = Charge.from_resources({"hugepages-2Mi": "2Mi"})
#: What another node says: the pod is gone, is called otherwise, and left next to nothing.
FORGED = ReportedPod("uid", "victim", "renamed", {"b": ""}, live=False, charged=TINY)


def from_other(*pods: ReportedPod, version: int = 1000) -> NodeReport:
    return report(version, *pods, node="other")


def test_another_node_neither_ends_nor_renames_a_running_pod() -> None:
    running = replace(POD, labels={"a": ""})
    for forged in (FORGED, replace(FORGED, live=True)):
        told = snapshot(from_other(forged), pods=(running,), forest=SELECTING, nodes=WORKERS)
        counted = Census().count(told)
        assert counted.pods == (ChargedPod("uid", DEMAND, frozenset({A})),)
        assert counted.retained == (Retained("uid", TINY, frozenset({A})),)
        assert [each.node for each in counted.retained] == ["other"]


def test_another_node_does_not_let_go_a_pod_whose_own_node_is_silent() -> None:
    counted = deleted().count(snapshot(report(11), from_other(FORGED), nodes=WORKERS))
    assert uids(counted) == {"uid"}
    assert [(each.pod.charge, each.nodes) for each in counted.held] == [
        (DEMAND, frozenset({"worker"}))
    ]
    assert counted.retained == (Retained("uid", TINY, BOTH),)


def test_another_node_does_not_take_over_a_line() -> None:
    line, census = LINE.as_identity("worker"), Census()
    for forged in ((FORGED,), (replace(NAMELESS, charged=TINY),), ()):
        told = snapshot(report(11), from_other(*forged), lines=(line,), nodes=WORKERS)
        counted = census.count(told)
        assert counted.pods == (ChargedPod("uid", DEMAND, frozenset({TEAM})),)
        assert kept(counted) == {"uid": Identity("worker", frozenset({TEAM}), in_api=False)}
        assert [each.quotas for each in counted.retained] == [{TEAM}] * len(forged)


def test_a_pod_that_may_be_anywhere_is_not_where_one_node_says() -> None:
    told = (report(11), from_other(replace(LIVE, charged=TINY)))
    for word, charged in (("-", DEMAND), ("?", TINY)):
        line, census = replace(LINE.as_identity(word), charge=DEMAND), Census()
        counted = census.count(snapshot(*told, lines=(line,), nodes=WORKERS))
        assert Charge.total(pod.charge for pod in counted.pods).of(SMALL) >= charged.of(SMALL)
        assert kept(counted) == {"uid": Identity(word, frozenset({TEAM}), in_api=False)}


def test_a_reservation_does_not_end_by_what_a_node_tells_of_a_pod_that_nobody_has_seen() -> None:
    counter = Counter(TEAM, NOTHING, reservations=(LINE,))
    told = snapshot(report(11), from_other(LIVE), lines=(LINE,), nodes=WORKERS)
    counted = Census().count(told)
    total = tally(FOREST, counted.pods, counted.retained)[TEAM]
    assert recount(counter, total, set(), counted.identities).pending == (LINE,)


def test_what_two_nodes_tell_of_an_unknown_pod_is_each_their_own() -> None:
    mine = replace(GONE, labels={"a": ""})
    theirs = replace(FORGED, namespace="ns")
    files = (ReportedFile("uid", "/huge/f", SMALL, 6 << 20),)
    told = (replace(report(50, mine), files=files), from_other(theirs))
    counted = Census().count(snapshot(*told, forest=SELECTING, nodes=WORKERS))
    assert {(each.node, each.charge, each.quotas) for each in counted.retained} == {
        ("worker", LEFT, frozenset({A})),
        ("other", TINY, frozenset({B})),
    }
    assert [(file.pod, file.quotas) for file in counted.files] == [("ns/pod", frozenset({A}))]


def test_a_file_has_the_name_that_the_pods_own_node_gives() -> None:
    files = (ReportedFile("uid", "/huge/f", SMALL, 2 << 20),)
    told = snapshot(
        report(11),
        replace(from_other(FORGED), files=files),
        lines=(LINE.as_identity("worker"),),
        nodes=WORKERS,
    )
    assert [file.pod for file in Census().count(told).files] == ["ns/pod"]


# Whatever it tells

UIDS = ("p", "q")
AMOUNTS = st.sampled_from(["2Mi", "64Mi", "1Gi"]).map(
    lambda amount: Charge.from_resources({"hugepages-2Mi": amount})
)
NODES = st.sampled_from([None, "worker"])


@st.composite
def told_pods(draw: st.DrawFn) -> tuple[ReportedPod, ...]:
    return tuple(
        ReportedPod(
            uid,
            draw(st.sampled_from(["", "ns", "victim"])),
            "told",
            draw(st.sampled_from([{}, {"a": ""}, {"b": ""}])),
            live=draw(st.booleans()),
            charged=draw(st.just(NOTHING) | AMOUNTS),
            demand=draw(st.just(NOTHING) | AMOUNTS),
        )
        for uid in draw(st.sets(st.sampled_from(UIDS)))
    )


@st.composite
def snapshots(draw: st.DrawFn) -> tuple[tuple[Pod, ...], Snapshot]:
    """Pods that were deleted, and all else but another node's report."""
    pods = [
        Pod(uid, "ns", uid, 10, {"a": ""}, draw(NODES), draw(st.booleans()), demand=DEMAND)
        for uid in UIDS
    ]
    where = {uid: draw(st.sampled_from(["here", "deleted", "unknown"])) for uid in UIDS}
    lines = tuple(
        Reservation(uid, f"ns/{uid}", DEMAND, LATER, f"request-{uid}", counted=word)
        for uid in UIDS
        if (word := draw(st.sampled_from([None, "", "-", "?", "worker"]))) is not None
    )
    here = tuple(pod for pod in pods if where[pod.uid] == "here")
    told = snapshot(
        report(draw(st.sampled_from([5, 15])), *draw(told_pods())),
        pods=here,
        forest=SELECTING,
        nodes=WORKERS,
    )
    counters = [Counter(A, NOTHING, reservations=lines)]
    told = replace(told, attribution=Attribution(SELECTING, {}, read_lines(counters, SELECTING)))
    return tuple(pod for pod in pods if where[pod.uid] == "deleted"), told


def counted_with(gone: tuple[Pod, ...], told: Snapshot, other: NodeReport) -> Count:
    census = Census()
    for pod in gone:
        census.pod_changed(None, pod, 10)
        census.pod_changed(pod, None, 12)
    reports = {**told.reports, "other": other}
    nodes = {node.name: node for node in WORKERS}
    return census.count(replace(told, reports=reports, evidence=evidence(nodes, reports.values())))


@settings(max_examples=500)
@given(made=snapshots(), forged=told_pods())
def test_whatever_another_node_tells_takes_nothing(
    made: tuple[tuple[Pod, ...], Snapshot], forged: tuple[ReportedPod, ...]
) -> None:
    """It has nothing of its own, and has seen every end: without the forgery it says nothing."""
    gone, told = made
    honest = counted_with(gone, told, from_other())
    lying = counted_with(gone, told, from_other(*forged))
    before = tally(SELECTING, honest.pods, honest.retained)
    after = tally(SELECTING, lying.pods, lying.retained)
    lines = told.attribution.lines
    for key in (A, B):
        total = after[key].pods + after[key].retained
        assert (before[key].pods + before[key].retained).beyond(total).without_zeros() == NOTHING, (
            key
        )
    assert lying.identities.settled <= honest.identities.settled
    for uid, identity in honest.identities.kept.items():
        assert lying.identities.kept[uid].quotas >= identity.quotas
    # A reservation of a pod that nobody has seen stays, unless it ended for another reason.
    for uid in lines.keys() - honest.identities.settled - {pod.uid for pod in gone}:
        for key in (A, B):
            assert after[key].seen.get(uid, 0) <= before[key].seen.get(uid, 0)
