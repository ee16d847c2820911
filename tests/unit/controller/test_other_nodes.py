"""A report about a pod of another node only adds the reported charge to the pod's payers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from hugetlb_quota.accounting.attribution import Attribution, read_lines
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.recount import ChargedPod, Identity, Retained, recount, tally
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.controller.counting.count import Count
from hugetlb_quota.controller.counting.node_history import evidence
from hugetlb_quota.controller.counting.nodes import NodeReport, ReportedFile, ReportedPod
from hugetlb_quota.controller.counting.snapshot import Snapshot
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
#: An entry of another node: the pod is gone, has another name, and left almost nothing.
FORGED = ReportedPod("uid", "victim", "renamed", {"b": ""}, live=False, charged=TINY)


def from_other(*pods: ReportedPod, version: int = 1000) -> NodeReport:
    return report(version, *pods, node="other")


def test_another_node_neither_ends_nor_renames_a_running_pod() -> None:
    running = replace(POD, labels={"a": ""})
    for forged in (FORGED, replace(FORGED, live=True)):
        taken = snapshot(from_other(forged), pods=(running,), forest=SELECTING, nodes=WORKERS)
        counted = Census().count(taken)
        assert counted.pods == (ChargedPod("uid", DEMAND, frozenset({A})),)
        assert counted.retained == (Retained("uid", TINY, frozenset({A})),)
        assert [each.node for each in counted.retained] == ["other"]


def test_another_node_does_not_release_a_pod_of_a_silent_node() -> None:
    counted = deleted().count(snapshot(report(11), from_other(FORGED), nodes=WORKERS))
    assert uids(counted) == {"uid"}
    assert [(each.pod.charge, each.nodes) for each in counted.held] == [
        (DEMAND, frozenset({"worker"}))
    ]
    assert counted.retained == (Retained("uid", TINY, BOTH),)


def test_another_node_does_not_change_a_line() -> None:
    line, census = LINE.as_identity("worker"), Census()
    for forged in ((FORGED,), (replace(NAMELESS, charged=TINY),), ()):
        taken = snapshot(report(11), from_other(*forged), lines=(line,), nodes=WORKERS)
        counted = census.count(taken)
        assert counted.pods == (ChargedPod("uid", DEMAND, frozenset({TEAM})),)
        assert kept(counted) == {"uid": Identity("worker", frozenset({TEAM}), in_api=False)}
        assert [each.quotas for each in counted.retained] == [{TEAM}] * len(forged)


def test_a_report_of_one_node_does_not_place_a_pod_on_an_unknown_node() -> None:
    reports = (report(11), from_other(replace(LIVE, charged=TINY)))
    for word, charged in (("-", DEMAND), ("?", TINY)):
        line, census = replace(LINE.as_identity(word), charge=DEMAND), Census()
        counted = census.count(snapshot(*reports, lines=(line,), nodes=WORKERS))
        assert Charge.total(pod.charge for pod in counted.pods).of(SMALL) >= charged.of(SMALL)
        assert kept(counted) == {"uid": Identity(word, frozenset({TEAM}), in_api=False)}


def test_an_entry_about_a_pod_that_nobody_has_seen_does_not_end_its_reservation() -> None:
    counter = Counter(TEAM, NOTHING, reservations=(LINE,))
    taken = snapshot(report(11), from_other(LIVE), lines=(LINE,), nodes=WORKERS)
    counted = Census().count(taken)
    total = tally(FOREST, counted.pods, counted.retained)[TEAM]
    assert recount(counter, total, set(), counted.identities).pending == (LINE,)


def test_two_nodes_that_report_an_unknown_pod_are_each_charged_by_their_own_labels() -> None:
    mine = replace(GONE, labels={"a": ""})
    theirs = replace(FORGED, namespace="ns")
    files = (ReportedFile("uid", "/huge/f", SMALL, 6 << 20),)
    reports = (replace(report(50, mine), files=files), from_other(theirs))
    counted = Census().count(snapshot(*reports, forest=SELECTING, nodes=WORKERS))
    assert {(each.node, each.charge, each.quotas) for each in counted.retained} == {
        ("worker", LEFT, frozenset({A})),
        ("other", TINY, frozenset({B})),
    }
    assert [(file.pod, file.quotas) for file in counted.files] == [("ns/pod", frozenset({A}))]


def test_a_file_has_the_pod_name_that_the_pods_own_node_reports() -> None:
    files = (ReportedFile("uid", "/huge/f", SMALL, 2 << 20),)
    taken = snapshot(
        report(11),
        replace(from_other(FORGED), files=files),
        lines=(LINE.as_identity("worker"),),
        nodes=WORKERS,
    )
    assert [file.pod for file in Census().count(taken).files] == ["ns/pod"]


# Any entry of another node

UIDS = ("p", "q")
AMOUNTS = st.sampled_from(["2Mi", "64Mi", "1Gi"]).map(
    lambda amount: Charge.from_resources({"hugepages-2Mi": amount})
)
NODES = st.sampled_from([None, "worker"])


@st.composite
def entries(draw: st.DrawFn) -> tuple[ReportedPod, ...]:
    return tuple(
        ReportedPod(
            uid,
            draw(st.sampled_from(["", "ns", "victim"])),
            "renamed",
            draw(st.sampled_from([{}, {"a": ""}, {"b": ""}])),
            live=draw(st.booleans()),
            charged=draw(st.just(NOTHING) | AMOUNTS),
            demand=draw(st.just(NOTHING) | AMOUNTS),
        )
        for uid in draw(st.sets(st.sampled_from(UIDS)))
    )


@st.composite
def snapshots(draw: st.DrawFn) -> tuple[tuple[Pod, ...], Snapshot]:
    """Deleted pods, and a snapshot without the report of the other node."""
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
    taken = snapshot(
        report(draw(st.sampled_from([5, 15])), *draw(entries())),
        pods=here,
        forest=SELECTING,
        nodes=WORKERS,
    )
    counters = [Counter(A, NOTHING, reservations=lines)]
    taken = replace(taken, attribution=Attribution(SELECTING, {}, read_lines(counters, SELECTING)))
    return tuple(pod for pod in pods if where[pod.uid] == "deleted"), taken


def counted_with(gone: tuple[Pod, ...], taken: Snapshot, other: NodeReport) -> Count:
    census = Census()
    for pod in gone:
        census.pod_changed(None, pod, 10)
        census.pod_changed(pod, None, 12)
    reports = {**taken.reports, "other": other}
    nodes = {node.name: node for node in WORKERS}
    return census.count(replace(taken, reports=reports, evidence=evidence(nodes, reports.values())))


@settings(max_examples=500)
@given(made=snapshots(), forged=entries())
def test_no_entry_of_another_node_lowers_a_charge(
    made: tuple[tuple[Pod, ...], Snapshot], forged: tuple[ReportedPod, ...]
) -> None:
    """The other node has no pods and has seen every end, so its honest report is empty."""
    gone, taken = made
    honest = counted_with(gone, taken, from_other())
    lying = counted_with(gone, taken, from_other(*forged))
    before = tally(SELECTING, honest.pods, honest.retained)
    after = tally(SELECTING, lying.pods, lying.retained)
    lines = taken.attribution.lines
    for key in (A, B):
        total = after[key].pods + after[key].retained
        assert (before[key].pods + before[key].retained).beyond(total).without_zeros() == NOTHING, (
            key
        )
    assert lying.identities.unneeded <= honest.identities.unneeded
    for uid, identity in honest.identities.kept.items():
        assert lying.identities.kept[uid].quotas >= identity.quotas
    # The reservation of an unseen pod stays, unless it ends for another reason.
    for uid in lines.keys() - honest.identities.unneeded - {pod.uid for pod in gone}:
        for key in (A, B):
            assert after[key].seen.get(uid, 0) <= before[key].seen.get(uid, 0)
