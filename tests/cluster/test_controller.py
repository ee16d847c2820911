"""The controller on a real API server, without admission: only the recount charges pods.

The test writes Nodes and reports, like kubelet and agent.
"""

from __future__ import annotations

import os
import re
import signal
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.page_size import PageSize
from tests.kube import chart as charts
from tests.kube.api import Api, ApiError, Object, Objects
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program, Programs
from tests.kube.quotas import quota_object
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
NODES = "hugetlb.dev/v1alpha1/hugetlbnodes"
MIB = 1024**2
NONE = {"matchLabels": {"no": "pod"}}
CHARGE = Charge({PageSize(2 * MIB): 32 * MIB})


@pytest.fixture(scope="module")
def plane(assets: Path) -> Iterator[ControlPlane]:
    """A control plane for this module alone, without webhooks."""
    with ControlPlane(assets) as running:
        yield running


@pytest.fixture(scope="module")
def programs(plane: ControlPlane) -> Iterator[Programs]:
    chart = charts.render(plane.assets / "helm")
    charts.install(plane, chart)
    programs = Programs(plane, chart)
    yield programs
    programs.stop()


@pytest.fixture
def controller(programs: Programs) -> Program:
    """A controller that counts; the previous test's controller if it still runs."""
    for running in programs.running:
        if running.child.exit_status is None:
            return running
    program = programs.start_controller(webhooks=False)
    program.wait_ready()
    return program


@pytest.fixture
def alone(programs: Programs) -> Iterator[Programs]:
    """Start controllers for this test alone; no other controller runs."""
    programs.stop()
    yield programs
    programs.stop()


@pytest.fixture
def namespace(plane: ControlPlane) -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    plane.create_namespace(name)
    return name


@pytest.fixture
def api(plane: ControlPlane) -> Api:
    return plane.api


def quota(namespace: str, name: str, hard: str, **spec: Any) -> Object:
    return quota_object(namespace, name, {"hard": {"hugepages-2Mi": hard}, **spec})


def parent(namespace: str, name: str) -> Object:
    return {"parentRef": {"namespace": namespace, "name": name}}


def pod(namespace: str, name: str, amount: str, node: str | None = None) -> Object:
    resources = {"hugepages-2Mi": amount, "cpu": "1m", "memory": "1Mi"}
    container = {
        "name": "main",
        "image": "none",
        "resources": {"requests": resources, "limits": resources},
    }
    spec: Object = {"containers": [container], "terminationGracePeriodSeconds": 0}
    if node is not None:
        spec["nodeName"] = node
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    }


def status(api: Api, namespace: str, name: str) -> Object:
    found: Object = api.get(QUOTAS, name, namespace=namespace).get("status") or {}
    return found


def used(api: Api, namespace: str, name: str) -> str | None:
    amount: str | None = (status(api, namespace, name).get("used") or {}).get("hugepages-2Mi")
    return amount


def condition(api: Api, namespace: str, name: str, kind: str) -> tuple[str, str]:
    for each in status(api, namespace, name).get("conditions") or ():
        if each["type"] == kind:
            return each["status"], each["reason"]
    return "", ""


def make_node(api: Api, name: str, boot_id: str = "boot-1") -> None:
    api.create("v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    info = dict.fromkeys(
        ("machineID", "systemUUID", "kernelVersion", "osImage", "containerRuntimeVersion"), ""
    )
    rest = {"kubeletVersion": "", "kubeProxyVersion": "", "operatingSystem": "", "architecture": ""}
    api.patch(
        "v1/nodes",
        name,
        {"status": {"nodeInfo": {**info, **rest, "bootID": boot_id}}},
        subresource="status",
    )


def report(
    api: Api, node: str, *, version: str, pods: list[Object], boot_id: str = "boot-1"
) -> None:
    body: Object = {
        "apiVersion": "hugetlb.dev/v1alpha1",
        "kind": "HugeTLBNode",
        "metadata": {"name": node},
    }
    try:
        api.create(NODES, body)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
    now = datetime.now(UTC).isoformat()
    content = {"bootID": boot_id, "podsResourceVersion": version, "reportedAt": now, "pods": pods}
    api.patch(NODES, node, {"status": content}, subresource="status")


def reported(created: Object, charged: str = "64Mi", *, live: bool = True) -> Object:
    """The entry of the pod in its node's report."""
    meta = created["metadata"]
    return {
        "uid": meta["uid"],
        "namespace": meta["namespace"],
        "name": meta["name"],
        "labels": meta.get("labels", {}),
        "live": live,
        "charged": {"hugepages-2Mi": charged},
    }


def make_reported_pod(api: Api, namespace: str, node: str) -> None:
    """Make a Node, the quota "team" of 128Mi, and the pod "a" of 64Mi that the node reports."""
    make_node(api, node)
    api.create(QUOTAS, quota(namespace, "team", "128Mi"))
    created = api.create("v1/pods", pod(namespace, "a", "64Mi", node))
    report(api, node, version="1", pods=[reported(created)])


def test_a_pod_is_counted_in_its_quota_and_all_ancestors_until_it_ends(
    controller: Program, api: Api, namespace: str
) -> None:
    api.create(QUOTAS, quota(namespace, "tenant", "256Mi"))
    api.create(QUOTAS, quota(namespace, "team", "128Mi", **parent(namespace, "tenant")))
    eventually(lambda: condition(api, namespace, "team", "Ready") == ("True", "Attached"))
    api.create("v1/pods", pod(namespace, "a", "64Mi"))
    # Both quotas of the namespace select the pod; the tenant counts it once.
    eventually(
        lambda: (used(api, namespace, "team"), used(api, namespace, "tenant")) == ("64Mi",) * 2
    )
    assert status(api, namespace, "team")["summary"] == "2Mi: 64Mi/128Mi"
    api.delete("v1/pods", "a", namespace=namespace)
    eventually(lambda: (used(api, namespace, "team"), used(api, namespace, "tenant")) == ("0",) * 2)


def test_a_quota_attaches_to_a_parent_that_appears_later(
    controller: Program, api: Api, namespace: str
) -> None:
    api.create(QUOTAS, quota(namespace, "team", "128Mi", **parent(namespace, "tenant")))
    eventually(lambda: condition(api, namespace, "team", "Ready") == ("False", "ParentNotFound"))
    api.create(QUOTAS, quota(namespace, "tenant", "256Mi"))
    eventually(lambda: condition(api, namespace, "team", "Ready") == ("True", "Attached"))


def test_a_parent_attaches_only_namespaces_that_it_selects(
    controller: Program, plane: ControlPlane, api: Api, namespace: str
) -> None:
    other = f"{namespace}-db"
    plane.create_namespace(other)
    api.create(QUOTAS, quota(namespace, "tenant", "256Mi"))
    api.create(QUOTAS, quota(other, "team", "128Mi", **parent(namespace, "tenant")))
    eventually(lambda: condition(api, other, "team", "Ready") == ("False", "ForeignParent"))
    selector = {"childNamespaces": {"matchLabels": {"tenant": "acme"}}}
    api.patch(QUOTAS, "tenant", {"spec": selector}, namespace=namespace)
    api.patch("v1/namespaces", other, {"metadata": {"labels": {"tenant": "acme"}}})
    eventually(lambda: condition(api, other, "team", "Ready") == ("True", "Attached"))


def test_a_limit_below_the_use_is_reported(controller: Program, api: Api, namespace: str) -> None:
    api.create(QUOTAS, quota(namespace, "team", "128Mi"))
    api.create("v1/pods", pod(namespace, "a", "64Mi"))
    eventually(lambda: used(api, namespace, "team") == "64Mi")
    api.patch(QUOTAS, "team", {"spec": {"hard": {"hugepages-2Mi": "32Mi"}}}, namespace=namespace)
    eventually(lambda: condition(api, namespace, "team", "WithinLimits") == ("False", "OverLimit"))

    # The event follows the condition.

    def over() -> Objects:
        return api.list("v1/events", namespace=namespace, fields="reason=OverLimit")

    eventually(over)
    (event,) = over()
    assert "64Mi of hugepages-2Mi is charged and the limit is 32Mi" in event["message"]


def test_an_ended_pod_stays_charged_until_its_node_reports_the_end(
    controller: Program, api: Api, namespace: str, unique: Callable[[str], str]
) -> None:
    node = unique("node")
    make_node(api, node)
    api.create(QUOTAS, quota(namespace, "team", "128Mi"))
    report(api, node, version="1", pods=[])
    created = api.create("v1/pods", pod(namespace, "a", "64Mi", node))
    listed = [reported(created)]
    eventually(lambda: used(api, namespace, "team") == "64Mi")
    deleted = api.delete("v1/pods", "a", namespace=namespace)
    stays = lambda: used(api, namespace, "team") == "64Mi"  # noqa: E731
    # A report from before the pod's end is no evidence, even if it does not list the pod.
    report(api, node, version="2", pods=[])
    eventually(stays, hold=1.5)
    newer = str(int(deleted["metadata"]["resourceVersion"]) + 1_000_000)
    report(api, node, version=newer, pods=listed)
    eventually(stays, hold=1.5)
    report(api, node, version=newer, pods=[])
    eventually(lambda: used(api, namespace, "team") == "0")


def test_a_new_controller_reads_of_an_ended_pod_in_the_nodes_report(
    alone: Programs, api: Api, namespace: str, unique: Callable[[str], str]
) -> None:
    node = unique("node")
    make_reported_pod(api, namespace, node)
    first = alone.start_controller(webhooks=False)
    first.wait_ready()
    eventually(lambda: used(api, namespace, "team") == "64Mi")
    first.kill9()
    api.delete("v1/pods", "a", namespace=namespace)
    # This is the same as a restart of the container: the controller leads at once.
    second = alone.start_controller(identity=first.identity, webhooks=False)
    second.wait_ready()
    eventually(lambda: has_counted(second))
    eventually(lambda: used(api, namespace, "team") == "64Mi", hold=2)
    report(api, node, version="1", pods=[])
    eventually(lambda: used(api, namespace, "team") == "0")


def test_a_paused_leader_does_not_overwrite_its_successors_count(
    alone: Programs, api: Api, namespace: str
) -> None:
    first = alone.start_controller(webhooks=False)
    first.wait_ready()
    teams = [f"team-{number}" for number in range(12)]
    for team in teams:
        api.create(QUOTAS, quota(namespace, team, "128Mi"))
    api.create("v1/pods", pod(namespace, "a", "64Mi"))
    eventually(lambda: all(used(api, namespace, team) == "64Mi" for team in teams))
    # After the pause the first controller has a change to count, but an old snapshot.
    os.kill(first.child.pid, signal.SIGSTOP)
    second = alone.start_controller(webhooks=False)
    try:
        second.wait_ready()
        eventually(lambda: "leads" in second.log(), timeout=60)
        api.create("v1/pods", pod(namespace, "b", "32Mi"))
        eventually(lambda: all(used(api, namespace, team) == "96Mi" for team in teams))
        os.kill(first.child.pid, signal.SIGCONT)
        eventually(
            lambda: all(used(api, namespace, team) == "96Mi" for team in teams), hold=5, every=0.02
        )
        # The controller ended by itself, without an error.
        eventually(lambda: first.child.exit_status == 1)
        assert "Traceback" not in first.log()
    finally:
        os.kill(first.child.pid, signal.SIGCONT) if first.child.exit_status is None else None


@pytest.mark.parametrize("evidence", ["node deleted", "new boot", "out of service"])
def test_a_deleted_or_rebooted_node_releases_its_charges_at_once(
    controller: Program, api: Api, namespace: str, unique: Callable[[str], str], evidence: str
) -> None:
    node = unique("node")
    make_reported_pod(api, namespace, node)
    eventually(lambda: used(api, namespace, "team") == "64Mi")
    api.delete("v1/pods", "a", namespace=namespace)
    eventually(lambda: used(api, namespace, "team") == "64Mi", hold=1)
    if evidence == "node deleted":
        api.delete("v1/nodes", node)
    elif evidence == "out of service":
        taint = {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}
        api.patch("v1/nodes", node, {"spec": {"taints": [taint]}})
    else:
        booted = {"status": {"nodeInfo": {"bootID": "boot-2"}}}
        api.patch("v1/nodes", node, booted, subresource="status")
    eventually(lambda: used(api, namespace, "team") == "0")


def test_charges_stay_while_a_deleted_report_is_missing(
    controller: Program, api: Api, namespace: str, unique: Callable[[str], str]
) -> None:
    node = unique("node")
    make_reported_pod(api, namespace, node)
    eventually(lambda: used(api, namespace, "team") == "64Mi")
    deleted = api.delete("v1/pods", "a", namespace=namespace)
    api.delete(NODES, node)
    eventually(lambda: f"HugeTLBNode {node} was deleted" in controller.log())
    eventually(lambda: used(api, namespace, "team") == "64Mi", hold=2)
    newer = str(int(deleted["metadata"]["resourceVersion"]) + 1_000_000)
    report(api, node, version=newer, pods=[])
    eventually(lambda: used(api, namespace, "team") == "0")


def test_a_quota_has_the_controllers_finalizer_and_no_annotation_of_kopf(
    controller: Program, api: Api, namespace: str
) -> None:
    api.create(QUOTAS, quota(namespace, "team", "128Mi"))

    def metadata() -> Object:
        found: Object = api.get(QUOTAS, "team", namespace=namespace)["metadata"]
        return found

    eventually(lambda: metadata().get("finalizers") == ["hugetlb.dev/charged"])
    eventually(lambda: "annotations" not in metadata(), hold=2)


LIFETIME = 15
"""The life of a reservation, in seconds."""


def reserve(api: Api, namespace: str, name: str, uid: str, pod_name: str) -> None:
    expires = datetime.now(UTC) + timedelta(seconds=LIFETIME)
    held = Reservation(uid, f"{namespace}/{pod_name}", CHARGE, expires, "request").line
    api.patch(
        QUOTAS,
        name,
        {"status": {"reservations": [held]}},
        namespace=namespace,
        subresource="status",
    )


def test_a_reservation_of_an_unseen_pod_stays_until_it_expires(
    alone: Programs, api: Api, namespace: str, unique: Callable[[str], str]
) -> None:
    controller = alone.start_controller(webhooks=False, extra=(f"--request-timeout={LIFETIME}",))
    controller.wait_ready()
    # The controller would wait for a report of an existing Node.
    for kind in ("v1/nodes", NODES):
        for left in api.list(kind):
            api.delete(kind, left["metadata"]["name"])
    node = unique("node")
    make_node(api, node)
    report(api, node, version="1", pods=[])
    api.create(QUOTAS, quota(namespace, "team", "128Mi"))
    eventually(lambda: used(api, namespace, "team") == "0")
    reserve(api, namespace, "team", "failed-create", "never")
    api.create("v1/pods", pod(namespace, "a", "64Mi"))
    eventually(lambda: used(api, namespace, "team") == "96Mi", hold=8)
    eventually(lambda: used(api, namespace, "team") == "64Mi", timeout=120)
    # The line stays as an identity until the agent's next report.
    (line,) = status(api, namespace, "team")["reservations"]
    assert line.endswith(" ?")
    report(api, node, version="1000000", pods=[])
    eventually(lambda: status(api, namespace, "team")["reservations"] == [])


def test_a_sum_beyond_2_to_the_63rd_is_counted(
    controller: Program, api: Api, namespace: str
) -> None:
    api.create(QUOTAS, quota(namespace, "team", "128Mi"))
    for name in ("a", "b"):
        raw = pod(namespace, name, "2Mi")
        for amounts in raw["spec"]["containers"][0]["resources"].values():
            amounts["hugepages-1Gi"] = "8589934591Gi"
        api.create("v1/pods", raw)

    def sums() -> dict[str, str]:
        found: dict[str, str] = status(api, namespace, "team").get("used", {})
        return found

    eventually(lambda: sums() == {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "17179869182Gi"})
    api.delete("v1/pods", "a", namespace=namespace)
    eventually(lambda: sums() == {"hugepages-2Mi": "2Mi", "hugepages-1Gi": "8589934591Gi"})


def test_an_unreadable_status_is_replaced(controller: Program, api: Api, namespace: str) -> None:
    api.create(QUOTAS, quota(namespace, "team", "128Mi"))
    api.create("v1/pods", pod(namespace, "a", "64Mi"))
    eventually(lambda: used(api, namespace, "team") == "64Mi")
    broken = {"status": {"pods": {"hugepages-2Mi": "many"}, "retained": {"hugepages-2Mi": "?"}}}
    api.patch(QUOTAS, "team", broken, namespace=namespace, subresource="status")
    eventually(lambda: status(api, namespace, "team")["pods"] == {"hugepages-2Mi": "64Mi"})
    assert status(api, namespace, "team")["retained"] == {}


def test_a_reservation_ends_when_its_pod_is_counted_and_an_identity_when_reported(
    controller: Program, api: Api, namespace: str, unique: Callable[[str], str]
) -> None:
    node = unique("node")
    make_node(api, node)
    report(api, node, version="1", pods=[])
    api.create(QUOTAS, quota(namespace, "tenant", "128Mi", podSelector=NONE))
    api.create(QUOTAS, quota(namespace, "team", "128Mi", **parent(namespace, "tenant")))
    created = api.create("v1/pods", pod(namespace, "a", "32Mi", node))
    for name in ("team", "tenant"):
        reserve(api, namespace, name, created["metadata"]["uid"], "a")

    def words() -> list[int]:
        lines = status(api, namespace, "team")["reservations"]
        assert all(line.split()[6:] in ([], [node]) for line in lines)
        return [len(line.split()) for line in lines]

    eventually(lambda: words() == [7])
    assert used(api, namespace, "team") == "32Mi"
    eventually(lambda: status(api, namespace, "tenant")["reservations"] == [])
    report(api, node, version="1", pods=[reported(created, "0")])
    eventually(lambda: words() == [])
    assert used(api, namespace, "team") == "32Mi"


def test_a_uid_that_only_the_kernel_names_is_charged_by_its_identity(
    controller: Program, api: Api, namespace: str, unique: Callable[[str], str]
) -> None:
    node = unique("node")
    make_node(api, node)
    report(api, node, version="1", pods=[])
    api.create(QUOTAS, quota(namespace, "team", "128Mi"))
    nobody = {"metadata": {"uid": "0123-4567", "namespace": "", "name": ""}}
    eventually(lambda: used(api, namespace, "team") == "0")
    line = f"0123-4567 {namespace}/gone 2Mi:8Mi 2026-01-01T00:00:00Z request 0 {node}"
    lines = {"status": {"reservations": [line]}}
    api.patch(QUOTAS, "team", lines, namespace=namespace, subresource="status")
    eventually(lambda: used(api, namespace, "team") == "8Mi")
    report(api, node, version="1000000", pods=[reported(nobody, "6Mi", live=False)])
    eventually(lambda: status(api, namespace, "team")["retained"] == {"hugepages-2Mi": "6Mi"})
    eventually(lambda: used(api, namespace, "team") == "6Mi", hold=1)
    assert status(api, namespace, "team")["reservations"] == [line]
    report(api, node, version="1000000", pods=[])
    eventually(lambda: status(api, namespace, "team")["reservations"] == [])
    assert used(api, namespace, "team") == "0"


def has_counted(controller: Program) -> bool:
    with urllib.request.urlopen(f"{controller.address}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    return re.search(r"recount_duration_seconds_count [1-9]", metrics) is not None


def test_an_unreadable_report_changes_no_count(
    alone: Programs, api: Api, namespace: str, unique: Callable[[str], str]
) -> None:
    node = unique("node")
    make_node(api, node)
    api.create(QUOTAS, quota(namespace, "team", "128Mi"))
    created = api.create("v1/pods", pod(namespace, "a", "64Mi", node))
    report(api, node, version="1000000", pods=[reported(created, "6Mi", live=False)])
    first = alone.start_controller(webhooks=False)
    first.wait_ready()
    eventually(lambda: used(api, namespace, "team") == "64Mi")
    api.delete("v1/pods", "a", namespace=namespace)
    eventually(lambda: used(api, namespace, "team") == "6Mi")
    report(api, node, version="no number", pods=[])
    eventually(lambda: used(api, namespace, "team") == "6Mi", hold=2)
    # The next controller has never read a good report.
    first.kill9()
    second = alone.start_controller(identity=first.identity, webhooks=False)
    second.wait_ready()
    # Before this controller's first count, the values could come from an earlier controller.
    eventually(lambda: has_counted(second))
    api.create("v1/pods", pod(namespace, "b", "32Mi"))
    eventually(lambda: used(api, namespace, "team") == "38Mi", hold=2)
    report(api, node, version="1000001", pods=[])
    eventually(lambda: used(api, namespace, "team") == "32Mi")


def test_the_parent_inherits_retained_charges_and_the_truncate_policy(
    controller: Program, api: Api, namespace: str, unique: Callable[[str], str]
) -> None:
    node = unique("node")
    make_node(api, node)
    api.create(QUOTAS, quota(namespace, "tenant", "128Mi", podSelector=NONE))
    retained = {"policy": "Truncate", "after": "90s"}
    spec = {**parent(namespace, "tenant"), "deletionPolicy": "Reparent", "retained": retained}
    api.create(QUOTAS, quota(namespace, "team", "128Mi", **spec))
    gone = {"metadata": {"uid": unique("uid"), "namespace": namespace, "name": "gone"}}
    report(api, node, version="1000000", pods=[reported(gone, "6Mi", live=False)])
    left = {"hugepages-2Mi": "6Mi"}
    eventually(lambda: status(api, namespace, "team").get("retained") == left)
    uid = gone["metadata"]["uid"]
    reclaim = [{"uid": uid, "after": "1m30s"}]

    def wanted() -> Object:
        spec: Object = api.get(NODES, node).get("spec", {})
        return spec

    eventually(lambda: wanted().get("reclaim") == reclaim)
    eventually(lambda: api.get(QUOTAS, "team", namespace=namespace)["metadata"].get("finalizers"))
    api.delete(QUOTAS, "team", namespace=namespace)

    def is_gone() -> bool:
        assert status(api, namespace, "tenant")["retained"] == left
        return [each["metadata"]["name"] for each in api.list(QUOTAS, namespace=namespace)] == [
            "tenant"
        ]

    eventually(is_gone, timeout=30)
    heirs = [{"uid": uid, "quotas": [f"{namespace}/tenant"]}]
    assert wanted() == {"reclaim": reclaim, "heirs": heirs}
    eventually(lambda: status(api, namespace, "tenant")["retained"] == left, hold=1)
    report(api, node, version="1000000", pods=[])
    eventually(lambda: status(api, namespace, "tenant")["retained"] == {})
    eventually(lambda: wanted() == {"reclaim": [], "heirs": []})


def test_a_deleted_quota_waits_until_nothing_is_charged(
    controller: Program, api: Api, namespace: str
) -> None:
    api.create(QUOTAS, quota(namespace, "team", "128Mi"))
    api.create("v1/pods", pod(namespace, "a", "64Mi"))
    eventually(lambda: used(api, namespace, "team") == "64Mi")
    eventually(lambda: api.get(QUOTAS, "team", namespace=namespace)["metadata"].get("finalizers"))
    api.delete(QUOTAS, "team", namespace=namespace)
    eventually(lambda: condition(api, namespace, "team", "Ready") == ("False", "Terminating"))
    api.delete("v1/pods", "a", namespace=namespace)

    def gone() -> bool:
        try:
            api.get(QUOTAS, "team", namespace=namespace)
        except ApiError as error:
            return error.code == 404
        return False

    eventually(gone)


def test_after_any_kill_counted_quotas_are_guarded_and_deleted_quotas_disappear(
    programs: Programs, api: Api, namespace: str
) -> None:
    names = [f"q-{number:03}" for number in range(200)]
    for name in names:
        api.create(QUOTAS, quota(namespace, name, "128Mi"))

    def found() -> list[Object]:
        return api.list(QUOTAS, namespace=namespace)

    def counted() -> list[Object]:
        return [each for each in found() if each.get("status", {}).get("observedGeneration")]

    def guarded(quotas: list[Object]) -> list[Object]:
        return [each for each in quotas if each["metadata"].get("finalizers")]

    program = programs.start_controller(webhooks=False)
    try:
        for least in (1, 70, 140):
            eventually(lambda n=least: len(counted()) >= n, timeout=60, every=0.01)  # type: ignore[misc]
            program.kill9()
            # Look at one list: a write in progress may arrive after the kill.
            seen = counted()
            assert guarded(seen) == seen
            program.start_again()
        eventually(lambda: len(counted()) == len(names), timeout=60)
        seen = found()
        assert guarded(seen) == seen
        for name in names[:100]:
            api.delete(QUOTAS, name, namespace=namespace)
        eventually(lambda: len(found()) < 180, timeout=60, every=0.01)
        program.kill9()
        program.start_again()
        eventually(lambda: len(found()) == 100, timeout=60)
        assert [each["metadata"]["name"] for each in guarded(found())] == names[100:]
    finally:
        program.stop()


def test_a_pod_gets_no_annotation_and_no_finalizer(
    controller: Program, api: Api, namespace: str
) -> None:
    api.create(QUOTAS, quota(namespace, "team", "128Mi"))
    created = api.create("v1/pods", pod(namespace, "a", "64Mi"))
    eventually(lambda: used(api, namespace, "team") == "64Mi")
    metadata = api.get("v1/pods", "a", namespace=namespace)["metadata"]
    assert metadata.get("finalizers") is None
    assert metadata.get("annotations") == created["metadata"].get("annotations")
