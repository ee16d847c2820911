"""The census charges running pods, ended pods until their release, and the pages they left."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from hugetlb_quota.accounting.attribution import Attribution, read_lines
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import (
    ChargedPod,
    Identity,
    Retained,
    RetainedFile,
)
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.controller.counting.census import Census
from hugetlb_quota.controller.counting.count import Count, Held
from hugetlb_quota.controller.counting.ledger import Ledger
from hugetlb_quota.controller.counting.node_history import NodeHistory, evidence
from hugetlb_quota.controller.counting.nodes import (
    NodeFacts,
    NodeReport,
    ReportedFile,
    ReportedPod,
)
from hugetlb_quota.controller.counting.snapshot import Snapshot
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


def test_a_running_pod_is_charged_to_the_quotas_that_select_it() -> None:
    (charged,) = Census().count(snapshot(pods=(POD,))).pods
    assert charged == ChargedPod("uid", DEMAND, BOTH)


def test_a_running_pod_is_charged_the_kernels_charge_if_that_is_more() -> None:
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


def test_a_deleted_pod_is_held_while_its_cgroup_exists_and_then_its_pages_are_retained() -> None:
    census = deleted()
    assert uids(census.count(snapshot(report(20, LIVE)))) == {"uid"}
    assert uids(census.count(snapshot(report(11)))) == {"uid"}
    # The agent saw that the cgroup was removed before it saw the pod's end.
    early = census.count(snapshot(report(11, GONE)))
    assert (uids(early), early.retained) == ({"uid"}, ())
    gone = census.count(snapshot(report(12, GONE)))
    assert (uids(gone), gone.retained) == (set(), (Retained("uid", LEFT, BOTH),))
    # A released pod is not charged again.
    gone = census.count(snapshot(report(12)))
    assert (uids(gone), gone.retained) == (set(), ())


def test_a_later_write_to_a_released_pod_does_not_charge_the_pod_again() -> None:
    """The Job controller removes its finalizer from a finished pod; later the pod is deleted."""
    census, finished = Census(), replace(POD, finished=True)
    assert uids(census.count(snapshot(report(10), pods=(finished,)))) == set()
    written = replace(finished, resource_version=11)
    census.pod_changed(finished, written, 11)
    assert uids(census.count(snapshot(report(10), pods=(written,)))) == set()
    census.pod_changed(written, None, 12)
    assert uids(census.count(snapshot(report(10)))) == set()
    assert census.was_released("uid")


def test_a_pod_released_without_an_agent_is_charged_when_an_agent_reports_its_cgroup() -> None:
    finished = replace(POD, finished=True)
    for pods in ((finished,), ()):
        census = Census()
        census.pod_changed(None, POD, 5)
        census.pod_changed(POD, *((finished, 10) if pods else (None, 10)))
        assert uids(census.count(snapshot(pods=pods))) == set()
        assert uids(census.count(snapshot(report(20, LIVE), pods=pods))) == {"uid"}
        assert not census.was_released("uid")
        assert uids(census.count(snapshot(report(21), pods=pods))) == set()


def test_a_pod_that_only_a_report_names_is_charged_by_the_reported_labels() -> None:
    live = replace(LIVE, demand=DEMAND)
    counted = Census().count(snapshot(report(20, live)))
    assert counted.pods == (ChargedPod("uid", DEMAND, BOTH),)
    assert [held.pod.uid for held in held_under(TENANT, counted)] == ["uid"]
    gone = Census().count(snapshot(report(20, GONE)))
    assert gone.retained == (Retained("uid", LEFT, BOTH),)


def test_a_report_from_before_the_node_was_lost_or_booted_is_not_valid() -> None:
    reported = report(20, LIVE, replace(GONE, uid="gone"))
    off = NodeFacts("worker", "boot", out_of_service=True)
    for nodes in ((), (off,)):
        counted = Census().count(snapshot(reported, nodes=nodes))
        assert (counted.pods, counted.retained) == ((), ())
    # kubelet may have started the live pod again after the boot.
    census, (new, history) = Census(), booted()
    counted = census.count(snapshot(reported, nodes=(new,), history=history))
    assert (uids(counted), counted.retained) == ({"uid"}, ())
    later = census.count(snapshot(report(20, boot_id="new"), nodes=(new,), history=history))
    assert (later.pods, later.retained) == ((), ())


def booted() -> tuple[NodeFacts, NodeHistory]:
    """The node after a boot at resourceVersion 11, and its history."""
    old, history = NodeFacts("worker", "boot", out_of_service=False, version=3), NodeHistory()
    new = replace(old, boot_id="new", version=11)
    history.node_changed(None, old, 3)
    history.node_changed(old, new, 11)
    return new, history


def test_a_report_with_a_boot_id_that_the_node_has_not_shown_is_valid() -> None:
    """The Node may be late; and a new controller does not know which boot is later."""
    node = NodeFacts("worker", "boot", out_of_service=False)
    reported = report(20, replace(LIVE, uid="live"), replace(GONE, uid="gone"), boot_id="new")
    history = NodeHistory()
    history.node_changed(None, node, 3)
    for seen in (history, None):
        counted = Census().count(snapshot(reported, nodes=(node,), history=seen))
        assert (uids(counted), [each.uid for each in counted.retained]) == ({"live"}, ["gone"])
    # Now the Node shows the new boot. A report of the boot before would not be valid.
    history.node_changed(node, replace(node, boot_id="new"), 30)
    counted = Census().count(snapshot(reported, nodes=(node,), history=history))
    assert [each.uid for each in counted.retained] == ["gone"]
    before = replace(reported, boot_id="boot")
    assert Census().count(snapshot(before, nodes=(node,), history=history)).retained == ()


def test_a_pod_that_ran_after_a_boot_waits_for_a_report_of_that_boot() -> None:
    new, history = booted()
    reported = report(9)
    later = deleted()
    assert uids(later.count(snapshot(reported, nodes=(new,), history=history))) == {"uid"}
    # A new controller does not know when the node booted.
    assert uids(deleted().count(snapshot(reported, nodes=(new,)))) == {"uid"}
    after_boot = report(12, boot_id="new")
    assert uids(later.count(snapshot(after_boot, nodes=(new,), history=history))) == set()
    before = Census()
    before.pod_changed(None, POD, 9)
    before.pod_changed(POD, None, 10)
    assert uids(before.count(snapshot(reported, nodes=(new,), history=history))) == set()


def test_a_pod_that_was_never_bound_is_released_at_once() -> None:
    census = deleted(replace(POD, node=None))
    assert uids(census.count(snapshot(report(1)))) == set()
    assert census.was_released("uid")


# Identities


def kept(counted: Count) -> dict[str, Identity]:
    return dict(counted.identities.kept)


def test_an_identity_is_kept_until_the_nodes_report_names_the_pod() -> None:
    here = Identity("worker", BOTH, in_api=True)
    for silent in (report(9), report(9, NAMELESS), replace(report(9), boot_id="before")):
        assert kept(Census().count(snapshot(silent, pods=(POD,)))) == {"uid": here}
    named = Census().count(snapshot(report(9, LIVE), pods=(POD,), lines=(LINE,)))
    assert named.identities.unneeded == {"uid"}
    # A node without an agent never reports the pod. An unbound pod has no node.
    assert kept(Census().count(snapshot(pods=(POD,)))) == {}
    unbound = Census().count(snapshot(report(9), pods=(replace(POD, node=None),)))
    assert kept(unbound) == {"uid": replace(here, counted="-")}


def test_a_new_controller_continues_from_the_lines() -> None:
    line = LINE.as_identity("worker")
    census = Census()
    held = census.count(snapshot(report(11), lines=(line,)))
    assert held.pods == (ChargedPod("uid", DEMAND, frozenset({TEAM})),)
    assert [each.nodes for each in held.held] == [{"worker"}]
    assert kept(held) == {"uid": Identity("worker", frozenset({TEAM}), in_api=False)}
    # The agent runs again and reports the pod.
    named = census.count(snapshot(report(12, GONE), lines=(line,)))
    assert (named.pods, named.retained) == ((), (Retained("uid", LEFT, BOTH),))
    assert named.identities.unneeded == {"uid"}


def test_a_line_ends_when_its_node_has_reported_without_the_pod() -> None:
    line, census = LINE.as_identity("worker"), Census()
    assert uids(census.count(snapshot(report(11), lines=(line,), seen_up_to=12))) == {"uid"}
    # The first version without the pod decides, not the latest version that was seen.
    gone = census.count(snapshot(report(12), lines=(line,), seen_up_to=50))
    assert not gone.pods
    assert gone.identities.unneeded == {"uid"}
    # The quotas' informer may show the line for some time after the write that removed it.
    assert uids(census.count(snapshot(report(12), lines=(line,), seen_up_to=60))) == set()


def test_after_a_new_list_of_pods_a_line_waits_for_a_later_report() -> None:
    line, census = LINE.as_identity("worker"), Census()
    census.count(snapshot(report(11), lines=(line,), seen_up_to=12))
    gap = snapshot(report(12), lines=(line,), seen_up_to=40, listed_at=30)
    assert uids(census.count(gap)) == {"uid"}
    assert uids(census.count(replace(gap, reports=snapshot(report(30)).reports))) == {"uid"}
    assert uids(census.count(snapshot(report(30), lines=(line,), listed_at=30))) == set()


def test_a_uid_that_only_the_kernel_names_is_paid_by_the_quota_with_its_line() -> None:
    line, census = LINE.as_identity("worker"), Census()
    reported = replace(
        report(50, NAMELESS), files=(ReportedFile("uid", "/huge/f", SMALL, 6 << 20),)
    )
    for _ in range(2):
        counted = census.count(snapshot(reported, lines=(line,)))
        assert counted.pods == ()
        assert counted.retained == (Retained("uid", LEFT, frozenset({TEAM})),)
        assert kept(counted) == {"uid": Identity("worker", frozenset({TEAM}), in_api=False)}
        (file,) = counted.files
        assert file == RetainedFile(
            "worker", "/huge/f", "ns/pod", SMALL, 6 << 20, frozenset({TEAM})
        )
    gone = census.count(snapshot(report(51), lines=(line,)))
    assert not gone.retained
    assert gone.identities.unneeded == {"uid"}


def test_a_gone_pod_that_no_quota_pays_for_is_an_orphan() -> None:
    free = replace(GONE, uid="free", namespace="free")
    reported = report(50, NAMELESS, free, replace(free, uid="runs", live=True))
    counted = Census().count(snapshot(reported))
    assert counted.orphans == {("worker", "uid", ""), ("worker", "free", "free/pod")}
    assert [(each.uid, each.quotas) for each in counted.retained] == [
        ("uid", frozenset()),
        ("free", frozenset()),
    ]
    # The set of heirs is empty: the quota and its namespace were deleted, and no quota was above.
    intended = snapshot(reported)
    rule = replace(intended.attribution, heirs={("worker", "free"): frozenset()})
    assert Census().count(replace(intended, attribution=rule)).orphans == {("worker", "uid", "")}


WORKERS = tuple(NodeFacts(name, "boot", out_of_service=False) for name in ("worker", "other"))


def test_a_pod_on_an_unknown_node_waits_for_all_nodes() -> None:
    line, census = LINE.as_identity("-"), Census()
    late = snapshot(report(12), report(11, node="other"), lines=(line,), nodes=WORKERS)
    held = census.count(late)
    assert uids(held) == {"uid"}
    assert [each.nodes for each in held.held] == [{"other"}]
    both = snapshot(report(12), report(12, node="other"), lines=(line,), nodes=WORKERS)
    assert uids(census.count(both)) == set()


def test_an_unbound_pod_that_a_list_shows_gone_waits_for_all_nodes() -> None:
    census, pending = Census(), replace(POD, node=None)
    census.pod_changed(None, pending, 10)
    census.pod_changed(pending, None, 12, missed=True)
    line = LINE.as_identity("-")
    assert uids(census.count(snapshot(report(11), lines=(line,)))) == {"uid"}
    assert uids(census.count(snapshot(report(12), lines=(line,)))) == set()


def test_an_uncounted_reservation_is_remembered_while_a_node_may_report_the_pod() -> None:
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
    assert census.count(snapshot(report(12), lines=(doubtful,))).identities.unneeded == {"uid"}


# Labels

A, B = QuotaKey("ns", "a"), QuotaKey("ns", "b")
SELECTING = Forest(
    (
        Quota(key, pod_selector=Selector.from_json({"matchLabels": {key.name: ""}}))
        for key in (A, B)
    ),
    {},
)


def test_the_charge_of_a_relabelled_pod_moves_to_the_quota_that_selects_it_now() -> None:
    census, moved = Census(), replace(POD, labels={"b": ""}, resource_version=12)
    reported = replace(LIVE, labels={"a": ""})
    running = census.count(snapshot(report(11, reported), pods=(moved,), forest=SELECTING))
    assert [pod.quotas for pod in running.pods] == [{B}]
    # The pod is gone, and its node has not seen the new labels. The labels of the API decide.
    finished = replace(moved, finished=True, resource_version=13)
    gone = replace(reported, live=False)
    left = census.count(snapshot(report(13, gone), pods=(finished,), forest=SELECTING))
    assert [each.quotas for each in left.retained] == [{B}]


def test_a_new_quota_that_selects_a_gone_pod_pays_for_its_retained_pages() -> None:
    census, reported = Census(), report(20, replace(GONE, labels={"a": ""}))
    assert [
        each.quotas for each in census.count(snapshot(reported, forest=SELECTING)).retained
    ] == [{A}]
    both = Forest([*SELECTING, Quota(QuotaKey("ns", "all"))], {})
    (left,) = census.count(snapshot(reported, forest=both)).retained
    assert left.quotas == {A, QuotaKey("ns", "all")}


def test_if_a_report_had_no_room_for_labels_all_quotas_that_may_select_the_pod_pay() -> None:
    web, db = (Quota(QuotaKey("ns", name), pod_selector=by_app(name)) for name in ("web", "db"))
    forest = Forest([web, db, Quota(QuotaKey("other", "all"))], {})
    some = replace(GONE, labels={"tier": "1"}, labels_left_out=True)
    counted = Census().count(snapshot(report(12, some), forest=forest))
    assert counted.retained == (Retained("uid", LEFT, frozenset({web.key, db.key})),)
    # A quota does not pay if its selector can't match the reported labels.
    some = replace(some, labels={"app": "db"})
    counted = Census().count(snapshot(report(12, some), forest=forest))
    assert counted.retained == (Retained("uid", LEFT, frozenset({db.key})),)
    whole = replace(some, labels={"tier": "1"}, labels_left_out=False)
    counted = Census().count(snapshot(report(12, whole), forest=forest))
    assert counted.retained == (Retained("uid", LEFT, frozenset()),)


def by_app(name: str) -> Selector:
    return Selector.from_json({"matchLabels": {"app": name}})
