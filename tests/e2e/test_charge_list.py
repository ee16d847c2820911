"""The agent's reader of the kernel's charge list, in its container."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e import operator
from tests.e2e.host import Host
from tests.e2e.kubectl import Json, apply, delete, find, wait
from tests.e2e.pods import container, hugetlb_volume, mount, pod, quota, wait_counted, wait_log

PERFMON_AND_BPF = 1 << 38 | 1 << 39
NOBODY = 65534
#: Prints user and effective capabilities of the reader process.
WHO_READS = r"""
for process in /proc/[0-9]*; do
    [ "$(cat "$process/comm" 2> /dev/null)" = charge-reader ] || continue
    awk '/^Uid/ { print $2 } /^CapEff/ { print $2 }' "$process/status"
done
"""


def test_the_agent_reads_the_charge_of_every_pod(
    installed: Host, namespace: str, seen: Callable[[str], None]
) -> None:
    apply(quota(namespace, "q", "64Mi"))
    wait_counted(namespace, "q")
    main = container("map", "8", "/pages/file", pages="16Mi", volumeMounts=[mount()])
    apply(pod(namespace, "filler", main, volumes=[hugetlb_volume()]))
    wait_log(namespace, "filler", "touched 8 MiB")
    uid = (find("pod", "filler", namespace) or {})["metadata"]["uid"]

    def entries() -> list[Json]:
        pods = operator.node_report(installed.node).get("status", {}).get("pods", [])
        return [each for each in pods if each["uid"] == uid]

    def charged() -> bool:
        return [each["charged"] for each in entries()] == [{"hugepages-2Mi": "8Mi"}]

    wait("the agent to report the charge of the pod", charged)
    report = operator.node_report(installed.node)["status"]
    (readable,) = [each for each in report["conditions"] if each["type"] == "ChargeListReadable"]
    assert readable["status"] == "True", readable["message"]
    user, rights = installed.run(WHO_READS).split()
    assert (int(user), int(rights, 16)) == (NOBODY, PERFMON_AND_BPF)
    seen(f"user {user}, capabilities {int(rights, 16):#x}, unlisted {report.get('unlisted', {})}")

    # The file is in the pod's own volume, and disappears with the pod.
    delete("pod", "filler", namespace)
    wait("the charge to end", lambda: not entries())
