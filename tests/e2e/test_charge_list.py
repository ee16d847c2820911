"""The reader of the kernel's charge list in a container, under a runtime's default profiles."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.e2e.host import Host
from tests.e2e.kubectl import Json, apply, delete, find, kubectl, wait
from tests.e2e.operator import IMAGE
from tests.e2e.pods import container, hugetlb_volume, mount, pod, quota, wait_counted, wait_log

READ = """
import asyncio, json, time
from hugetlb_quota.node.charge_reader import ChargeReader

async def main():
    reader = ChargeReader()
    while True:
        charges = await reader.read()
        roots = {
            each.id for each in charges.cgroups.values()
            if each.path.rpartition("/")[2] in ("kubepods", "kubepods.slice")
        }
        status = dict(
            line.split(":", 1) for line in open(f"/proc/{reader.pid}/status").read().splitlines()
        )
        print(json.dumps({
            "pods": {
                uid: {size.resource: pages * size.bytes for size, pages in amounts.items()}
                for uid, amounts in charges.pods(frozenset(roots)).items()
            },
            "unlisted": sum(charges.unlisted.values()),
            "user": status["Uid"].split()[0],
            "rights": int(status["CapEff"], 16),
        }), flush=True)
        await asyncio.sleep(1)

asyncio.run(main())
"""
PERFMON_AND_BPF = 1 << 38 | 1 << 39
#: The first two are the reader's; with the others it gives up the rest.
RIGHTS = ["BPF", "PERFMON", "SETUID", "SETGID", "SETPCAP"]


def reader(namespace: str) -> Json:
    """A pod of the operator's image that prints the list again and again."""
    main = container("python", "-c", READ)
    main |= {
        "image": IMAGE if ":" in IMAGE else f"{IMAGE}:latest",
        "securityContext": {
            "runAsUser": 0,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": RIGHTS},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return pod(namespace, "reader", main)


def last_told(namespace: str) -> Json:
    """The last line that the reader's pod printed."""
    lines = kubectl("logs", "--namespace", namespace, "reader", "--tail=1").splitlines()
    told: Json = json.loads(lines[-1]) if lines else {}
    return told


def test_a_container_reads_what_every_pod_is_charged(
    installed: Host, namespace: str, seen: Callable[[str], None]
) -> None:
    apply(quota(namespace, "q", "64Mi"))
    wait_counted(namespace, "q")
    main = container("map", "8", "/pages/file", pages="16Mi", volumeMounts=[mount()])
    apply(pod(namespace, "filler", main, volumes=[hugetlb_volume()]), reader(namespace))
    wait_log(namespace, "filler", "touched 8 MiB")
    uid = (find("pod", "filler", namespace) or {})["metadata"]["uid"]
    wait_log(namespace, "reader", '"pods"')

    def charged() -> Json | None:
        told = last_told(namespace)
        return told if told.get("pods", {}).get(uid) == {"hugepages-2Mi": 8 << 20} else None

    told = wait("the reader to list what the pod is charged", charged)
    assert (told["user"], told["rights"]) == ("65534", PERFMON_AND_BPF)
    seen(f"user {told['user']}, capabilities {told['rights']:#x}, unlisted {told['unlisted']}")

    # Its file is in a volume of its own, and goes with the pod.
    delete("pod", "filler", namespace)
    wait("the charge to end", lambda: uid not in last_told(namespace).get("pods", {uid: {}}))
