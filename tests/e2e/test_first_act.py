"""The limit is in force before the first instruction of a container."""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.e2e.kubectl import apply, get, items, kubectl, wait
from tests.e2e.pods import container, pod, quota, wait_counted, wait_used

Seen = Callable[[str], None]
STARTS = int(os.environ.get("E2E_STARTS", "100"))
AT_ONCE = int(os.environ.get("E2E_AT_ONCE", "5"))
REFUSED = "mmap 8 MiB: Cannot allocate memory"


def test_a_container_that_first_of_all_maps_beyond_its_limit(namespace: str, seen: Seen) -> None:
    """Every mmap fails with ENOMEM, and no pod gets SIGBUS."""
    apply(quota(namespace, "q", f"{4 * AT_ONCE}Mi"))
    wait_counted(namespace, "q")
    spec = pod(
        namespace,
        "mapper",
        container("map", "-x", "8", pages="4Mi"),
        restartPolicy="Never",
        # Pods with the host's network start faster.
        hostNetwork=True,
    )["spec"]
    apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"namespace": namespace, "name": "mapper"},
            "spec": {
                "completions": STARTS,
                "parallelism": AT_ONCE,
                "backoffLimit": 0,
                "template": {"metadata": {"labels": {"job": "mapper"}}, "spec": spec},
            },
        }
    )

    def ended() -> bool:
        status = get("job", "mapper", namespace)["status"]
        return int(status.get("succeeded", 0) + status.get("failed", 0)) >= STARTS

    wait(f"{STARTS} pods to end", ended, patience=300 + 20 * STARTS)
    status = get("job", "mapper", namespace)["status"]
    assert status.get("failed", 0) == 0, "a pod died instead of being refused"
    assert status["succeeded"] == STARTS
    names = [each["metadata"]["name"] for each in items("pods", namespace, "-l", "job=mapper")]
    assert len(names) == STARTS
    everything = ("-l", "job=mapper", "--tail=-1", f"--max-log-requests={STARTS}")
    log = kubectl("logs", "--namespace", namespace, *everything)
    assert log.count(REFUSED) == STARTS
    assert "SIGBUS" not in log
    wait_used(namespace, "q", "0")
    seen(f"{STARTS} of {STARTS} starts: {REFUSED}")
