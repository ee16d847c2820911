"""Files that a pod leaves stay charged through restarts until they are removed."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e import operator
from tests.e2e.host import Host
from tests.e2e.kubectl import Json, apply, delete, get, items, kubectl, wait
from tests.e2e.pods import (
    condition,
    container,
    mount,
    pod,
    quota,
    wait_counted,
    wait_log,
    wait_phase,
    wait_used,
)

Seen = Callable[[str], None]


def writer(namespace: str, name: str, folder: str, mib: int, pages: str) -> Json:
    """A pod that fills a file in the folder and keeps running."""
    main = container("map", str(mib), f"/pages/{name}", pages=pages, volumeMounts=[mount()])
    shared = {"name": "pages", "hostPath": {"path": folder}}
    return pod(namespace, name, main, volumes=[shared])


def leave(namespace: str, folder: str, mib: int = 8, pages: str = "16Mi") -> None:
    """Let a pod leave a file, and wait until the quota "q" is charged only for the file."""
    apply(writer(namespace, "leaver", folder, mib, pages))
    wait_log(namespace, "leaver", f"touched {mib} MiB")
    wait_used(namespace, "q", pages)
    delete("pod", "leaver", namespace)
    wait_used(namespace, "q", f"{mib}Mi")


def files(node: str) -> list[Json]:
    """The files in the node's report."""
    found: list[Json] = operator.node_report(node).get("status", {}).get("files", [])
    return found


def restart_agent(node: str) -> None:
    """Delete the agent's pod, and wait until the next agent reports that limits are in force."""
    (old,) = operator.pods("agent", node)
    delete("pod", old["metadata"]["name"], operator.NAMESPACE)
    wait_agent(node)


def test_a_file_stays_charged_through_restarts(
    installed: Host, namespace: str, folder: str, seen: Seen
) -> None:
    apply(quota(namespace, "q", "16Mi"))
    wait_counted(namespace, "q")
    leave(namespace, folder)
    status = get("hugetlbquota", "q", namespace)["status"]
    assert status["retained"] == {"hugepages-2Mi": "8Mi"}
    (file,) = status["retainedFiles"]
    assert (file["pod"], file["charged"]) == (f"{namespace}/leaver", "8Mi")
    installed.restart("kubelet", "containerd")
    restart_agent(installed.node)
    wait_used(namespace, "q", "8Mi")
    # The retained charge counts: the quota has room for 8Mi, but not for 16Mi.
    apply(
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"namespace": namespace, "name": "late"},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "late"}},
                "template": {
                    "metadata": {"labels": {"app": "late"}},
                    "spec": pod(namespace, "late", container("sleep", "9", pages="16Mi"))["spec"],
                },
            },
        }
    )

    def refusal() -> str:
        events = items("events", namespace, "--field-selector=reason=FailedCreate")
        return next((each["message"] for each in events if "Retained in" in each["message"]), "")

    message = wait("the refusal to name the file", refusal)
    assert "leaver" in message
    delete("replicaset", "late", namespace)
    installed.run(f"rm {folder}/leaver")
    wait_used(namespace, "q", "0")
    seen("8Mi through restarts of kubelet, containerd and agent; 0 when removed")
    seen(message[message.find("Retained in") :][:100])


def test_the_scheduler_does_not_see_the_pages_of_files(
    installed: Host, namespace: str, folder: str, seen: Seen
) -> None:
    """The scheduler subtracts only the requests of pods: it binds the pod, and mmap fails."""
    free = int(installed.run("cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")) * 2
    held = free // 2 // 2 * 2
    apply(quota(namespace, "q", "4Gi"))
    wait_counted(namespace, "q")
    leave(namespace, folder, held, f"{held}Mi")
    requested = free - 16
    apply(pod(namespace, "late", container("map", str(requested), pages=f"{requested}Mi")))
    wait_phase(namespace, "late")
    log = wait_log(namespace, "late", "mmap")
    assert f"mmap {requested} MiB: Cannot allocate memory" in log
    seen(f"a file holds {held}Mi of {free}Mi: a pod of {requested}Mi is bound, and mmap fails")


def test_two_pods_that_end_while_the_agent_is_away(
    installed: Host, namespace: str, folder: str, seen: Seen
) -> None:
    apply(*(quota(namespace, name, "32Mi", podSelector=selects(name)) for name in ("a", "b")))
    for name, mib in (("a", 4), ("b", 8)):
        wait_counted(namespace, name)
        apply(writer(namespace, name, folder, mib, "16Mi"))
    for name, mib in (("a", 4), ("b", 8)):
        wait_log(namespace, name, f"touched {mib} MiB")
        wait_used(namespace, name, "16Mi")
    stop_agent()
    try:
        for name in ("a", "b"):
            delete("pod", name, namespace)
    finally:
        start_agent(installed.node)
    try:
        wait_used(namespace, "a", "4Mi")
        wait_used(namespace, "b", "8Mi")
    finally:
        installed.run(f"rm -f {folder}/*")
    seen("4Mi and 8Mi, each with the quota of the pod that left it")


def selects(name: str) -> Json:
    return {"matchLabels": {"e2e": name}}


NOWHERE = '{"spec":{"template":{"spec":{"nodeSelector":{"e2e":"nowhere"}}}}}'
ANYWHERE = '{"spec":{"template":{"spec":{"nodeSelector":{"e2e":null}}}}}'
AGENT = f"{operator.RELEASE}-agent"


def stop_agent() -> None:
    """Make the DaemonSet select no node, and wait until no agent runs."""
    kubectl("patch", "daemonset", AGENT, "--namespace", operator.NAMESPACE, "-p", NOWHERE)
    wait("the agent to be gone", lambda: not operator.pods("agent"))


def start_agent(node: str) -> None:
    """Make the DaemonSet select the node again, and wait until limits are in force."""
    kubectl("patch", "daemonset", AGENT, "--namespace", operator.NAMESPACE, "-p", ANYWHERE)
    wait_agent(node)


def wait_agent(node: str) -> None:
    """Wait until the one agent of the node is Ready and reports that limits are in force."""

    def ready() -> bool:
        return [condition(each, "Ready")[0] for each in operator.pods("agent", node)] == ["True"]

    wait(f"the agent of {node} to be Ready", ready)
    operator.wait_enforced(node)
