"""Scenes of the people who run the operator: plugin, Prometheus, GitOps and certificates."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e import operator
from tests.e2e.host import Host
from tests.e2e.kubectl import CommandFailed, apply, items, kubectl, run, wait
from tests.e2e.pods import container, pod, quota, wait_counted, wait_log, wait_used
from tests.e2e.test_retained import leave
from tests.kube.process import free_ports
from tests.prometheus import Prometheus, static

Seen = Callable[[str], None]
PROGRAMS = {"admission", "controller", "agent"}
CA = f"{operator.RELEASE}-admission-ca"
OVERLAP = 20
"""The overlap of two trusted CAs in this rotation, in seconds. The default is an hour."""


def plugin(*words: str, stdin: str | None = None) -> str:
    """Run the `kubectl hugetlb` that is installed beside this Python; return its output."""
    return run(str(Path(sys.executable).with_name("kubectl-hugetlb")), *words, stdin=stdin)


def probe_pod(namespace: str, pages: str) -> str:
    """A pod of these pages, as JSON; no test creates the pod."""
    return json.dumps(pod(namespace, "probe", container("true", pages=pages)))


def dry_run(namespace: str, pages: str) -> str:
    """Create a pod as a dry run; return the refusal, or "" if the pod would be admitted."""
    try:
        kubectl("create", "--dry-run=server", "-f", "-", stdin=probe_pod(namespace, pages))
    except CommandFailed as error:
        return error.output
    return ""


def test_the_plugin_shows_a_tree_its_pods_and_its_files(
    installed: Host, namespace: str, folder: str, seen: Seen
) -> None:
    parent = {"namespace": namespace, "name": "tenant"}
    apply(
        quota(namespace, "tenant", "64Mi", podSelector={"matchLabels": {"team": "none"}}),
        quota(namespace, "q", "32Mi", parentRef=parent),
    )
    wait_counted(namespace, "q")
    leave(namespace, folder)
    apply(pod(namespace, "db", container("map", "8", pages="8Mi")))
    wait_log(namespace, "db", "touched 8 MiB")
    wait_used(namespace, "tenant", "16Mi")

    tree = plugin("tree", f"{namespace}/tenant")
    assert f"└─ {namespace}/q" in tree
    assert "16Mi" in tree
    who = plugin("who", f"{namespace}/tenant")
    assert f"{namespace}/db" in who
    assert f"{namespace}/leaver" in who
    assert f"{folder}/leaver" in plugin("files")
    assert f"{namespace}/db" in plugin("top", "pods")
    assert installed.node in plugin("top", "nodes")
    with pytest.raises(CommandFailed, match="would be refused"):
        explain(namespace, "32Mi")
    assert "would be admitted" in explain(namespace, "8Mi")
    checked = plugin("check")
    assert "ERROR" not in checked, checked
    seen(next(line for line in tree.splitlines() if f"{namespace}/q" in line))
    seen(f"check: {checked.splitlines()[-1]}")


def explain(namespace: str, pages: str) -> str:
    """Run `kubectl hugetlb explain` for a pod of these pages."""
    return plugin("explain", "-f", "-", stdin=probe_pod(namespace, pages))


@contextmanager
def proxied() -> Iterator[str]:
    """Run `kubectl proxy`; yield its host and port."""
    (port,) = free_ports(1)
    proxy = subprocess.Popen(
        ["kubectl", "proxy", f"--port={port}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert proxy.stdout is not None
        assert "Starting to serve" in proxy.stdout.readline()
        yield f"127.0.0.1:{port}"
    finally:
        proxy.terminate()
        proxy.wait(30)


def through(proxy: str) -> list[tuple[str, dict[str, str]]]:
    """The targets that the chart's PodMonitor selects, each behind the proxy.

    Debian builds Prometheus without the discovery of pods.
    """
    targets = []
    for program in items("pods", operator.NAMESPACE, "-l", "app.kubernetes.io/name=hugetlb-quota"):
        (port,) = [
            each["containerPort"]
            for container in program["spec"]["containers"]
            for each in container["ports"]
            if each["name"] == "health"
        ]
        name, labels = program["metadata"]["name"], program["metadata"]["labels"]
        targets.append(
            (
                proxy,
                {
                    "__metrics_path__": f"/api/v1/namespaces/{operator.NAMESPACE}"
                    f"/pods/{name}:{port}/proxy/metrics",
                    "component": labels["app.kubernetes.io/component"],
                    "instance": name,
                },
            )
        )
    return targets


def test_prometheus_scrapes_all_programs(
    installed: Host, namespace: str, tmp_path: Path, seen: Seen
) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("there is no Prometheus: install Debian's package prometheus")
    apply(quota(namespace, "q", "16Mi"))
    wait_counted(namespace, "q")
    assert "has room for" in dry_run(namespace, "32Mi")
    rules = operator.CHART / "files" / "alerts.yaml"
    with proxied() as proxy, Prometheus(tmp_path, static(through(proxy)), rules) as prometheus:

        def up() -> set[str]:
            return {row["metric"]["component"] for row in prometheus.query("up == 1")}

        wait("Prometheus to scrape admission, controller and agent", lambda: up() == PROGRAMS)
        of_quota = f'{{quota_namespace="{namespace}",quota="q"}}'
        (hard,) = prometheus.wait_for(f"hugetlb_quota_hard_bytes{of_quota}", 120)
        assert hard["value"][1] == str(16 << 20)
        (refused,) = prometheus.wait_for(
            'sum(hugetlb_quota_admission_decisions_total{cause="rule"}) > 0', 120
        )
        (pool,) = prometheus.wait_for("sum(hugetlb_quota_node_pool_size_bytes)", 120)
    seen(
        f"up: {', '.join(sorted(PROGRAMS))}; refused {refused['value'][1]}, pools of "
        f"{int(pool['value'][1]) >> 20} MiB"
    )


def test_gitops_applies_the_rendered_chart_twice(
    installed: Host, namespace: str, seen: Seen
) -> None:
    apply(quota(namespace, "q", "16Mi"))
    wait_counted(namespace, "q")
    chart = operator.template()
    assert operator.template() == chart
    for _ in range(2):
        # The same field manager as helm's, so that the next `helm upgrade` meets no conflict.
        kubectl("apply", "--server-side", "--field-manager=helm", "-f", "-", stdin=chart)
        assert dry_run(namespace, "8Mi") == ""
        assert "has room for" in dry_run(namespace, "32Mi")
    seen(f"{chart.count('kind: ')} objects, rendered the same twice and applied twice")


def test_a_rotation_of_certificates_refuses_nobody(
    installed: Host, namespace: str, seen: Seen
) -> None:
    apply(quota(namespace, "q", "16Mi"))
    wait_counted(namespace, "q")
    shorter = {"controller.extraArgs": f"{{--certificate-overlap={OVERLAP}}}"}
    operator.install(operator.CHART, verb="upgrade", **shorter)
    before = trusted()
    kubectl(
        *("annotate", "--namespace", operator.NAMESPACE, "secret", CA),
        *("hugetlb.dev/rotate=now", "--overwrite"),
    )
    requests = 0

    def is_rotated() -> bool:
        """Request a pod. Then return whether the API server trusts only the next CA."""
        nonlocal requests
        assert dry_run(namespace, "8Mi") == ""
        requests += 1
        now = trusted()
        return len(now) == 1 and not now & before

    wait("the API server to trust the next CA alone", is_rotated)
    assert requests > 1
    operator.install(verb="upgrade")
    seen(f"{requests} requests for a pod meanwhile, none refused")


def trusted() -> set[str]:
    """The CAs that the API server trusts for the webhooks, each as PEM."""
    (configuration,) = items(
        "validatingwebhookconfiguration", "", "-l", "app.kubernetes.io/name=hugetlb-quota"
    )
    bundle = base64.b64decode(configuration["webhooks"][0]["clientConfig"]["caBundle"]).decode()
    return {part for part in bundle.split("-----END CERTIFICATE-----") if part.strip()}
