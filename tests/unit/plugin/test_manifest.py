"""The pods that manifests make."""

from __future__ import annotations

from typing import Any

import pytest

from hugetlb_quota.plugin.manifest import NoPods, candidate, candidates
from tests.unit.plugin.worlds import pod_spec

Json = dict[str, Any]


@pytest.mark.parametrize("field", ["limits", "requests"])
def test_a_limit_without_a_request_is_the_request(field: str) -> None:
    (found,) = candidates(iter([{"kind": "Pod", "spec": pod_spec("4Mi", field)}]))
    requests = found.spec["containers"][0]["resources"]["requests"]
    assert requests == {"hugepages-2Mi": "4Mi"}


@pytest.mark.parametrize(
    ("kind", "spec", "replicas"),
    [
        ("StatefulSet", {"replicas": 4, "template": {"spec": pod_spec("4Mi")}}, 4),
        ("ReplicaSet", {"template": {"spec": pod_spec("4Mi")}}, 1),
        ("DaemonSet", {"template": {"spec": pod_spec("4Mi")}}, None),
        ("Job", {"parallelism": 2, "template": {"spec": pod_spec("4Mi")}}, 2),
        (
            "CronJob",
            {"jobTemplate": {"spec": {"parallelism": 3, "template": {"spec": pod_spec("4Mi")}}}},
            3,
        ),
    ],
)
def test_workloads_make_pods(kind: str, spec: Json, replicas: int | None) -> None:
    (found,) = candidates(iter([{"kind": kind, "metadata": {"name": "x"}, "spec": spec}]))
    assert (found.origin, found.replicas) == (f"{kind} x", replicas)
    limits = found.spec["containers"][0]["resources"]["limits"]
    assert limits == {"hugepages-2Mi": "4Mi"}


def test_a_list_makes_the_pods_of_its_items() -> None:
    items = [{"kind": "Service"}, {"kind": "Pod", "spec": pod_spec("2Mi")}]
    found = candidates(iter([{"kind": "List", "items": items}, None]))
    assert [each.origin for each in found] == ["Pod pod"]


def test_a_manifest_without_pods_is_refused() -> None:
    with pytest.raises(NoPods, match="no object that makes pods"):
        candidates(iter([{"kind": "Service"}, None, "text"]))


def test_the_copy_of_a_stored_pod_has_no_node() -> None:
    raw = {
        "metadata": {"name": "p", "namespace": "a", "uid": "u", "labels": {"x": "y"}},
        "spec": {**pod_spec("2Mi"), "nodeName": "n1"},
    }
    found = candidate(raw, "Pod")
    assert found.stored
    assert found.pod["metadata"] == {"generateName": "p-", "labels": {"x": "y"}}
    assert "nodeName" not in found.spec
