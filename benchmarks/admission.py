"""Pods created per second, with and without a quota in the way.

``python -m benchmarks.admission [PODS] [AT_ONCE]``: on a control plane of its own, with the
operator as the chart ships it (one admission replica), PODS pods that ask for huge pages are
created by AT_ONCE clients, in a namespace without a quota and in one at the end of a chain of
one, two and four. Refused are those that did not come through in the webhook's time. Compare
rows of one run only: machines are noisy.
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.kube.api import Api, ApiError, Object
from tests.kube.cluster import Cluster

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"


def main() -> None:
    """Print a row for each length of the chain."""
    pods = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    at_once = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    with Cluster() as cluster:
        api = cluster.control_plane.api
        print(f"{pods} pods, {at_once} at once")
        print(f"{'quotas':>6} {'pods/s':>8} {'median ms':>10} {'p95 ms':>8} {'refused':>8}")
        for length in (0, 1, 2, 4):
            namespace = f"chain-{length}"
            cluster.control_plane.create_namespace(namespace)
            _make_chain(api, namespace, length)
            started = time.monotonic()
            with ThreadPoolExecutor(at_once) as clients:
                took = list(clients.map(partial(_create, api, namespace), range(pods)))
            seconds = time.monotonic() - started
            done = sorted(each for each in took if each is not None)
            print(
                f"{length:>6} {len(done) / seconds:>8.1f} {statistics.median(done) * 1000:>10.0f}"
                f" {done[int(len(done) * 0.95) - 1] * 1000:>8.0f} {pods - len(done):>8}",
                flush=True,
            )


def _make_chain(api: Api, namespace: str, length: int) -> None:
    for level in range(length):
        spec: Object = {"hard": {"hugepages-2Mi": "1Ti"}}
        if level:
            spec["parentRef"] = {"namespace": namespace, "name": f"q{level - 1}"}
        # Only the last selects pods; the others are charged as its ancestors.
        if level < length - 1:
            spec["podSelector"] = {"matchLabels": {"none": "at-all"}}
        body = {
            "apiVersion": "hugetlb.dev/v1alpha1",
            "kind": "HugeTLBQuota",
            "metadata": {"namespace": namespace, "name": f"q{level}"},
            "spec": spec,
        }
        api.create(QUOTAS, body)


def _create(api: Api, namespace: str, number: int) -> float | None:
    resources = {"hugepages-2Mi": "2Mi", "cpu": "1m", "memory": "1Mi"}
    container = {
        "name": "main",
        "image": "none",
        "resources": {"requests": resources, "limits": resources},
    }
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": f"p{number}"},
        "spec": {"containers": [container], "nodeSelector": {"nowhere": "at-all"}},
    }
    started = time.monotonic()
    try:
        api.create("v1/pods", body)
    except ApiError:
        return None
    return time.monotonic() - started


if __name__ == "__main__":
    main()
