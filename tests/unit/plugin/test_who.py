"""``who`` lists the holders that fill a quota."""

from __future__ import annotations

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.plugin import who
from hugetlb_quota.plugin.table import Screen
from hugetlb_quota.plugin.world import World
from tests.unit.plugin.worlds import NOW, acme, quota, world

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


def test_the_holders_explain_all_charges() -> None:
    found = acme()
    for quota_ in found.quotas.values():
        assert not who.unexplained(quota_, who.holders(found, quota_))


def test_the_text_has_the_unexplained_amount() -> None:
    found = world([quota("a/b", "64Mi", pods="32Mi")])
    quota_ = found.quotas[QuotaKey("a", "b")]
    assert "32Mi of hugepages-2Mi is counted but not explained" in who.picture(
        quota_, who.holders(found, quota_), NOW, Screen()
    )


def test_a_reservation_of_a_request_that_is_over_is_about_to_end() -> None:
    line = "p a/p 2Mi:32Mi 1970-01-01T00:00:00Z request 0"
    found = world([quota("a/b", "64Mi", reservations=[line])], [])
    quota_ = found.quotas[QuotaKey("a", "b")]
    text = who.picture(quota_, who.holders(found, quota_), NOW, Screen())
    assert text.endswith(" not created, about to end")
