"""``who`` lists the holders that fill a quota."""

from __future__ import annotations

import pytest

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.plugin import who
from hugetlb_quota.plugin.table import Screen
from hugetlb_quota.plugin.world import World
from tests.unit.plugin.worlds import NOW, acme, entry, pod, quota, report, world

TENANT = QuotaKey("acme", "tenant")


def holders(found: World, key: QuotaKey) -> list[tuple[str, str, str]]:
    """Kind, pod and amount of each holder that fills the quota ``key``."""
    return [
        (each.kind, each.pod, ",".join(each.holds.to_resources().values()))
        for each in who.holders(found, found.quotas[key])
    ]


def test_the_holders_of_a_tenant() -> None:
    found = acme()
    quota_ = found.quotas[TENANT]
    assert (
        who.picture(quota_, who.holders(found, quota_), NOW, Screen())
        == """\
acme/tenant 2Mi: 176Mi of 224Mi used (128Mi by pods, 32Mi retained, 16Mi reserved)
acme/tenant 1Gi: 0 of 4Gi used (0 by pods, 0 retained, 0 reserved)

KIND      POD             NODE  SIZE  HOLDS  QUOTA         DETAIL
pod       acme-db/db-0    n1    2Mi    64Mi  acme-db/db    running, charged 32Mi
pod       acme-web/web-0  -     2Mi    64Mi  acme-web/web  pending, charged 0
retained  acme-web/old    n1    2Mi    32Mi  acme-web/web  gone for 2h, in /mnt/huge/segment
reserved  acme-web/new    -     2Mi    16Mi  acme-web/web  being created, for 30s more"""
    )


def test_the_holders_of_a_quota_below() -> None:
    assert holders(acme(), QuotaKey("acme-db", "db")) == [("pod", "acme-db/db-0", "64Mi")]


def test_explains_everything_that_is_counted() -> None:
    found = acme()
    for quota_ in found.quotas.values():
        assert not who.unexplained(quota_, who.holders(found, quota_))


def test_says_how_much_is_unexplained() -> None:
    found = world([quota("a/b", "64Mi", pods="32Mi")])
    quota_ = found.quotas[QuotaKey("a", "b")]
    assert "32Mi of hugepages-2Mi is counted but not explained" in who.picture(
        quota_, who.holders(found, quota_), NOW, Screen()
    )


def test_without_the_right_to_see_pods_uses_the_reports() -> None:
    quotas = [quota("a/b", "64Mi", pods="32Mi")]
    found = world(quotas, None, [report("n1", [entry("a/p", "8Mi", asks="32Mi")])])
    assert holders(found, QuotaKey("a", "b")) == [("pod", "a/p", "32Mi")]


def test_a_pod_that_ended_holds_what_its_node_reports() -> None:
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


def test_an_heir_pays_for_pages_of_a_deleted_quota() -> None:
    left = report("n1", [entry("gone/p", "8Mi", live=False)])
    left["spec"] = {"heirs": [{"uid": "p", "quotas": ["a/b"]}]}
    key = QuotaKey("a", "b")
    assert holders(world([quota("a/b", "64Mi")], [], [left]), key) == [
        ("retained", "gone/p", "8Mi")
    ]


def test_a_reservation_whose_request_is_over_is_about_to_end() -> None:
    line = "p a/p 2Mi:32Mi 1970-01-01T00:00:00Z request 0"
    found = world([quota("a/b", "64Mi", reservations=[line])], [])
    quota_ = found.quotas[QuotaKey("a", "b")]
    told = who.picture(quota_, who.holders(found, quota_), NOW, Screen())
    assert told.endswith(" not created, about to end")


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


def test_nobody_says_that_a_pod_was_not_created_without_a_look_at_the_pods() -> None:
    line = "p a/p 2Mi:32Mi 1970-01-01T00:00:00Z request 0"
    (holder,) = world([quota("a/b", "64Mi", reservations=[line])], None).holders
    assert holder.state == "not counted yet"


def test_an_identity_is_no_reservation() -> None:
    line = "p a/p 2Mi:32Mi 2026-11-26T12:00:30Z request 0 n1"
    found = world([quota("a/b", "64Mi", pods="32Mi", reservations=[line])], [pod("a/p", "32Mi")])
    assert holders(found, QuotaKey("a", "b")) == [("pod", "a/p", "32Mi")]
