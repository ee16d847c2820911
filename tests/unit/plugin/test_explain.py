"""``explain`` says whether a pod fits, and which changes would make the pod fit."""

from __future__ import annotations

from typing import Any

from hugetlb_quota.plugin import explain
from hugetlb_quota.plugin.explain_text import picture
from hugetlb_quota.plugin.manifest import candidates
from hugetlb_quota.plugin.table import Screen
from tests.unit.plugin.worlds import TENANT, acme, pod_spec, quota, world

Json = dict[str, Any]


def deployment(amount: str, replicas: int = 3, namespace: str = "acme-web") -> Json:
    return {
        "kind": "Deployment",
        "metadata": {"name": "api", "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod_spec(amount)},
        },
    }


def explained(raw: Json, namespace: str = "acme-web") -> explain.Explanation:
    return explain.evaluate(acme(), candidates(iter([raw]))[0], namespace)


def test_a_pod_that_does_not_fit() -> None:
    assert (
        picture(explained(deployment("100Mi")), Screen())
        == """\
Deployment api in namespace acme-web asks for each of its 3 pods for 100Mi of hugepages-2Mi.

QUOTA         SIZE   USED   HARD  ROOM  THIS POD
acme-web/web  2Mi   112Mi  192Mi  80Mi  20Mi is missing
acme/tenant   2Mi   176Mi  224Mi  48Mi  52Mi is missing

It would be refused, by the current quotas. There is room for none.

To make it fit, ask for 48Mi of hugepages-2Mi or less, or make room in each quota that refuses:
- acme-web/web: raise its limit of hugepages-2Mi to 212Mi, or free 20Mi:\
 remove /mnt/huge/segment on n1 (32Mi by acme-web/old), or stop acme-web/web-0 (64Mi)
- acme/tenant: raise its limit of hugepages-2Mi to 276Mi, or free 52Mi:\
 remove /mnt/huge/segment on n1 (32Mi by acme-web/old), or stop one or more of:\
 acme-db/db-0 (64Mi), acme-web/web-0 (64Mi)"""
    )


def test_fewer_pods_fit_than_the_workload_wants() -> None:
    found = explained(deployment("16Mi"))
    assert not found.refused
    assert found.fitting == 3
    text = picture(explained(deployment("16Mi", replicas=9)), Screen())
    assert "There is room for 3 such pods, not for 9." in text


def test_a_limit_above_an_ancestors_limit_requires_that_both_are_raised() -> None:
    (web, tenant) = explained(deployment("200Mi")).remedies
    assert web.above == ("acme/tenant",)
    assert tenant.above == ()


def test_a_pod_that_no_quota_governs() -> None:
    found = explained(deployment("16Mi"), "elsewhere")
    assert not found.refused
    assert "No quota governs it" in picture(found, Screen())


def test_a_pod_without_huge_pages() -> None:
    text = picture(explained({"kind": "Pod", "spec": {"containers": []}}), Screen())
    assert text == "Pod pod in namespace acme-web asks for no huge pages, so no quota limits it."


def test_the_dry_run_has_the_last_word() -> None:
    fits, short = explained(deployment("16Mi")), explained(deployment("100Mi"))
    assert explain.with_dry_run(fits, False, "no Pod Security").refused
    assert not explain.with_dry_run(short, True, "").refused
    text = picture(explain.with_dry_run(fits, False, "no Pod Security"), Screen())
    assert "refused, by a dry run of the API server" in text
    assert "\nno Pod Security" in text


def test_says_why_a_quota_admits_no_pod() -> None:
    lost = quota("a/lost", "64Mi", parent={"namespace": "x", "name": "y"})
    found = explain.evaluate(
        world([lost, quota("a/new", "64Mi", counted=False)]),
        candidates(iter([deployment("16Mi")]))[0],
        "a",
    )
    assert found.refused
    assert "x/y, which does not exist" in found.broken[0]
    assert "a/new is not counted yet" in found.broken[1]


def test_an_unseen_parent_is_no_fault() -> None:
    seen = world([quota("a/b", "64Mi", parent=TENANT)], namespaces=None, whole=False)
    found = explain.evaluate(seen, candidates(iter([deployment("16Mi")]))[0], "a")
    assert not found.refused
    assert "you may not see acme/tenant and the quotas above" in picture(found, Screen())


def test_a_negative_demand_is_refused() -> None:
    assert explained(deployment("-2Mi")).refused
