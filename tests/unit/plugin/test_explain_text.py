"""The sentences and the data of ``explain``, for each kind of object and of verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hugetlb_quota.plugin import explain
from hugetlb_quota.plugin.explain_text import document, picture
from hugetlb_quota.plugin.manifest import candidate
from hugetlb_quota.plugin.table import Screen
from tests.unit.plugin.test_explain import deployment, explained
from tests.unit.plugin.worlds import TENANT, pod_spec, quota, world

Json = dict[str, Any]


def heading(found: explain.Explanation) -> str:
    return picture(found, Screen()).splitlines()[0]


def workload(kind: str, **spec: Any) -> Json:
    template = {"spec": pod_spec("16Mi")}
    return {"kind": kind, "metadata": {"name": "x"}, "spec": {"template": template, **spec}}


@pytest.mark.parametrize(
    ("raw", "start"),
    [
        ({"kind": "Pod", "metadata": {"name": "x"}, "spec": pod_spec("16Mi")}, "asks for 16Mi"),
        (workload("DaemonSet"), "asks on each of its nodes for 16Mi"),
        (workload("Job"), "asks for its pod for 16Mi"),
        (workload("StatefulSet", replicas=2), "asks for each of its 2 pods for 16Mi"),
    ],
)
def test_the_heading_says_how_many_pods_there_are(raw: Json, start: str) -> None:
    kind = raw["kind"]
    assert heading(explained(raw)).startswith(f"{kind} x in namespace acme-web {start}")


def test_a_pod_of_the_cluster_is_admitted_already() -> None:
    stored = candidate({"metadata": {"name": "x"}, "spec": pod_spec("16Mi")}, "Pod")
    found = replace(explained(deployment("16Mi")), candidate=stored)
    assert heading(found).endswith("It is admitted; whether another pod like it would be admitted:")


def test_without_a_dry_run_the_verdict_says_why() -> None:
    found = explain.with_dry_run(explained(deployment("16Mi")), None, "you may not create pods")
    text = picture(found, Screen())
    assert (
        "It would be admitted, by the current quotas (no dry run: you may not create pods)." in text
    )


def test_a_reason_of_the_dry_run_is_printed_once() -> None:
    new = world([quota("a/new", "64Mi", counted=False)])
    made = candidate(deployment("16Mi"))
    found = explain.evaluate(new, made, "a")
    (reason,) = found.broken
    text = picture(explain.with_dry_run(found, False, f"Refused: {reason}"), Screen())
    assert text.count(reason) == 1
    assert "There is room" not in text


def test_a_full_quota_advises_no_smaller_demand() -> None:
    full = world([quota("a/b", "64Mi", pods="64Mi")])
    found = explain.evaluate(full, candidate(deployment("2Mi")), "a")
    text = picture(found, Screen())
    assert "To make it fit, make room in each quota that refuses:" in text
    assert text.endswith("- a/b: raise its limit of hugepages-2Mi to 66Mi, or free 2Mi")


def test_a_lower_limit_above_is_raised_first() -> None:
    text = picture(explained(deployment("200Mi")), Screen())
    assert "- acme-web/web: raise its limit of hugepages-2Mi to 312Mi (and first that of" in text


def test_the_data_of_a_pod_that_does_not_fit() -> None:
    data = document(explained(deployment("100Mi")))
    assert (data["origin"], data["replicas"]) == ("Deployment api", 3)
    assert (data["refused"], data["decidedBy"], data["fitting"]) == (True, "quotas", 0)
    assert data["asks"] == {"hugepages-2Mi": "100Mi"}
    assert data["quotas"][0] == {
        "quota": "acme-web/web",
        "pageSize": "hugepages-2Mi",
        "hard": "192Mi",
        "used": "112Mi",
        "short": "20Mi",
    }
    assert data["fitsAt"] == {"hugepages-2Mi": "48Mi"}
    web, tenant = data["remedies"]
    assert (web["raiseTo"], web["free"], web["raiseFirst"]) == ("212Mi", "20Mi", [])
    assert web["holders"][0] == {"kind": "pod", "pod": "acme-web/web-0"}
    assert tenant["quota"] == "acme/tenant"


def test_the_data_names_the_dry_run_and_hidden_quotas() -> None:
    seen = world([quota("a/b", "64Mi", parent=TENANT)], namespaces=None, whole=False)
    found = explain.evaluate(seen, candidate(deployment("16Mi")), "a")
    data = document(explain.with_dry_run(found, True, ""))
    assert (data["decidedBy"], data["refused"]) == ("dry run", False)
    assert data["hidden"] == ["acme/tenant"]
