"""Make the pods and quotas of the scenes, and wait for their states."""

from __future__ import annotations

import os
from typing import Any

from tests.e2e.kubectl import Json, get, kubectl, wait

IMAGE = os.environ.get("E2E_WORKLOAD_IMAGE", "hugetlb-quota-workload:e2e")
"""The image of tests/e2e/workload."""

#: The nodeSelector of every pod: the scenes use one node of the cluster.
PINNED: dict[str, str] = {}

SIZE_2M = "hugepages-2Mi"
SIZE_1G = "hugepages-1Gi"
HOSTNAME = "kubernetes.io/hostname"


def container(
    *command: str, name: str = "main", pages: str = "", size: str = SIZE_2M, **more: Any
) -> Json:
    """A container that runs a command, with `pages` (such as "16Mi") of huge pages."""
    # The CPU request keeps the container's start from starving on a busy node.
    amounts = {"cpu": "100m", "memory": "32Mi"} if pages else {}
    resources = {"requests": {**amounts, size: pages}, "limits": {size: pages}} if pages else {}
    return {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "resources": resources,
        **more,
    }


def pin(node: Json) -> None:
    """Run the pods of all scenes on this node."""
    PINNED[HOSTNAME] = node["metadata"]["labels"][HOSTNAME]


def pod(namespace: str, name: str, *containers: Json, **spec: Any) -> Json:
    """A pod of these containers; without containers, a pod that sleeps."""
    labels = spec.pop("labels", {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"e2e": name, **labels}},
        "spec": {
            "containers": list(containers or (container("sleep", "infinity"),)),
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "dnsPolicy": "Default",
            "nodeSelector": dict(PINNED),
            **spec,
        },
    }


def quota(namespace: str, name: str, hard: str, size: str = SIZE_2M, **spec: Any) -> Json:
    """A HugeTLBQuota with one limit."""
    return {
        "apiVersion": "hugetlb.dev/v1alpha1",
        "kind": "HugeTLBQuota",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"hard": {size: hard}, **spec},
    }


def hugetlb_volume(name: str = "pages") -> Json:
    """An emptyDir of huge pages."""
    return {"name": name, "emptyDir": {"medium": "HugePages"}}


def mount(path: str = "/pages", name: str = "pages") -> Json:
    """A volume mount of a container."""
    return {"name": name, "mountPath": path}


def wait_phase(namespace: str, name: str, *phases: str) -> Json:
    """Wait until the pod is in one of these phases ("Running" by default), and return it."""
    wanted = phases or ("Running",)

    def reached() -> Json | None:
        found = get("pod", name, namespace)
        return found if found["status"].get("phase") in wanted else None

    reached_pod: Json = wait(f"pod {namespace}/{name} to be {' or '.join(wanted)}", reached)
    return reached_pod


def wait_log(namespace: str, name: str, text: str, container: str = "main") -> str:
    """Wait until the container's log has `text`; return the log."""

    def printed() -> str:
        log = kubectl("logs", "--namespace", namespace, name, "-c", container)
        return log if text in log else ""

    log: str = wait(f"{text!r} in the log of {namespace}/{name}", printed)
    return log


def used(namespace: str, name: str, size: str = SIZE_2M) -> str:
    """The used amount of a quota, such as "16Mi" or "0"; "" before the first count."""
    status = get("hugetlbquota", name, namespace).get("status", {})
    amount: str = status.get("used", {}).get(size, "")
    return amount


def wait_used(namespace: str, name: str, amount: str, size: str = SIZE_2M) -> None:
    """Wait until the used amount of a quota is `amount`."""
    wait(
        f"HugeTLBQuota {namespace}/{name} to use {amount} of {size}",
        lambda: used(namespace, name, size) == amount,
    )


def condition(found: Json, kind: str) -> tuple[str, str, str]:
    """Status, reason and message of an object's condition; empty strings if it is missing."""
    for each in found.get("status", {}).get("conditions", []):
        if each["type"] == kind:
            return each["status"], each.get("reason", ""), each.get("message", "")
    return "", "", ""


def wait_counted(namespace: str, name: str) -> None:
    """Wait until the controller has counted a new quota. Before, admission admits no pod."""
    wait(
        f"HugeTLBQuota {namespace}/{name} to be counted",
        lambda: get("hugetlbquota", name, namespace).get("status", {}).get("used"),
    )
