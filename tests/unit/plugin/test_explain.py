"""What is told of a pod that does or does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from hugetlb_quota.plugin import explain
from hugetlb_quota.plugin.manifest import NoPods, candidate, candidates
from hugetlb_quota.plugin.table import Screen
from tests.unit.plugin.worlds import TENANT, acme, quota, world

Json = dict[str, Any]


def asking(amount: str, field: str = "limits") -> Json:
    return {"containers": [{"name": "c", "resources": {field: {"hugepages-2Mi": amount}}}]}


def deployment(amount: str, replicas: int = 3, namespace: str = "acme-web") -> Json:
    return {
        "kind": "Deployment",
        "metadata": {"name": "api", "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": asking(amount)},
        },
    }


def explained(raw: Json, namespace: str = "acme-web") -> explain.Explanation:
    return explain.evaluate(acme(), candidates(iter([raw]))[0], namespace)


def test_a_pod_that_does_not_fit() -> None:
    assert (
        explain.picture(explained(deployment("100Mi")), Screen())
        == """\
Deployment api in namespace acme-web asks for each of its 3 pods for 100Mi of hugepages-2Mi.

QUOTA         SIZE   USED   HARD  ROOM  THIS POD
acme-web/web  2Mi   112Mi  192Mi  80Mi  20Mi is missing
acme/tenant   2Mi   176Mi  224Mi  48Mi  52Mi is missing

It would be refused, by the quotas as they stand. There is room for none.

To make it fit, ask for 48Mi of hugepages-2Mi or less, or make room in each quota that refuses:
- acme-web/web: raise its limit of hugepages-2Mi to 212Mi, or free 20Mi:\
 remove /mnt/huge/segment on n1 (32Mi by acme-web/old), or stop acme-web/web-0 (64Mi)
- acme/tenant: raise its limit of hugepages-2Mi to 276Mi, or free 52Mi:\
 remove /mnt/huge/segment on n1 (32Mi by acme-web/old), or stop acme-db/db-0 (64Mi),\
 acme-web/web-0 (64Mi)"""
    )


def test_a_pod_that_fits_but_not_so_often() -> None:
    found = explained(deployment("16Mi"))
    assert not found.refused
    assert found.fitting == 3
    text = explain.picture(explained(deployment("16Mi", replicas=9)), Screen())
    assert "There is room for 3 such pods, not for 9." in text


def test_a_limit_above_that_of_an_ancestor_needs_both_raised() -> None:
    (web, tenant) = explained(deployment("200Mi")).remedies
    assert web.above == ("acme/tenant",)
    assert tenant.above == ()


def test_a_pod_that_no_quota_governs() -> None:
    found = explained(deployment("16Mi"), "elsewhere")
    assert not found.refused
    assert "No quota governs it" in explain.picture(found, Screen())


def test_a_pod_without_huge_pages() -> None:
    text = explain.picture(explained({"kind": "Pod", "spec": {"containers": []}}), Screen())
    assert text == "Pod pod in namespace acme-web asks for no huge pages, so no quota is asked."


def test_the_dry_run_has_the_last_word() -> None:
    fits, short = explained(deployment("16Mi")), explained(deployment("100Mi"))
    assert explain.tried(fits, False, "no Pod Security").refused
    assert not explain.tried(short, True, "").refused
    text = explain.picture(explain.tried(fits, False, "no Pod Security"), Screen())
    assert "refused, by a dry run of the API server" in text
    assert "\nno Pod Security" in text


def test_what_keeps_a_quota_from_admitting_anything() -> None:
    lost = quota("a/lost", "64Mi", parent={"namespace": "x", "name": "y"})
    found = explain.evaluate(
        world([lost, quota("a/new", "64Mi", counted=False)]),
        candidates(iter([deployment("16Mi")]))[0],
        "a",
    )
    assert found.refused
    assert "x/y, which does not exist" in found.broken[0]
    assert "a/new is not counted yet" in found.broken[1]


def test_what_may_not_be_seen_is_no_fault() -> None:
    seen = world([quota("a/b", "64Mi", parent=TENANT)], namespaces=None, whole=False)
    found = explain.evaluate(seen, candidates(iter([deployment("16Mi")]))[0], "a")
    assert not found.refused
    assert "of acme/tenant and what is above, nothing may be seen" in explain.picture(
        found, Screen()
    )


def test_a_demand_that_is_none_is_refused() -> None:
    assert explained(deployment("-2Mi")).refused


@pytest.mark.parametrize("field", ["limits", "requests"])
def test_a_limit_alone_is_the_request(field: str) -> None:
    (found,) = candidates(iter([{"kind": "Pod", "spec": asking("4Mi", field)}]))
    requests = found.spec["containers"][0]["resources"]["requests"]
    assert requests == {"hugepages-2Mi": "4Mi"}


@pytest.mark.parametrize(
    ("kind", "spec", "replicas"),
    [
        ("StatefulSet", {"replicas": 4, "template": {"spec": asking("4Mi")}}, 4),
        ("ReplicaSet", {"template": {"spec": asking("4Mi")}}, 1),
        ("DaemonSet", {"template": {"spec": asking("4Mi")}}, None),
        ("Job", {"parallelism": 2, "template": {"spec": asking("4Mi")}}, 2),
        (
            "CronJob",
            {"jobTemplate": {"spec": {"parallelism": 3, "template": {"spec": asking("4Mi")}}}},
            3,
        ),
    ],
)
def test_workloads_make_pods(kind: str, spec: Json, replicas: int | None) -> None:
    (found,) = candidates(iter([{"kind": kind, "metadata": {"name": "x"}, "spec": spec}]))
    assert (found.origin, found.replicas) == (f"{kind} x", replicas)
    assert explain.evaluate(acme(), found, "acme-web").asks.to_resources() == {
        "hugepages-2Mi": "4Mi"
    }


def test_a_list_and_what_makes_no_pods() -> None:
    listed = {
        "kind": "List",
        "items": [{"kind": "Service"}, {"kind": "Pod", "spec": asking("2Mi")}],
    }
    assert [each.origin for each in candidates(iter([listed, None]))] == ["Pod pod"]
    with pytest.raises(NoPods, match="no object that makes pods"):
        candidates(iter([{"kind": "Service"}, None, "text"]))


def test_a_stored_pod_is_made_anew_without_its_node() -> None:
    raw = {
        "metadata": {"name": "p", "namespace": "a", "uid": "u", "labels": {"x": "y"}},
        "spec": {**asking("2Mi"), "nodeName": "n1"},
    }
    found = candidate(raw, "Pod")
    assert found.stored
    assert found.pod["metadata"] == {"generateName": "p-", "labels": {"x": "y"}}
    assert "nodeName" not in found.spec
