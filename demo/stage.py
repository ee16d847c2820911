"""The stage: a cluster of real parts, and the actions of the scenes."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from demo.story import Unexpected
from tests.kube.cluster import Cluster
from tests.testnode.hugepages import reserved_pages
from tests.testnode.naming import Driver
from tests.testnode.process import TestNode
from tests.workloads import command

MIB = 1024**2
PAGE = 2 * MIB
#: The pages borrowed from the host: more than any scene maps. So each failure comes from a limit,
#: and never from an empty pool.
PAGES = 256
QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
HOSTNAME = "kubernetes.io/hostname"

Json = dict[str, Any]


class Stage:
    """Two nodes with agents, and one node without an agent."""

    GOVERNED: tuple[tuple[str, Driver], ...] = (("worker-1", "systemd"), ("worker-2", "cgroupfs"))
    BARE = "worker-bare"

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._opened = ExitStack()
        self._nodes: dict[str, TestNode] = {}

    def open(self) -> None:
        """Start everything. :meth:`close` also stops a part that started before an error."""
        self._opened.enter_context(reserved_pages(PAGE, PAGES))
        self.cluster = self._opened.enter_context(Cluster(progress=self._progress))
        self.plane = self.cluster.control_plane
        self.api = self.plane.api
        for name, driver in self.GOVERNED:
            node = self._start_node(name, driver)
            self.cluster.start_agent(name, cgroup_root=node.cgroup_parent)
        self._start_node(self.BARE, "systemd")

    def close(self) -> None:
        """Stop everything, and return the borrowed pages."""
        self._opened.close()

    def mount_hugetlbfs(self) -> Path:
        """Mount a hugetlbfs of 2 MiB pages on the host, as an administrator does."""
        path = Path(self._opened.enter_context(TemporaryDirectory(prefix="hugetlb-quota-demo-")))
        mount = ("mount", "-t", "hugetlbfs", "-o", "pagesize=2M,mode=1777", "demo", str(path))
        subprocess.run(mount, check=True, timeout=30)
        self._opened.callback(subprocess.run, ("umount", str(path)), check=True, timeout=30)
        return path

    def kubectl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator."""
        return self.plane.kubectl(*arguments, check=check)

    def apply(self, path: Path) -> str:
        """``kubectl apply`` a file; return the output."""
        return self.kubectl("apply", "-f", str(path)).stdout

    def use(self) -> dict[str, str]:
        """The charges of 2 MiB pages, by quota: ``{"acme/tenant": "64Mi"}``."""
        return {
            f"{each['metadata']['namespace']}/{each['metadata']['name']}": (
                each.get("status", {}).get("used", {}).get("hugepages-2Mi", "")
            )
            for each in self.api.list(QUOTAS)
        }

    def status(self, namespace: str, name: str) -> Json:
        """The status of one quota."""
        found: Json = self.api.get(QUOTAS, name, namespace=namespace).get("status") or {}
        return found

    def tree(self) -> str:
        """The quotas as a tree, each with use and limit."""
        quotas = {
            (each["metadata"]["namespace"], each["metadata"]["name"]): each
            for each in self.api.list(QUOTAS)
        }
        children: dict[tuple[str, str] | None, list[tuple[str, str]]] = {}
        for key, quota in sorted(quotas.items()):
            ref = quota["spec"].get("parentRef")
            children.setdefault((ref["namespace"], ref["name"]) if ref else None, []).append(key)
        lines: list[tuple[str, str]] = []

        def draw(key: tuple[str, str], stem: str, branch: str) -> None:
            summary = quotas[key].get("status", {}).get("summary", "")
            lines.append((f"{stem}{branch}{'/'.join(key)}", summary))
            below = children.get(key, [])
            inner = stem + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
            for child in below:
                draw(child, inner, "└─ " if child == below[-1] else "├─ ")

        for root in children.get(None, []):
            draw(root, "", "")
        width = max((len(name) for name, _ in lines), default=0)
        return "\n".join(f"{name:<{width}}  {summary}" for name, summary in lines)

    def run_pod(self, pod: Json) -> Json:
        """Create a pod, wait for its end, and return the state as :meth:`ended` does."""
        self.create_pod(pod)
        return self.ended(pod)

    def create_pod(self, pod: Json) -> None:
        """Create a pod that admission admits."""
        self.api.create("v1/pods", pod)

    def refused(self, pod: Json) -> str:
        """The message of ``kubectl create`` for a pod that admission refuses."""
        result = self.plane.kubectl("create", "-f", "-", input=json.dumps(pod), check=False)
        if result.returncode == 0:
            raise Unexpected(f"pod {pod['metadata']['name']} was admitted")
        return result.stderr.strip()

    def delete_pod(self, namespace: str, name: str) -> None:
        """Request the deletion of a pod."""
        self.api.delete("v1/pods", name, namespace=namespace)

    def running(self, namespace: str, name: str) -> Json:
        """Wait until the pod runs; return the pod."""
        return self._pod(namespace, name, lambda pod: pod["status"].get("phase") == "Running")

    def ended(self, pod: Json) -> Json:
        """Wait for the end of a pod's container: ``exitCode``, ``signal``, ``message`` (output)."""
        meta = pod["metadata"]
        seen = self._pod(
            meta["namespace"],
            meta["name"],
            lambda pod: pod["status"].get("phase") in ("Succeeded", "Failed"),
        )
        terminated: Json = seen["status"]["containerStatuses"][0]["state"]["terminated"]
        return terminated

    def limits(self, node: str, uid: str) -> dict[str, str]:
        """The hugetlb files of the pod's cgroup on ``node`` for 2 MiB pages: content by name."""
        root = self._nodes[node].cgroup_path
        # In systemd's names, UIDs have _ instead of -.
        tails = (f"pod{uid}", f"pod{uid.replace('-', '_')}.slice")
        (cgroup,) = (path for path in root.rglob("*pod*") if path.name.endswith(tails))
        return {
            file: (cgroup / file).read_text().strip()
            for file in ("hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.2MB.rsvd.current")
        }

    def wait(self, holds: Callable[[], object], what: str, timeout: float = 30.0) -> float:
        """Wait until ``holds`` is true; return the seconds of the wait."""
        started = time.monotonic()
        while not holds():
            if time.monotonic() - started > timeout:
                raise Unexpected(f"waited {timeout:g} s in vain until {what}")
            time.sleep(0.05)
        return round(time.monotonic() - started, 2)

    def _pod(self, namespace: str, name: str, holds: Callable[[Json], bool]) -> Json:
        found: list[Json] = []

        def look() -> bool:
            found[:] = [self.api.get("v1/pods", name, namespace=namespace)]
            return holds(found[0])

        self.wait(look, f"pod {namespace}/{name} is in the expected phase", timeout=60)
        return found[0]

    def _start_node(self, name: str, driver: Driver) -> TestNode:
        kubeconfig = self.plane.user_kubeconfig(f"system:node:{name}", "system:nodes")
        capacity = {"hugepages-2Mi": f"{PAGES * 2}Mi"}
        self._progress(f"starting node {name} ({driver} cgroup names)")
        node = TestNode(name, kubeconfig, capacity=capacity, driver=driver, labels={HOSTNAME: name})
        self._nodes[name] = self._opened.enter_context(node)
        return node


def pod(
    namespace: str,
    name: str,
    *,
    program: list[str],
    request: str | None = None,
    node: str | None = None,
    user: int | None = None,
    host_path: Path | None = None,
) -> Json:
    """A pod of one container that runs ``program`` once, with ``host_path`` at /huge."""
    resources = {"cpu": "10m", "memory": "64Mi"}
    if request is not None:
        resources["hugepages-2Mi"] = request
    container: Json = {
        "name": "main",
        "image": "host",
        "command": program,
        "resources": {"requests": resources, "limits": resources},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if user is not None:
        container["securityContext"] = {"runAsUser": user, "runAsGroup": user}
    spec: Json = {
        "containers": [container],
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
    }
    if host_path is not None:
        volume = {"name": "huge", "hostPath": {"path": str(host_path), "type": "Directory"}}
        spec["volumes"] = [volume]
        container["volumeMounts"] = [{"name": "huge", "mountPath": "/huge"}]
    if node is not None:
        spec["nodeSelector"] = {HOSTNAME: node}
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def mapping(amount: str, *options: str) -> list[str]:
    """The command that maps ``amount`` of huge pages and prints the result."""
    return command("map_pages", amount, *options)
