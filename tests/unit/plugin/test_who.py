"""Who fills a quota, who uses most, and which files are left."""

from __future__ import annotations

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.plugin import files, top, who
from hugetlb_quota.plugin.table import Screen
from hugetlb_quota.plugin.world import World
from tests.unit.plugin.worlds import NOW, acme, entry, file, pod, quota, report, world

TENANT = QuotaKey("acme", "tenant")


def seen(found: World, key: QuotaKey = TENANT) -> list[tuple[str, str, str]]:
    return [
        (each.kind, each.pod, ",".join(each.holds.to_resources().values()))
        for each in who.holders(found, found.quotas[key])
    ]


def test_who_fills_a_tenant() -> None:
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


def test_who_fills_a_quota_below() -> None:
    assert seen(acme(), QuotaKey("acme-db", "db")) == [("pod", "acme-db/db-0", "64Mi")]


def test_all_that_is_counted_is_explained() -> None:
    found = acme()
    for quota_ in found.quotas.values():
        assert not who.unexplained(quota_, who.holders(found, quota_))


def test_what_nobody_explains_is_told() -> None:
    found = world([quota("a/b", "64Mi", pods="32Mi")])
    quota_ = found.quotas[QuotaKey("a", "b")]
    assert "32Mi of hugepages-2Mi is counted and not explained" in who.picture(
        quota_, who.holders(found, quota_), NOW, Screen()
    )


def test_without_the_right_to_see_pods_the_nodes_tell_of_them() -> None:
    quotas = [quota("a/b", "64Mi", pods="32Mi")]
    found = world(quotas, None, [report("n1", [entry("a/p", "8Mi", asks="32Mi")])])
    assert seen(found, QuotaKey("a", "b")) == [("pod", "a/p", "32Mi")]


def test_a_pod_that_ended_is_what_its_node_says() -> None:
    quotas = [quota("a/b", "64Mi")]
    ended = [pod("a/p", "32Mi", phase="Succeeded", version=5)]
    before = report("n1", [entry("a/p", "8Mi")], podsResourceVersion="4")
    left = report("n1", [entry("a/p", "8Mi", live=False)])
    nothing = report("n1", [])
    nothing_yet = report("n1", [], podsResourceVersion="4")
    key = QuotaKey("a", "b")
    assert seen(world(quotas, ended, [before]), key) == [("pod", "a/p", "32Mi")]
    assert seen(world(quotas, ended, [nothing_yet]), key) == [("pod", "a/p", "32Mi")]
    assert seen(world(quotas, ended, [left]), key) == [("retained", "a/p", "8Mi")]
    assert seen(world(quotas, ended, [nothing]), key) == []
    assert seen(world(quotas, ended, []), key) == []


def test_what_another_node_tells_of_a_pod_is_beside_it_and_takes_nothing() -> None:
    quotas = [quota("a/b", "64Mi")]
    own, other = report("n1", [entry("a/p", "8Mi")]), report("n2", [entry("c/p", "2Mi")])
    key = QuotaKey("a", "b")
    both = [("pod", "a/p", "32Mi"), ("retained", "a/p", "2Mi")]
    for reports in ([own, other], [other, own]):
        assert seen(world(quotas, [pod("a/p", "32Mi")], reports), key) == both
    line = "p a/p 2Mi:32Mi 2026-11-26T12:00:30Z request 0 n1"
    gone = world([quota("a/b", "64Mi", reservations=[line])], [], [other])
    assert seen(gone, key) == [("retained", "a/p", "2Mi")]


def test_an_heir_pays_for_what_a_deleted_quota_left() -> None:
    left = report("n1", [entry("gone/p", "8Mi", live=False)])
    left["spec"] = {"heirs": [{"uid": "p", "quotas": ["a/b"]}]}
    key = QuotaKey("a", "b")
    assert seen(world([quota("a/b", "64Mi")], [], [left]), key) == [("retained", "gone/p", "8Mi")]


def test_an_identity_is_no_reservation() -> None:
    line = "p a/p 2Mi:32Mi 2026-11-26T12:00:30Z request 0 n1"
    found = world([quota("a/b", "64Mi", pods="32Mi", reservations=[line])], [pod("a/p", "32Mi")])
    assert seen(found, QuotaKey("a", "b")) == [("pod", "a/p", "32Mi")]


def test_top_pods() -> None:
    assert (
        top.pods_table(top.pods(acme()), Screen())
        == """\
POD             NODE  SIZE  ASKED  CHARGED  QUOTA
acme-db/db-0    n1    2Mi    64Mi     32Mi  acme-db/db
acme-web/web-0  -     2Mi    64Mi        0  acme-web/web"""
    )


def test_top_nodes() -> None:
    reports = acme().reports
    assert reports is not None
    assert (
        top.nodes_table(reports, NOW, Screen())
        == """\
NODE  SIZE  TOTAL   FREE  PODS  RETAINED  SYSTEM
n1    2Mi     1Gi  512Mi  32Mi      32Mi       0"""
    )


def test_files_that_were_left() -> None:
    assert (
        files.files_table(files.held_files(acme()), NOW, Screen())
        == """\
NODE  SIZE  CHARGED  AGE  POD           QUOTA         PATH
n1    2Mi      32Mi   3h  acme-web/old  acme-web/web  /mnt/huge/segment"""
    )


def test_all_files_and_those_of_a_namespace() -> None:
    assert [each.pod for each in files.held_files(acme(), every=True)] == [
        "acme-db/db-0",
        "acme-web/old",
    ]
    assert files.held_files(acme(), "acme-db") == []


def test_a_file_of_nobody_known() -> None:
    found = world([], [], [report("n1", [], [file("who", "2Mi"), file("", "2Mi", "own")])])
    assert [each.pod for each in files.held_files(found)] == ["(pod who)"]
    assert {each.pod for each in files.held_files(found, every=True)} == {"(pod who)", "(system)"}


def test_a_report_of_another_release_is_read_as_far_as_it_goes() -> None:
    strange = report("n1", [entry("a/p", "8Mi") | {"newer": 1}, {"uid": 7}])
    strange["status"]["pods"].append("no pod")
    strange["status"]["pools"].append({"pageSize": "huge"})
    found = world([], [], [strange, {"metadata": {"name": "n2"}, "status": "none"}]).reports
    assert found is not None
    assert [len(each.pods) for each in found] == [1, 0]
    assert found[0].unreadable == 3
