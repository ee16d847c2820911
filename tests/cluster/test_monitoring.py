"""A real Prometheus scrapes the real programs, and each query of rules and dashboard has data."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.test_rules import ALERTS, alerts
from tests.kube import chart
from tests.kube.api import ApiError, Object
from tests.kube.cluster import Cluster
from tests.kube.quotas import create_quota, quota_object
from tests.preflight import _cgroup2, _pages, _root
from tests.prometheus import Prometheus, static
from tests.testnode.hugepages import reserved_pages
from tests.testnode.process import TestNode
from tests.waiting import eventually
from tests.workloads import command

MIB = 1 << 20
QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
#: A metric with its labels, in an expression.
SELECTOR = re.compile(r"\b(?:hugetlb_quota|process)_\w+(?:\{[^}]*\})?")


def pod(name: str, node: str, request: str) -> Object:
    resources = {"limits": {"hugepages-2Mi": request, "memory": "64Mi", "cpu": "100m"}}
    container = {"name": "c", "image": "none", "resources": resources}
    container["command"] = command("map_pages", "14Mi", "--hold")
    spec = {"restartPolicy": "Never", "nodeName": node, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def prometheus(cluster: Cluster, cluster_namespace: str, tmp_path: Path) -> Iterator[Prometheus]:
    """Prometheus scrapes admission, the controller, and the agent of a node with a pod.

    The pod fills its quota of 12Mi, and tries to map 14Mi.
    """
    for check in (_root, _cgroup2, _pages, _no_prometheus):
        if (missing := check()) is not None:
            (pytest.fail if os.environ.get("REQUIRE_LAYERS") == "1" else pytest.skip)(missing)
    plane, name = cluster.control_plane, f"node-{uuid.uuid4().hex[:8]}"
    quota = quota_object(cluster_namespace, "full", {"hard": {"hugepages-2Mi": "12Mi"}})
    create_quota(plane.api, quota)
    with (
        reserved_pages(2 * MIB, 8),
        TestNode(name, plane.admin_kubeconfig, capacity={"hugepages-2Mi": "64Mi"}) as node,
    ):
        agent = cluster.start_agent(name, cgroup_root=node.cgroup_parent)
        targets = [
            (_target(cluster.admission.metrics), {}),
            (_target(cluster.controller.metrics), {}),
            (_target(agent.metrics), {"node": name}),
        ]
        try:
            with Prometheus(tmp_path, static(targets), ALERTS) as running:
                plane.api.create("v1/pods", pod("fills", name, "12Mi"), namespace=cluster_namespace)
                with pytest.raises(ApiError, match="has no room"):
                    plane.api.create(
                        "v1/pods", pod("refused", name, "2Mi"), namespace=cluster_namespace
                    )
                yield running
        finally:
            plane.api.delete("v1/pods", "fills", namespace=cluster_namespace, grace_seconds=0)
            agent.stop()
            plane.api.delete("v1/nodes", name)


def _no_prometheus() -> str | None:
    if shutil.which("prometheus"):
        return None
    return "There is no Prometheus: install Debian's package prometheus."


def _target(address: str) -> str:
    return address.removeprefix("http://").removesuffix("/metrics")


def dashboard_queries() -> Iterator[str]:
    dashboard = json.loads((chart.CHART / "files" / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$__rate_interval", "1m")
            yield query.replace("$quota_namespace", ".*")


def test_every_query_of_rules_and_dashboard_has_data(
    prometheus: Prometheus, cluster_namespace: str
) -> None:
    of_quota = f'{{quota_namespace="{cluster_namespace}",quota="full"}}'
    # Prometheus has seen the pod, and has scraped at least twice. So rates have data too.
    prometheus.wait_for(f"hugetlb_quota_pods_bytes{of_quota} == {12 * MIB}")
    prometheus.wait_for('hugetlb_quota_admission_decisions_total{cause="rule"} > 0')
    prometheus.wait_for("rate(hugetlb_quota_admission_decisions_total[1m])")
    prometheus.wait_for("rate(hugetlb_quota_agent_passes_total[1m])")

    for query in dashboard_queries():
        prometheus.wait_for(query)
    selectors = {each for rule in alerts() for each in SELECTOR.findall(rule["expr"])}
    assert len(selectors) > 8
    for selector in selectors:
        if "cause!~" not in selector:
            prometheus.wait_for(selector)
    causes = prometheus.query("count by (cause) (hugetlb_quota_admission_decisions_total)")
    assert {each["metric"]["cause"] for each in causes} > {"none", "rule", "unreachable", "bug"}

    # The alerts for this quota and these programs are exactly the expected ones.
    eventually(lambda: "HugeTLBQuotaNearLimit" in prometheus.alerts())
    others = {"HugeTLBAdmissionRefuses", "HugeTLBCertificateEnds", "HugeTLBNotCounted"}
    # An alert is pending while a scrape is late, as on a busy machine.
    eventually(lambda: not others & prometheus.alerts())


def test_a_pod_that_maps_beyond_its_limit_has_an_event_and_is_counted(
    prometheus: Prometheus, cluster: Cluster, cluster_namespace: str
) -> None:
    prometheus.wait_for('hugetlb_quota_node_pages_refused_total{page_size="hugepages-2Mi"} > 0')
    api = cluster.control_plane.api

    def refusals() -> list[Object]:
        events = api.list("events.k8s.io/v1/events", namespace=cluster_namespace)
        return [each for each in events if each["reason"] == "HugePagesRefused"]

    eventually(lambda: bool(refusals()))
    (event,) = refusals()
    assert (event["regarding"]["kind"], event["regarding"]["name"]) == ("Pod", "fills")
    assert "tried once to reserve more than its 12Mi of hugepages-2Mi" in event["note"]


def test_the_docs_list_every_metric_that_the_programs_serve(prometheus: Prometheus) -> None:
    listed = set(re.findall(r"hugetlb_quota_\w+", DOCS.read_text()))
    for name in listed:
        if not name.endswith(("_bucket", "_count")):
            prometheus.wait_for(name)
    served = {
        each["metric"]["__name__"]
        for each in prometheus.query('count by (__name__) ({__name__=~"hugetlb_quota_.+"})')
    }
    for name in served:
        stem = re.sub("_(bucket|count|sum)$", "", name)
        assert name in listed or {f"{stem}_bucket", f"{stem}_count"} & listed, name
