"""Who is charged: pods that run, and pods that ended until their node lets them go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import ChargedPod, Unreported
from hugetlb_quota.accounting.release import NodeEvidence
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.controller import conditions
from hugetlb_quota.controller.census import LISTED_WITHIN, Census, Count, held_by_quota
from hugetlb_quota.controller.nodes import NodeReport, evidence, remembering
from hugetlb_quota.kube.pods import Pod

TENANT, TEAM = QuotaKey("ns", "tenant"), QuotaKey("ns", "team")
DEMAND = Charge.from_resources({"hugepages-2Mi": "64Mi"})
FOREST = Forest([Quota(TENANT), Quota(TEAM, parent=TENANT)], {})
POD = Pod("uid", "ns", "pod", resource_version=10, labels={}, node="worker", demand=DEMAND)


def report(version: int, *live: ChargedPod, boot_id: str = "boot") -> NodeReport:
    return NodeReport("worker", datetime(2026, 11, 22, tzinfo=UTC), boot_id, version, live)


def count(
    census: Census,
    pods: list[Pod],
    *reports: NodeReport,
    told: tuple[Unreported, ...] = (),
    seen_up_to: int = 0,
    now: float = 0.0,
) -> Count:
    known: Mapping[str, NodeEvidence] = evidence({"worker": "boot"}, reports)
    for each in reports:
        census.report_changed(None, each, 0)
    by_node = {each.node: each for each in reports}
    tells = {each.uid: each for each in told}
    return census.count(FOREST, pods, known, by_node, tells, seen_up_to=seen_up_to, now=now)


def uids(counted: Count) -> set[str]:
    return {pod.uid for pod in counted.pods}


def test_a_running_pod_is_charged_to_what_selects_it() -> None:
    (charged,) = count(Census(), [POD]).pods
    assert charged == ChargedPod("uid", DEMAND, frozenset({TENANT, TEAM}))


def test_a_finished_pod_is_held_until_its_node_has_seen_the_end() -> None:
    census, finished = Census(), replace(POD, finished=True)
    before = count(census, [finished], report(9))
    assert uids(before) == {"uid"}
    assert [held.node for held in before.held] == ["worker"]
    assert uids(count(census, [finished], report(10))) == set()
    assert census.was_released("uid")


def test_a_deleted_pod_is_held_while_its_cgroup_is_there() -> None:
    census = Census()
    census.pod_changed(None, POD, 10)
    census.pod_changed(POD, None, 12)
    live = ChargedPod("uid", DEMAND, frozenset({TEAM}))
    assert uids(count(census, [], report(20, live))) == {"uid"}
    assert uids(count(census, [], report(11))) == {"uid"}
    assert uids(count(census, [], report(12))) == set()
    # Once let go, it does not come back.
    assert uids(count(census, [], report(12))) == set()


def test_what_is_written_to_a_pod_that_was_let_go_charges_it_no_more() -> None:
    """The Job controller takes its finalizer off a finished pod; later the pod is deleted."""
    census, finished = Census(), replace(POD, finished=True)
    assert uids(count(census, [finished], report(10))) == set()
    written = replace(finished, resource_version=11)
    census.pod_changed(finished, written, 11)
    assert uids(count(census, [written], report(10))) == set()
    census.pod_changed(written, None, 12)
    assert uids(count(census, [], report(10))) == set()
    assert census.was_released("uid")


def test_a_pod_let_go_for_want_of_an_agent_is_charged_when_one_shows_its_cgroup() -> None:
    finished, live = replace(POD, finished=True), ChargedPod("uid", DEMAND, frozenset({TEAM}))
    for census, pods in ((Census(), [finished]), (Census(), [])):
        census.pod_changed(None, POD, 5)
        census.pod_changed(POD, *((finished, 10) if pods else (None, 10)))
        assert uids(count(census, pods)) == set()
        assert uids(count(census, pods, report(20, live))) == {"uid"}
        assert not census.was_released("uid")
        assert uids(count(census, pods, report(21))) == set()


def test_a_pod_that_only_its_node_knows_of_is_charged_where_the_node_says() -> None:
    live = ChargedPod("other", DEMAND, frozenset({TEAM}))
    counted = count(Census(), [], report(20, live))
    assert counted.pods == (live,)
    assert [held.pod for held in held_by_quota(counted, FOREST)[TENANT]] == [live]
    assert uids(count(Census(), [], report(20, live, boot_id="before"))) == set()


def test_what_a_node_retains_is_forgotten_with_its_boot() -> None:
    told = report(20)
    assert remembering(evidence({"worker": "boot"}, [told]), [told]) == (told,)
    assert remembering(evidence({"worker": "new"}, [told]), [told]) == ()
    assert remembering(evidence({}, [told]), [told]) == ()


def test_a_pod_that_asks_for_nothing_is_not_held_for_want_of_a_report() -> None:
    """Its node lists it for what it uses; it may well be running."""
    live = ChargedPod("other", Charge(), frozenset({TEAM}))
    assert held_by_quota(count(Census(), [], report(20, live)), FOREST) == {}


def test_a_pod_that_was_never_bound_is_let_go_at_once() -> None:
    census, pending = Census(), replace(POD, node=None)
    census.pod_changed(None, pending, 10)
    census.pod_changed(pending, None, 12)
    assert uids(count(census, [])) == set()
    assert census.was_released("uid")


def test_a_silent_node_is_named_with_what_it_holds() -> None:
    counted = count(Census(), [replace(POD, finished=True)], report(9))
    held = held_by_quota(counted, FOREST)[TEAM]
    quota = Quota(TEAM, parent=TENANT)
    found = conditions.findings(quota, _counter(), FOREST, held, {"worker"})
    (silent,) = [each for each in found if not each.good]
    assert silent.reason == "AgentSilent"
    assert "64Mi of hugepages-2Mi of 1 ended pods" in silent.message
    assert "worker" in silent.message
    assert all(each.good for each in conditions.findings(quota, _counter(), FOREST, held, set()))


def test_a_quota_below_one_that_goes_says_that_its_pods_are_refused() -> None:
    root = Quota(QuotaKey("ns", "root"), terminating=True)
    leaf = Quota(QuotaKey("ns", "leaf"), parent=root.key)
    counter = Counter(leaf.key, Charge())
    ready, *_ = conditions.findings(leaf, counter, Forest([root, leaf], {}), [], set())
    assert (ready.good, ready.reason) == (False, "Terminating")
    assert "HugeTLBQuota ns/root, above ns/leaf, is being deleted" in ready.message


MISSED = Unreported("uid", "ns/pod", "worker", DEMAND, frozenset({TENANT, TEAM}), "uid")
LIVE = ChargedPod("uid", DEMAND, frozenset({TENANT, TEAM}))
#: As an agent lists the cgroup of a pod that it knows nothing of.
NAMELESS = ChargedPod("uid", Charge(), frozenset())


def since(version: int, *live: ChargedPod, start: int = 1, settled: bool = False) -> NodeReport:
    told = frozenset({"uid"}) if settled else frozenset[str]()
    return replace(report(version, *live), pods_since=start, settled=told)


def deleted(pod: Pod = POD) -> Census:
    census = Census()
    census.pod_changed(None, pod, 10)
    census.pod_changed(pod, None, 12)
    return census


def test_a_pod_that_no_report_has_listed_is_told_of_when_its_agent_had_the_time_to_list_it() -> (
    None
):
    census = deleted()
    first = count(census, [], since(9), now=100.0)
    assert (first.unreported, first.waits) == ((), True)
    assert uids(first) == {"uid"}
    later = count(census, [], since(9), now=100.0 + LISTED_WITHIN)
    assert (later.unreported, later.waits) == ((MISSED,), False)


def test_one_that_a_report_has_listed_is_not_told_of_however_long_its_agent_is_away() -> None:
    for at_end in (since(11), since(12, start=12)):
        census = deleted()
        assert count(census, [], since(9, LIVE)).unreported == ()
        assert count(census, [], at_end, now=999.0).unreported == ()
    assert census.was_released("uid")


def test_one_that_came_and_went_between_two_reports_of_an_agent_that_runs_is_not_told_of() -> None:
    assert count(deleted(), [], since(12, start=10), now=999.0).pods == ()


def test_an_agent_that_came_later_lets_it_go_when_it_has_been_told() -> None:
    census = deleted()
    back = since(20, start=12)
    assert count(census, [], back).unreported == (MISSED,)  # at once: it can't list it any more
    for report in (back, since(21, LIVE, start=12), since(22, LIVE, start=12, settled=True)):
        counted = count(census, [], report, told=(MISSED,))
        assert (uids(counted), counted.unreported) == ({"uid"}, (MISSED,))
    counted = count(census, [], since(23, start=12, settled=True), told=(MISSED,))
    assert (counted.pods, counted.unreported) == ((), ())
    # The quota's informer may lag behind that write.
    assert count(census, [], since(24, start=12), told=(MISSED,)).pods == ()


def test_a_cgroup_without_a_name_is_not_its_pod_listed() -> None:
    census = deleted()
    assert count(census, [], since(20, NAMELESS, start=12)).unreported == (MISSED,)
    assert count(census, [], since(21, start=12)).unreported == (MISSED,)


def test_a_new_controller_goes_on_with_what_the_quotas_tell() -> None:
    census = Census()
    counted = count(census, [], since(20, start=12), told=(MISSED,))
    assert (counted.pods, counted.unreported) == ((LIVE,), (MISSED,))
    assert [each.node for each in counted.held] == ["worker"]
    assert count(census, [], since(21, start=12, settled=True), told=(MISSED,)).pods == ()
    assert count(Census(), [], told=(MISSED,)).pods == ()  # no agent there
    booted = replace(since(9), boot_id="before")
    assert count(Census(), [], booted, told=(MISSED,)).pods == ()


def test_a_finished_pod_is_known_to_an_agent_that_came_while_it_was_in_the_api() -> None:
    finished = replace(POD, finished=True)
    back = since(20, start=12)
    assert uids(count(Census(), [finished], back, seen_up_to=12)) == set()
    # It may have been deleted since, before the agent came.
    assert count(Census(), [finished], back, seen_up_to=11).unreported == (MISSED,)


def test_a_static_pod_is_told_of_with_the_name_of_its_cgroup() -> None:
    (told,) = count(deleted(replace(POD, static_hash="0a1b")), [], since(20, start=12)).unreported
    assert (told.uid, told.cgroup) == ("uid", "0a1b")


def test_nothing_is_asked_about_a_pod_that_is_charged_to_nobody() -> None:
    for pod in (replace(POD, namespace="elsewhere"), replace(POD, demand=Charge())):
        counted = count(deleted(pod), [], since(20, start=12))
        assert (counted.pods, counted.unreported) == ((), ())


def test_a_quota_that_can_not_be_read_lets_no_pod_go_that_it_may_govern() -> None:
    census, back = deleted(), since(20, start=12)
    known = evidence({"worker": "boot"}, [back])
    nobody = Forest([], {})
    held = census.count(
        nobody, [], known, {"worker": back}, {}, seen_up_to=0, now=0.0, unreadable={"ns"}
    )
    assert uids(held) == {"uid"}
    assert count(census, [], back).unreported == (MISSED,)  # it can be read again


def _counter() -> Counter:
    return Counter(TEAM, Charge())


A, B = QuotaKey("ns", "a"), QuotaKey("ns", "b")
SELECTING = Forest(
    (
        Quota(key, pod_selector=Selector.from_json({"matchLabels": {key.name: ""}}))
        for key in (A, B)
    ),
    {},
)


def under(name: str | None, version: int, node: str | None = "worker") -> Pod:
    labels = {} if name is None else {name: ""}
    return replace(POD, labels=labels, resource_version=version, node=node)


def charged_to(census: Census, pods: list[Pod], *reports: NodeReport) -> list[QuotaKey]:
    known = evidence({"worker": "boot"}, reports)
    by_node = {each.node: each for each in reports}
    counted = census.count(SELECTING, pods, known, by_node, {}, seen_up_to=0, now=0.0)
    return sorted({quota for pod in counted.pods for quota in pod.quotas})


def relabelled(*pods: Pod) -> Census:
    census = Census()
    for old, new in pairwise((None, *pods)):
        census.pod_changed(old, new, new.resource_version if new else 0)
    return census


def test_a_relabelled_pod_counts_under_both_quotas_until_its_node_has_seen_it() -> None:
    moved = under("b", 12)
    census = relabelled(under("a", 10), moved)
    assert charged_to(census, [moved], report(11)) == [A, B]
    assert charged_to(census, [moved], report(12)) == [B]
    # Once let go, it does not come back.
    assert charged_to(census, [moved], report(11)) == [B]


def test_a_pod_relabelled_twice_counts_under_all_three() -> None:
    none, moved = under(None, 12), under("b", 14)
    census = relabelled(under("a", 10), none, moved)
    assert charged_to(census, [none], report(11)) == [A]
    assert charged_to(census, [moved], report(11)) == [A, B]
    assert charged_to(census, [moved], report(13)) == [B]


def test_a_relabelled_pod_that_ended_is_held_under_both_until_its_node_tells() -> None:
    moved = under("b", 12)
    census = relabelled(under("a", 10), moved)
    census.pod_changed(moved, None, 14)
    assert charged_to(census, [], report(11)) == [A, B]
    live = ChargedPod("uid", DEMAND, frozenset({B}))
    assert charged_to(census, [], report(14, live)) == [B]
    assert charged_to(census, [], report(14)) == []


def test_where_its_node_lists_a_pod_it_counts_too() -> None:
    """A controller that began later knows no former labels; or the node is ahead of it."""
    live = ChargedPod("uid", DEMAND, frozenset({A}))
    assert charged_to(Census(), [under("b", 12)], report(11, live)) == [A, B]
    assert charged_to(Census(), [under("b", 12)], report(11, live, boot_id="before")) == [B]


def test_a_pod_that_has_no_node_with_an_agent_is_charged_where_its_labels_say_alone() -> None:
    unbound = under("b", 12, node=None)
    assert charged_to(relabelled(under("a", 10, node=None), unbound), [unbound]) == [B]
    assert charged_to(relabelled(under("a", 10), under("b", 12)), [under("b", 12)]) == [B]
