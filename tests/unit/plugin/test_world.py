"""The world: the holders of huge pages, the forest of the quotas, and the faults of a quota."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.plugin.world import World, forest_of, words
from tests.unit.plugin.worlds import (
    NAMESPACES,
    TENANT,
    acme,
    entry,
    file,
    pod,
    quota,
    report,
    world,
)

ROOT = QuotaKey("acme", "tenant")
DB, WEB = QuotaKey("acme-db", "db"), QuotaKey("acme-web", "web")


def holders(found: World, key: QuotaKey) -> list[tuple[str, str, str]]:
    """Kind, pod and amount of each holder that fills the quota ``key``; without empty holders."""
    return [
        (each.kind, each.pod, ",".join(each.holds.to_resources().values()))
        for each in found.charged_to(key)
        if each.holds
    ]


def test_a_holder_fills_its_quota_and_the_quotas_above() -> None:
    found = acme()
    assert {each.uid for each in found.charged_to(DB)} == {"db-0"}
    assert {each.uid for each in found.charged_to(WEB)} == {"web-0", "old", "new"}
    assert {each.uid for each in found.charged_to(ROOT)} == {"db-0", "web-0", "old", "new"}


def test_a_reservation_of_a_chain_is_charged_to_the_lowest_quota() -> None:
    (reserved,) = [each for each in acme().holders if each.kind == "reserved"]
    assert reserved.quotas == {WEB}


def test_a_holder_has_the_files_of_its_pod_on_its_node() -> None:
    files = {each.uid: [part.path for part in each.files] for each in acme().holders}
    assert files["old"] == ["/mnt/huge/segment"]
    assert files["db-0"] == ["/mnt/huge/db"]
    elsewhere = world([], [pod("a/p", "2Mi")], [report("n2", [], [file("p", "2Mi")])])
    assert [each.files for each in elsewhere.holders] == [()]


@pytest.mark.parametrize(
    ("node", "phase", "deleted", "state"),
    [
        ("n1", "Running", False, "running"),
        ("", "Pending", False, "pending"),
        ("n1", "Pending", False, "starting"),
        ("n1", "Pending", True, "ending"),
        ("n1", "Running", True, "ending"),
        ("n1", "Succeeded", False, "ended, not yet reported"),
    ],
)
def test_the_state_of_a_pod_in_the_api(node: str, phase: str, deleted: bool, state: str) -> None:
    raw = pod("a/p", "2Mi", node=node, phase=phase, version=50)
    if deleted:
        raw["metadata"]["deletionTimestamp"] = "2026-11-26T11:00:00Z"
    (holder,) = world([], [raw], [report("n1")]).holders
    assert (holder.state, holder.node, holder.namespace) == (state, node, "a")


def test_a_pod_with_a_charge_runs_although_its_phase_is_pending() -> None:
    raw = pod("a/p", "2Mi", phase="Pending")
    for charged, state in (("0", "starting"), ("2Mi", "running")):
        (holder,) = world([], [raw], [report("n1", [entry("a/p", charged, demand="2Mi")])]).holders
        assert holder.state == state


def test_a_pod_without_huge_pages_is_no_holder() -> None:
    assert world([], [pod("a/p", "0")]).holders == ()


def test_without_the_right_to_see_pods_uses_the_reports() -> None:
    quotas = [quota("a/b", "64Mi", pods="32Mi")]
    found = world(quotas, None, [report("n1", [entry("a/p", "8Mi", demand="32Mi")])])
    assert holders(found, QuotaKey("a", "b")) == [("pod", "a/p", "32Mi")]


def test_an_ended_pod_holds_the_charge_that_its_node_reports() -> None:
    quotas = [quota("a/b", "64Mi")]
    ended = [pod("a/p", "32Mi", phase="Succeeded", version=5)]
    before = report("n1", [entry("a/p", "8Mi")], podsResourceVersion="4")
    left = report("n1", [entry("a/p", "8Mi", live=False)])
    nothing = report("n1", [])
    nothing_yet = report("n1", [], podsResourceVersion="4")
    key = QuotaKey("a", "b")
    assert holders(world(quotas, ended, [before]), key) == [("pod", "a/p", "32Mi")]
    assert holders(world(quotas, ended, [nothing_yet]), key) == [("pod", "a/p", "32Mi")]
    assert holders(world(quotas, ended, [left]), key) == [("retained", "a/p", "8Mi")]
    assert holders(world(quotas, ended, [nothing]), key) == []
    assert holders(world(quotas, ended, []), key) == []


def test_an_entry_of_another_node_is_a_holder_of_its_own() -> None:
    quotas = [quota("a/b", "64Mi")]
    own, other = report("n1", [entry("a/p", "8Mi")]), report("n2", [entry("c/p", "2Mi")])
    key = QuotaKey("a", "b")
    both = [("pod", "a/p", "32Mi"), ("retained", "a/p", "2Mi")]
    for reports in ([own, other], [other, own]):
        assert holders(world(quotas, [pod("a/p", "32Mi")], reports), key) == both
    line = "p a/p 2Mi:32Mi 2026-11-26T12:00:30Z request 0 n1"
    gone = world([quota("a/b", "64Mi", reservations=[line])], [], [other])
    assert holders(gone, key) == [("retained", "a/p", "2Mi")]


def test_an_entry_of_the_node_that_the_pods_line_names_is_the_pod() -> None:
    line = "p a/p 2Mi:32Mi 2026-11-26T12:00:30Z request 0 n1"
    own = report("n1", [entry("a/p", "8Mi", demand="32Mi")])
    found = world([quota("a/b", "64Mi", reservations=[line])], [], [own])
    assert holders(found, QuotaKey("a", "b")) == [("pod", "a/p", "32Mi")]


def test_a_report_that_has_seen_the_pods_end_releases_the_pod() -> None:
    for version, kept in (("4", 1), ("5", 0), ("6", 0)):
        raw = pod("a/p", "32Mi", phase="Succeeded", version=5)
        found = world([], [raw], [report("n1", podsResourceVersion=version)])
        assert len(found.holders) == kept


def test_an_heir_pays_for_pages_of_a_deleted_quota() -> None:
    left = report("n1", [entry("gone/p", "8Mi", live=False)])
    left["spec"] = {"heirs": [{"uid": "p", "quotas": ["a/b"]}]}
    key = QuotaKey("a", "b")
    assert holders(world([quota("a/b", "64Mi")], [], [left]), key) == [
        ("retained", "gone/p", "8Mi")
    ]


@pytest.mark.parametrize("expires", ["1970-01-01T00:00:00Z", "2026-11-26T12:00:30Z"])
def test_a_reservation_of_a_pod_that_exists_is_not_counted_yet(expires: str) -> None:
    """Marked reservations of running pods are many if the controller is down."""
    quotas = [quota("a/b", "64Mi", reservations=[f"p a/p 2Mi:32Mi {expires} request 0"])]
    for found in (
        world(quotas, [pod("a/p", "32Mi")]),
        world(quotas, None, [report("n1", [entry("a/p", "8Mi")])]),
    ):
        (holder,) = found.holders
        assert (holder.state, holder.until) == ("not counted yet", None)


def test_without_the_pods_no_reservation_counts_as_not_created() -> None:
    line = "p a/p 2Mi:32Mi 1970-01-01T00:00:00Z request 0"
    (holder,) = world([quota("a/b", "64Mi", reservations=[line])], None).holders
    assert holder.state == "not counted yet"


def test_an_identity_is_no_reservation() -> None:
    line = "p a/p 2Mi:32Mi 2026-11-26T12:00:30Z request 0 n1"
    found = world([quota("a/b", "64Mi", pods="32Mi", reservations=[line])], [pod("a/p", "32Mi")])
    assert holders(found, QuotaKey("a", "b")) == [("pod", "a/p", "32Mi")]


def quotas(*raws: dict[str, object]) -> list[QuotaObject]:
    return [QuotaObject.to_count(raw) for raw in raws]


def test_the_labels_of_namespaces_decide_which_quotas_are_attached() -> None:
    below = quota("acme-db/db", "64Mi", parent=TENANT)
    closed = forest_of(quotas(quota("acme/tenant", "64Mi"), below), NAMESPACES)
    assert closed.parent(closed[DB]) is None
    lets = {"childNamespaces": {"matchLabels": {"tenant": "acme"}}}
    root = quota("acme/tenant", "64Mi", spec=lets)
    opened = forest_of(quotas(root, below), NAMESPACES)
    assert opened.parent(opened[DB]) == opened[ROOT]


@pytest.mark.parametrize(
    ("reason", "attached"),
    [("ParentNotFound", False), ("ForeignParent", False), ("Cycle", False), ("OverLimit", True)],
)
def test_without_namespaces_a_quota_is_attached_unless_a_condition_says_otherwise(
    reason: str, attached: bool
) -> None:
    below = quota("acme-db/db", "64Mi", parent=TENANT, bad=reason)
    forest = forest_of(quotas(quota("acme/tenant", "64Mi"), below), None)
    assert (forest.parent(forest[DB]) is not None) == attached


def test_a_quota_with_an_unseen_parent_is_a_root_only_if_not_all_quotas_were_read() -> None:
    below = quotas(quota("acme-db/db", "64Mi", parent=TENANT))
    assert forest_of(below, None, whole=False)[DB].parent is None
    assert forest_of(below, None)[DB].parent == ROOT


def test_the_faults_of_a_quota_are_named_once_each() -> None:
    (good,) = quotas(quota("a/b", "64Mi"))
    assert words(good) == ()
    (bad,) = quotas(quota("a/b", "64Mi", bad="Cycle", counted=False))
    assert words(replace(bad, conditions=bad.conditions * 2)) == ("Cycle", "NotCounted")
    (invalid,) = quotas(quota("a/b", "many", bad="Cycle"))
    assert words(invalid) == ("Invalid",)
