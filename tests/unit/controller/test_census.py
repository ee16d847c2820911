"""Who is charged: pods that run, pods that ended until their node lets them go, what they left."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from hugetlb_quota.accounting.attribution import Attribution, read_lines
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import (
    IDENTITIES_KEPT,
    ChargedPod,
    Identity,
    Retained,
    RetainedFile,
)
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.controller import conditions
from hugetlb_quota.controller.census import Census
from hugetlb_quota.controller.count import Count, Held
from hugetlb_quota.controller.ledger import Ledger
from hugetlb_quota.controller.node_history import NodeHistory, evidence
from hugetlb_quota.controller.nodes import (
    NodeFacts,
    NodeReport,
    ReportedFile,
    ReportedPod,
)
from hugetlb_quota.controller.snapshot import Snapshot
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.page_size import PageSize

TENANT, TEAM = QuotaKey("ns", "tenant"), QuotaKey("ns", "team")
SMALL = PageSize(2 << 20)
DEMAND, LEFT = (Charge.from_resources({"hugepages-2Mi": amount}) for amount in ("64Mi", "6Mi"))
FOREST = Forest([Quota(TENANT), Quota(TEAM, parent=TENANT)], {})
BOTH = frozenset({TENANT, TEAM})
POD = Pod("uid", "ns", "pod", resource_version=10, labels={}, node="worker", demand=DEMAND)
LIVE = ReportedPod("uid", "ns", "pod", {}, live=True, charged=LEFT)
GONE = replace(LIVE, live=False)
NAMELESS = replace(GONE, namespace="", name="")
LATER = datetime(2030, 1, 1, tzinfo=UTC)
LINE = Reservation("uid", "ns/pod", DEMAND, LATER, "request")


def report(
    version: int, *pods: ReportedPod, node: str = "worker", boot_id: str = "boot"
) -> NodeReport:
    return NodeReport(node, datetime(2026, 11, 22, tzinfo=UTC), boot_id, version, pods)


def snapshot(
    *reports: NodeReport,
    pods: tuple[Pod, ...] = (),
    lines: tuple[Reservation, ...] = (),
    forest: Forest = FOREST,
    seen_up_to: int = 12,
    listed_at: int = 1,
    nodes: tuple[NodeFacts, ...] = (NodeFacts("worker", "boot", out_of_service=False),),
    history: NodeHistory | None = None,
) -> Snapshot:
    counter = Counter(TEAM, NOTHING, reservations=lines)
    return Snapshot(
        Attribution(forest, {}, read_lines([counter], forest)),
        pods,
        seen_up_to,
        listed_at,
        evidence({node.name: node for node in nodes}, reports, history),
        {each.node: each for each in reports},
    )


def uids(counted: Count) -> set[str]:
    return {pod.uid for pod in counted.pods}


def held_under(key: QuotaKey, counted: Count) -> tuple[Held, ...]:
    ledger = Ledger()
    ledger.use_forest(FOREST)
    ledger.update(None, counted)
    return ledger.held(key)


def deleted(pod: Pod = POD) -> Census:
    census = Census()
    census.pod_changed(None, pod, 10)
    census.pod_changed(pod, None, 12)
    return census


def test_a_running_pod_is_charged_to_what_selects_it() -> None:
    (charged,) = Census().count(snapshot(pods=(POD,))).pods
    assert charged == ChargedPod("uid", DEMAND, BOTH)


def test_it_is_charged_what_the_kernel_charges_where_that_is_more() -> None:
    more = Charge.from_resources({"hugepages-2Mi": "66Mi", "hugepages-1Gi": "1Gi"})
    (charged,) = Census().count(snapshot(report(10, replace(LIVE, charged=more)), pods=(POD,))).pods
    assert charged.charge == more
    (charged,) = Census().count(snapshot(report(10, LIVE), pods=(POD,))).pods
    assert charged.charge == DEMAND


def test_a_finished_pod_is_held_until_its_node_has_seen_the_end() -> None:
    census, finished = Census(), replace(POD, finished=True)
    before = census.count(snapshot(report(9), pods=(finished,)))
    assert uids(before) == {"uid"}
    assert [held.nodes for held in before.held] == [{"worker"}]
    assert uids(census.count(snapshot(report(10), pods=(finished,)))) == set()
    assert census.was_released("uid")


def test_a_deleted_pod_is_held_while_its_cgroup_is_there_and_then_charged_what_it_left() -> None:
    census = deleted()
    assert uids(census.count(snapshot(report(20, LIVE)))) == {"uid"}
    assert uids(census.count(snapshot(report(11)))) == {"uid"}
    # The agent saw the cgroup go before it saw that the pod has ended.
    early = census.count(snapshot(report(11, GONE)))
    assert (uids(early), early.retained) == ({"uid"}, ())
    gone = census.count(snapshot(report(12, GONE)))
    assert (uids(gone), gone.retained) == (set(), (Retained("uid", LEFT, BOTH),))
    # Once let go, it does not come back.
    gone = census.count(snapshot(report(12)))
    assert (uids(gone), gone.retained) == (set(), ())


def test_what_is_written_to_a_pod_that_was_let_go_charges_it_no_more() -> None:
    """The Job controller takes its finalizer off a finished pod; later the pod is deleted."""
    census, finished = Census(), replace(POD, finished=True)
    assert uids(census.count(snapshot(report(10), pods=(finished,)))) == set()
    written = replace(finished, resource_version=11)
    census.pod_changed(finished, written, 11)
    assert uids(census.count(snapshot(report(10), pods=(written,)))) == set()
    census.pod_changed(written, None, 12)
    assert uids(census.count(snapshot(report(10)))) == set()
    assert census.was_released("uid")


def test_a_pod_let_go_for_want_of_an_agent_is_charged_when_one_shows_its_cgroup() -> None:
    finished = replace(POD, finished=True)
    for pods in ((finished,), ()):
        census = Census()
        census.pod_changed(None, POD, 5)
        census.pod_changed(POD, *((finished, 10) if pods else (None, 10)))
        assert uids(census.count(snapshot(pods=pods))) == set()
        assert uids(census.count(snapshot(report(20, LIVE), pods=pods))) == {"uid"}
        assert not census.was_released("uid")
        assert uids(census.count(snapshot(report(21), pods=pods))) == set()


def test_a_pod_that_only_its_node_knows_of_is_charged_where_its_labels_say() -> None:
    live = replace(LIVE, demand=DEMAND)
    counted = Census().count(snapshot(report(20, live)))
    assert counted.pods == (ChargedPod("uid", DEMAND, BOTH),)
    assert [held.pod.uid for held in held_under(TENANT, counted)] == ["uid"]
    gone = Census().count(snapshot(report(20, GONE)))
    assert gone.retained == (Retained("uid", LEFT, BOTH),)


def test_nothing_that_a_node_told_before_it_was_lost_or_booted_holds() -> None:
    told = report(20, LIVE, replace(GONE, uid="gone"))
    off = NodeFacts("worker", "boot", out_of_service=True)
    for nodes in ((), (off,)):
        counted = Census().count(snapshot(told, nodes=nodes))
        assert (counted.pods, counted.retained) == ((), ())
    # One that was live may have been started anew after the boot.
    census, (new, history) = Census(), booted()
    counted = census.count(snapshot(told, nodes=(new,), history=history))
    assert (uids(counted), counted.retained) == ({"uid"}, ())
    later = census.count(snapshot(report(20, boot_id="new"), nodes=(new,), history=history))
    assert (later.pods, later.retained) == ((), ())


def booted() -> tuple[NodeFacts, NodeHistory]:
    """The node as it is, and that it has booted at 11."""
    old, history = NodeFacts("worker", "boot", out_of_service=False, version=3), NodeHistory()
    new = replace(old, boot_id="new", version=11)
    history.node_changed(None, old, 3)
    history.node_changed(old, new, 11)
    return new, history


def test_a_report_of_a_boot_that_its_node_has_not_told_of_holds() -> None:
    """A stale Node after a boot; and a new controller, which does not know which is the later."""
    node = NodeFacts("worker", "boot", out_of_service=False)
    told = report(20, replace(LIVE, uid="live"), replace(GONE, uid="gone"), boot_id="new")
    history = NodeHistory()
    history.node_changed(None, node, 3)
    for seen in (history, None):
        counted = Census().count(snapshot(told, nodes=(node,), history=seen))
        assert (uids(counted), [each.uid for each in counted.retained]) == ({"live"}, ["gone"])
    # Now it tells. A report of the boot before comes no more, and would not hold.
    history.node_changed(node, replace(node, boot_id="new"), 30)
    counted = Census().count(snapshot(told, nodes=(node,), history=history))
    assert [each.uid for each in counted.retained] == ["gone"]
    before = replace(told, boot_id="boot")
    assert Census().count(snapshot(before, nodes=(node,), history=history)).retained == ()


def test_a_pod_that_ran_after_a_boot_waits_for_a_report_of_that_boot() -> None:
    new, history = booted()
    told = report(9)
    later = deleted()
    assert uids(later.count(snapshot(told, nodes=(new,), history=history))) == {"uid"}
    # A new controller does not know when the node has booted.
    assert uids(deleted().count(snapshot(told, nodes=(new,)))) == {"uid"}
    told_since = report(12, boot_id="new")
    assert uids(later.count(snapshot(told_since, nodes=(new,), history=history))) == set()
    before = Census()
    before.pod_changed(None, POD, 9)
    before.pod_changed(POD, None, 10)
    assert uids(before.count(snapshot(told, nodes=(new,), history=history))) == set()


def test_a_pod_that_was_never_bound_is_let_go_at_once() -> None:
    census = deleted(replace(POD, node=None))
    assert uids(census.count(snapshot(report(1)))) == set()
    assert census.was_released("uid")


def test_a_silent_node_is_named_with_what_it_holds_and_what_to_do() -> None:
    counted = Census().count(snapshot(report(9), pods=(replace(POD, finished=True),)))
    held = held_under(TEAM, counted)
    quota, counter = Quota(TEAM, parent=TENANT), Counter(TEAM, NOTHING)
    found = conditions.findings(quota, counter, FOREST, held, {"worker", "other"})
    (silent,) = [each for each in found if not each.good]
    assert silent.reason == "AgentSilent"
    assert silent.message == (
        "64Mi of hugepages-2Mi of an ended pod stays charged, because the agent does not report on"
        " worker. Start the agent there. If the node is gone, delete its Node; if the node is off,"
        " taint it with node.kubernetes.io/out-of-service. Then the charge ends."
    )
    assert all(each.good for each in conditions.findings(quota, counter, FOREST, held, set()))


def test_a_node_whose_report_is_cut_is_not_called_silent() -> None:
    counted = Census().count(snapshot(report(9), pods=(replace(POD, finished=True),)))
    held = held_under(TEAM, counted)
    quota, counter = Quota(TEAM, parent=TENANT), Counter(TEAM, NOTHING)

    def told(*, cut: set[str], silent: set[str], counter: Counter = counter) -> conditions.Finding:
        return conditions.findings(quota, counter, FOREST, held, silent, cut)[-1]

    full = told(cut={"worker", "other"}, silent=set())
    assert (full.good, full.reason) == (False, "ReportTooLarge")
    assert full.message == (
        "64Mi of hugepages-2Mi of an ended pod stays charged. There is no room for all pods in the"
        " report of worker. Remove files that gone pods left there; the condition ReportComplete of"
        " the HugeTLBNode says more."
    )
    assert told(cut={"other"}, silent=set()).good
    # Who does not report has made no room either.
    assert told(cut={"worker"}, silent={"worker"}).reason == "AgentSilent"
    lines = tuple(
        replace(LINE, uid=str(n), counted=("worker", "other")[n % 2])
        for n in range(IDENTITIES_KEPT)
    )
    many = replace(counter, reservations=lines)
    for cut, sentence in (
        ({"worker"}, "report on other. There is no room for all pods in the report of worker."),
        (
            {"worker", "other"},
            "remembered. There is no room for all pods in the report of other, worker.",
        ),
    ):
        finding = told(cut=cut, silent=set(), counter=many)
        assert finding.reason == "ReportTooLarge"
        assert sentence in finding.message


def test_a_quota_that_can_remember_no_more_pods_says_so() -> None:
    quota = Quota(TEAM, parent=TENANT)

    def told(count: int, word: str) -> conditions.Finding:
        lines = tuple(replace(LINE, uid=str(n), counted=word) for n in range(count))
        counter = Counter(TEAM, NOTHING, reservations=lines)
        return conditions.findings(quota, counter, FOREST, (), set())[-1]

    assert told(IDENTITIES_KEPT - 1, "worker").good
    assert told(IDENTITIES_KEPT, "-").good  # they wait for a node
    full = told(IDENTITIES_KEPT, "worker")
    assert (full.good, full.reason) == (False, "TooManyUnreported")
    assert full.message == (
        "status.reservations remembers 256 pods that no node has reported, and has no room for"
        " more. A reservation whose pod may have run unseen stays charged, and the oldest running"
        " pods are not remembered. Make sure that the agents report on worker."
    )
    assert "Make sure that the agents report." in told(IDENTITIES_KEPT, "?").message


def test_a_quota_below_one_that_goes_says_that_its_pods_are_refused() -> None:
    root = Quota(QuotaKey("ns", "root"), terminating=True)
    leaf = Quota(QuotaKey("ns", "leaf"), parent=root.key)
    counter = Counter(leaf.key, Charge())
    ready, *_ = conditions.findings(leaf, counter, Forest([root, leaf], {}), [], set())
    assert (ready.good, ready.reason) == (False, "Terminating")
    assert "HugeTLBQuota ns/root, above ns/leaf, is being deleted" in ready.message


# Identities


def kept(counted: Count) -> dict[str, Identity]:
    return dict(counted.identities.kept)


def test_a_pods_identity_is_kept_until_its_nodes_report_names_it() -> None:
    here = Identity("worker", BOTH, in_api=True)
    for silent in (report(9), report(9, NAMELESS), replace(report(9), boot_id="before")):
        assert kept(Census().count(snapshot(silent, pods=(POD,)))) == {"uid": here}
    named = Census().count(snapshot(report(9, LIVE), pods=(POD,), lines=(LINE,)))
    assert named.identities.settled == {"uid"}
    # There is no agent that could be asked; and no node.
    assert kept(Census().count(snapshot(pods=(POD,)))) == {}
    unbound = Census().count(snapshot(report(9), pods=(replace(POD, node=None),)))
    assert kept(unbound) == {"uid": replace(here, counted="-")}


def test_a_new_controller_goes_on_with_what_the_lines_tell() -> None:
    line = LINE.as_identity("worker")
    census = Census()
    held = census.count(snapshot(report(11), lines=(line,)))
    assert held.pods == (ChargedPod("uid", DEMAND, frozenset({TEAM})),)
    assert [each.nodes for each in held.held] == [{"worker"}]
    assert kept(held) == {"uid": Identity("worker", frozenset({TEAM}), in_api=False)}
    # The agent is back and tells of it, with or without a name.
    named = census.count(snapshot(report(12, GONE), lines=(line,)))
    assert (named.pods, named.retained) == ((), (Retained("uid", LEFT, BOTH),))
    assert named.identities.settled == {"uid"}


def test_a_line_goes_when_its_node_has_reported_without_the_pod() -> None:
    line, census = LINE.as_identity("worker"), Census()
    assert uids(census.count(snapshot(report(11), lines=(line,), seen_up_to=12))) == {"uid"}
    # What is known since grows; what matters is when the pod was missing first.
    gone = census.count(snapshot(report(12), lines=(line,), seen_up_to=50))
    assert not gone.pods
    assert gone.identities.settled == {"uid"}
    # The quotas' informer may lag behind the write that takes the line away.
    assert uids(census.count(snapshot(report(12), lines=(line,), seen_up_to=60))) == set()


def test_after_a_gap_in_what_is_known_of_pods_a_line_waits_for_a_later_report() -> None:
    line, census = LINE.as_identity("worker"), Census()
    census.count(snapshot(report(11), lines=(line,), seen_up_to=12))
    gap = snapshot(report(12), lines=(line,), seen_up_to=40, listed_at=30)
    assert uids(census.count(gap)) == {"uid"}
    assert uids(census.count(replace(gap, reports=snapshot(report(30)).reports))) == {"uid"}
    assert uids(census.count(snapshot(report(30), lines=(line,), listed_at=30))) == set()


def test_a_uid_that_the_kernel_alone_names_is_paid_by_the_quota_that_has_its_line() -> None:
    line, census = LINE.as_identity("worker"), Census()
    told = replace(report(50, NAMELESS), files=(ReportedFile("uid", "/huge/f", SMALL, 6 << 20),))
    for _ in range(2):
        counted = census.count(snapshot(told, lines=(line,)))
        assert counted.pods == ()
        assert counted.retained == (Retained("uid", LEFT, frozenset({TEAM})),)
        assert kept(counted) == {"uid": Identity("worker", frozenset({TEAM}), in_api=False)}
        (file,) = counted.files
        assert file == RetainedFile(
            "worker", "/huge/f", "ns/pod", SMALL, 6 << 20, frozenset({TEAM})
        )
    gone = census.count(snapshot(report(51), lines=(line,)))
    assert not gone.retained
    assert gone.identities.settled == {"uid"}


def test_what_is_charged_to_nobody_is_told() -> None:
    free = replace(GONE, uid="free", namespace="free")
    told = report(50, NAMELESS, free, replace(free, uid="runs", live=True))
    counted = Census().count(snapshot(told))
    assert counted.orphans == {("worker", "uid", ""), ("worker", "free", "free/pod")}
    assert [(each.uid, each.quotas) for each in counted.retained] == [
        ("uid", frozenset()),
        ("free", frozenset()),
    ]
    # Its quota and namespace were deleted, and there was none above.
    meant = snapshot(told)
    rule = replace(meant.attribution, heirs={("worker", "free"): frozenset()})
    assert Census().count(replace(meant, attribution=rule)).orphans == {("worker", "uid", "")}


WORKERS = tuple(NodeFacts(name, "boot", out_of_service=False) for name in ("worker", "other"))


def test_a_pod_that_may_have_been_bound_anywhere_waits_for_all_nodes() -> None:
    line, census = LINE.as_identity("-"), Census()
    late = snapshot(report(12), report(11, node="other"), lines=(line,), nodes=WORKERS)
    held = census.count(late)
    assert uids(held) == {"uid"}
    assert [each.nodes for each in held.held] == [{"other"}]
    both = snapshot(report(12), report(12, node="other"), lines=(line,), nodes=WORKERS)
    assert uids(census.count(both)) == set()


def test_a_pod_whose_binding_a_list_may_have_hidden_is_held_by_its_line() -> None:
    census, pending = Census(), replace(POD, node=None)
    census.pod_changed(None, pending, 10)
    census.pod_changed(pending, None, 12, missed=True)
    line = LINE.as_identity("-")
    assert uids(census.count(snapshot(report(11), lines=(line,)))) == {"uid"}
    assert uids(census.count(snapshot(report(12), lines=(line,)))) == set()


def test_of_a_reservation_that_was_never_counted_a_silent_node_may_tell_yet() -> None:
    census = Census()
    waiting = census.count(snapshot(report(11), lines=(LINE,)))
    assert (waiting.pods, kept(waiting)) == (
        (),
        {"uid": Identity("?", frozenset({TEAM}), in_api=False)},
    )
    doubtful = LINE.as_identity("?")
    assert kept(census.count(snapshot(report(11), lines=(doubtful,)))) == kept(waiting)
    proved = census.count(snapshot(report(12), lines=(LINE,)))
    assert (kept(proved), census.was_released("uid")) == ({}, False)
    assert census.count(snapshot(report(12), lines=(doubtful,))).identities.settled == {"uid"}


# Labels

A, B = QuotaKey("ns", "a"), QuotaKey("ns", "b")
SELECTING = Forest(
    (
        Quota(key, pod_selector=Selector.from_json({"matchLabels": {key.name: ""}}))
        for key in (A, B)
    ),
    {},
)


def test_what_a_relabelled_pod_filled_moves_with_it() -> None:
    census, moved = Census(), replace(POD, labels={"b": ""}, resource_version=12)
    told = replace(LIVE, labels={"a": ""})
    running = census.count(snapshot(report(11, told), pods=(moved,), forest=SELECTING))
    assert [pod.quotas for pod in running.pods] == [{B}]
    # It is gone, and its node has not seen the labels yet: who was told by the API knows better.
    finished = replace(moved, finished=True, resource_version=13)
    gone = replace(told, live=False)
    left = census.count(snapshot(report(13, gone), pods=(finished,), forest=SELECTING))
    assert [each.quotas for each in left.retained] == [{B}]


def test_a_quota_that_comes_to_select_it_pays_for_what_a_pod_that_is_gone_left() -> None:
    census, told = Census(), report(20, replace(GONE, labels={"a": ""}))
    assert [each.quotas for each in census.count(snapshot(told, forest=SELECTING)).retained] == [
        {A}
    ]
    both = Forest([*SELECTING, Quota(QuotaKey("ns", "all"))], {})
    (left,) = census.count(snapshot(told, forest=both)).retained
    assert left.quotas == {A, QuotaKey("ns", "all")}


def test_where_a_report_had_no_room_for_labels_all_pay_that_may_select_the_pod() -> None:
    web, db = (Quota(QuotaKey("ns", name), pod_selector=by_app(name)) for name in ("web", "db"))
    forest = Forest([web, db, Quota(QuotaKey("other", "all"))], {})
    some = replace(GONE, labels={"tier": "1"}, partial=True)
    counted = Census().count(snapshot(report(12, some), forest=forest))
    assert counted.retained == (Retained("uid", LEFT, frozenset({web.key, db.key})),)
    # By what labels there are those don't pay that don't select it.
    some = replace(some, labels={"app": "db"})
    counted = Census().count(snapshot(report(12, some), forest=forest))
    assert counted.retained == (Retained("uid", LEFT, frozenset({db.key})),)
    whole = replace(some, labels={"tier": "1"}, partial=False)
    counted = Census().count(snapshot(report(12, whole), forest=forest))
    assert counted.retained == (Retained("uid", LEFT, frozenset()),)


def by_app(name: str) -> Selector:
    return Selector.from_json({"matchLabels": {"app": name}})
