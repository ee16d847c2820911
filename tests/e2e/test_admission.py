"""The shipped webhook admits and refuses pods through its Service."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.kubectl import apply, items, wait
from tests.e2e.pods import container, pod, quota, wait_counted, wait_phase, wait_used

Seen = Callable[[str], None]


def test_a_replicaset_says_why_its_pod_is_refused(namespace: str, seen: Seen) -> None:
    apply(quota(namespace, "tenant", "32Mi"))
    team = quota(namespace, "team", "32Mi", parentRef={"namespace": namespace, "name": "tenant"})
    team["spec"]["podSelector"] = {"matchLabels": {"team": "a"}}
    apply(team)
    wait_counted(namespace, "tenant")
    wait_counted(namespace, "team")
    template = pod(namespace, "web", container("sleep", "infinity", pages="16Mi"))
    labels = {"team": "a"}
    template = {"metadata": {"labels": labels}, "spec": template["spec"]}
    apply(
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"namespace": namespace, "name": "web"},
            "spec": {"replicas": 3, "selector": {"matchLabels": labels}, "template": template},
        }
    )
    wait_used(namespace, "tenant", "32Mi")
    wait_used(namespace, "team", "32Mi")

    def refusal() -> str:
        for event in items("events", namespace, "--field-selector=reason=FailedCreate"):
            if "has no room" in event["message"] or "room for" in event["message"]:
                return str(event["message"])
        return ""

    message = wait("the ReplicaSet to say why", refusal)
    assert f"{namespace}/tenant" in message
    assert "16Mi of hugepages-2Mi" in message
    assert "32Mi of 32Mi is used" in message
    seen(message[message.find("pod ") :][:110])


def test_the_charge_ends_with_the_pod(namespace: str, seen: Seen) -> None:
    apply(quota(namespace, "q", "16Mi"))
    wait_counted(namespace, "q")
    apply(pod(namespace, "first", container("map", "-x", "8", pages="16Mi"), restartPolicy="Never"))
    wait_phase(namespace, "first", "Succeeded")
    wait_used(namespace, "q", "0")
    apply(pod(namespace, "second", container("map", "8", pages="16Mi")))
    wait_phase(namespace, "second")
    wait_used(namespace, "q", "16Mi")
    seen("16Mi, 0 when the pod had ended, 16Mi with the next")
