"""Let a pod leave a file with huge pages."""

from __future__ import annotations

from pathlib import Path

from tests.kube.api import Api, Object
from tests.workloads import command


def leave_file(api: Api, namespace: str, node: str, file: Path, user: int = 0) -> None:
    """Run a pod that fills ``file`` with two pages of 2 MiB, and delete the pod at its end.

    ``file`` is on a hugetlbfs of the node's host, and its name is also the pod's name.
    """
    resources = {"hugepages-2Mi": "4Mi", "cpu": "1m", "memory": "16Mi"}
    container = {
        "name": "main",
        "image": "host",
        "command": command("map_pages", "4Mi", "--file", f"/huge/{file.name}"),
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": [{"name": "huge", "mountPath": "/huge"}],
        "securityContext": {"runAsUser": user, "runAsGroup": user},
    }
    volume = {"name": "huge", "hostPath": {"path": str(file.parent), "type": "Directory"}}
    body: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": file.name},
        "spec": {
            "containers": [container],
            "volumes": [volume],
            "restartPolicy": "Never",
            "nodeSelector": {"kubernetes.io/hostname": node},
        },
    }
    api.create("v1/pods", body)
    api.wait_for(
        "v1/pods",
        file.name,
        lambda pod: pod is not None and pod["status"].get("phase") == "Succeeded",
        namespace=namespace,
    )
    api.delete("v1/pods", file.name, namespace=namespace)
