"""The sum never exceeds the limit while pods end and leave files, and new pods try to start."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kube.api import Api, ApiError, Object
from tests.kube.cluster import Cluster
from tests.kube.quotas import create_quota, quota_object
from tests.testnode.hugepages import reserved_pages
from tests.testnode.process import TestNode
from tests.waiting import eventually
from tests.workloads import command

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
MIB = 1024**2
PAGE = 2 * MIB
HARD = 32 * MIB
EACH = 4 * MIB
#: The shortest duration; and the longest time until the quota was full and pods were replaced.
LEAST, MOST = 15.0, 90.0


@pytest.fixture
def worker(cluster: Cluster, unique: Callable[[str], str]) -> Iterator[TestNode]:
    """A node with far more pages than the quota, so that only the quota limits pods."""
    name = unique("worker")
    kubeconfig = cluster.control_plane.user_kubeconfig(f"system:node:{name}", "system:nodes")
    with reserved_pages(PAGE, 2 * HARD // PAGE):
        with TestNode(name, kubeconfig, capacity={"hugepages-2Mi": "1Gi"}) as node:
            agent = cluster.start_agent(name, cgroup_root=node.cgroup_parent)
            yield node
            agent.stop()
        cluster.control_plane.api.delete("v1/nodes", name)


@pytest.mark.timeout(400)
def test_the_kernels_charge_never_exceeds_the_limit(
    cluster: Cluster, cluster_namespace: str, worker: TestNode, hugetlbfs: Path
) -> None:
    api = cluster.control_plane.api
    quota = quota_object(cluster_namespace, "flat", {"hard": {"hugepages-2Mi": str(HARD)}})
    create_quota(api, quota)
    press = _Press(api, cluster_namespace, worker, hugetlbfs)
    press.run()
    assert press.most <= HARD, f"the kernel held {press.most} bytes, the limit is {HARD}"
    assert press.has_shown_something, vars(press)
    for pod in api.list("v1/pods", namespace=cluster_namespace):
        api.delete("v1/pods", pod["metadata"]["name"], namespace=cluster_namespace)

    def is_relieved() -> bool:
        # A pod that has just started may still make its file.
        for file in hugetlbfs.iterdir():
            file.unlink()
        return _status(api, cluster_namespace).get("used") == {"hugepages-2Mi": "0"}

    # A create that timed out leaves a reservation until the reservation expires.
    eventually(is_relieved, timeout=150)


class _Press:
    """Creates pods without a pause, sometimes removes their files, and checks the sum."""

    def __init__(self, api: Api, namespace: str, node: TestNode, hugetlbfs: Path) -> None:
        self._api = api
        self._namespace = namespace
        self._node = node
        self._hugetlbfs = hugetlbfs
        self._over = threading.Event()
        self._draw = random.Random(1)
        self.admitted = self.refused = self.most = 0

    @property
    def has_shown_something(self) -> bool:
        """Whether the quota was full, and pods were replaced."""
        tight = self.most >= HARD - EACH
        return tight and self.admitted >= 20 and self.refused >= 20

    def run(self) -> None:
        threads = [
            threading.Thread(target=part) for part in (self._create, self._remove, self._look)
        ]
        for thread in threads:
            thread.start()
        time.sleep(LEAST)
        with suppress(AssertionError):
            eventually(lambda: self.has_shown_something, timeout=MOST - LEAST)
        self._over.set()
        for thread in threads:
            thread.join(timeout=30)

    def _create(self) -> None:
        while not self._over.is_set():
            try:
                self._api.create("v1/pods", self._pod(self.admitted))
            except ApiError as error:
                if "is missing" not in error.message and "Try again" not in error.message:
                    raise
                self.refused += 1
            else:
                self.admitted += 1

    def _remove(self) -> None:
        while not self._over.wait(0.2):
            for file in self._hugetlbfs.iterdir():
                if self._draw.random() < 0.1:
                    file.unlink()
            for pod in self._api.list("v1/pods", namespace=self._namespace):
                if pod["status"].get("phase") == "Succeeded":
                    self._api.delete("v1/pods", pod["metadata"]["name"], namespace=self._namespace)

    def _look(self) -> None:
        counters = [
            path
            for path in self._node.cgroup_path.glob("kubepods*/hugetlb.2MB.rsvd.current")
            if path.is_file()
        ]
        assert counters
        while not self._over.wait(0.005):
            self.most = max(self.most, *(int(path.read_text()) for path in counters))

    def _pod(self, number: int) -> Object:
        resources = {"hugepages-2Mi": str(EACH), "cpu": "1m", "memory": "16Mi"}
        program = command("map_pages", str(EACH), "--file", f"/huge/file-{number}")
        container = {
            "name": "main",
            "image": "host",
            "command": program,
            "resources": {"requests": resources, "limits": resources},
            "volumeMounts": [{"name": "huge", "mountPath": "/huge"}],
        }
        volume = {"name": "huge", "hostPath": {"path": str(self._hugetlbfs), "type": "Directory"}}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": self._namespace, "name": f"p{number}"},
            "spec": {
                "containers": [container],
                "volumes": [volume],
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "nodeSelector": {"kubernetes.io/hostname": self._node.name},
            },
        }


def _status(api: Api, namespace: str) -> Object:
    found: Object = api.get(QUOTAS, "flat", namespace=namespace).get("status") or {}
    return found
