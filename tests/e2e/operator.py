"""Install the operator with helm as a user does, and look at its pods and reports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.kubectl import Json, find, helm, items, kubectl, wait
from tests.e2e.pods import condition

CHART = Path(__file__).resolve().parents[2] / "charts" / "hugetlb-quota"
RELEASE = "hugetlb-quota"
NAMESPACE = "hugetlb-system"
IMAGE = os.environ.get("E2E_IMAGE", "hugetlb-quota")
"""The operator's image: a repository, or repository:tag."""


def install(
    chart: Path = CHART, *, verb: str = "install", release: str = RELEASE, **values: str
) -> None:
    """Run `helm install` (or upgrade), and wait until all programs are Ready."""
    helm(
        *(verb, release, str(chart), "--namespace", NAMESPACE, "--create-namespace"),
        *(*_settings(values), "--wait", "--timeout", "10m"),
    )


def template() -> str:
    """Render the objects of the chart without the cluster, as GitOps tools do."""
    return helm(
        *("template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--no-hooks"),
        *_settings({}),
    )


def _settings(values: Mapping[str, str]) -> list[str]:
    """The options of helm for this cluster, with `values` in place of the defaults here."""
    repository, _, tag = IMAGE.partition(":")
    chosen = {
        "image.repository": repository,
        "image.tag": tag,
        # On one node, a second replica has no place to run.
        "admission.replicas": "1",
        "controller.replicas": "1",
        **values,
    }
    return [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]


def is_installed() -> bool:
    """Whether the release is installed."""
    return RELEASE in helm("list", "--namespace", NAMESPACE, "--short").split()


def uninstall(release: str = RELEASE) -> None:
    """Run `helm uninstall`, and wait until the pods are gone."""
    helm("uninstall", release, "--namespace", NAMESPACE, "--wait", "--timeout", "5m")


def pods(component: str, node: str = "") -> list[Json]:
    """The pods of "admission", "controller" or "agent" on `node`, by default on all nodes."""
    found = items("pods", NAMESPACE, "-l", f"app.kubernetes.io/component={component}")
    return [each for each in found if not node or each["spec"].get("nodeName") == node]


def restarts() -> dict[str, int]:
    """The number of container restarts of each operator pod."""
    return {
        pod["metadata"]["name"]: sum(
            status["restartCount"] for status in pod["status"].get("containerStatuses", [])
        )
        for pod in items("pods", NAMESPACE)
    }


def logs(component: str) -> str:
    """The logs of a program's pods."""
    selector = f"app.kubernetes.io/component={component}"
    return kubectl("logs", "--namespace", NAMESPACE, "-l", selector, "--tail=-1")


def node_report(node: str) -> Json:
    """The HugeTLBNode of a node; empty before the agent's first report."""
    return find("hugetlbnode", node) or {}


def wait_enforced(node: str) -> str:
    """Wait until the node's agent reports that all limits are in force; return the message."""

    def ready() -> str:
        status, reason, message = condition(node_report(node), "Ready")
        return f"{reason}: {message}" if status == "True" else ""

    message: str = wait(f"HugeTLBNode {node} to be Ready", ready)
    return message
