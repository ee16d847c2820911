"""A real API server calls the admission of the chart; the test acts as the controller."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import requests

from hugetlb_quota.accounting.reservation import Reservation, parse_all
from tests.kube import chart
from tests.kube.api import Api, ApiError, Object
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program, Programs
from tests.kube.quotas import quota_object

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
MIB = 1024**2


class RoundRobin:
    """Forwards TCP connections to several servers in turn, like a Service."""

    def __init__(self, *addresses: str) -> None:
        self._targets = cycle(int(address.rpartition(":")[2]) for address in addresses)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", next(self._targets)))
            except OSError:
                return
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        sink.close()


@pytest.fixture(scope="module")
def replicas(control_plane: ControlPlane, helm: Path) -> Iterator[tuple[Program, Program]]:
    """Two replicas of admission, called in turn."""
    rendered = chart.render(helm)
    chart.install(control_plane, rendered)
    programs = Programs(control_plane, rendered)
    first, second = programs.start_admission(), programs.start_admission()
    first.wait_ready()
    second.wait_ready()
    balancer = RoundRobin(first.address, second.address)
    chart.register_webhooks(control_plane, rendered, balancer.address)
    yield first, second
    chart.unregister_webhooks(control_plane, rendered)
    balancer.close()
    assert [first.stop(), second.stop()] == [0, 0]


@pytest.fixture
def api(control_plane: ControlPlane, replicas: object) -> Api:
    return control_plane.api


@pytest.fixture
def tenant(api: Api, tenant_namespaces: tuple[str, str]) -> tuple[str, str]:
    """Two namespaces: TENANT/root with 256Mi, and DB/leaf with 128Mi below."""
    top, below = tenant_namespaces
    counted(api, quota(top, "root", "256Mi", children={"matchLabels": {"tenant": top}}))
    counted(api, quota(below, "leaf", "128Mi", parent=(top, "root")))
    return top, below


def quota(
    namespace: str,
    name: str,
    limit: str,
    *,
    parent: tuple[str, str] | None = None,
    children: Object | None = None,
    selector: Object | None = None,
) -> Object:
    spec: Object = {"hard": {"hugepages-2Mi": limit}}
    if parent is not None:
        spec["parentRef"] = {"namespace": parent[0], "name": parent[1]}
    if children is not None:
        spec["childNamespaces"] = children
    if selector is not None:
        spec["podSelector"] = selector
    return quota_object(namespace, name, spec)


def pod(namespace: str, name: str, amount: str = "64Mi", **metadata: Any) -> Object:
    resources = {"cpu": "1m", "memory": "1Mi", "hugepages-2Mi": amount}
    named = {"name": name} if "generateName" not in metadata else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, **named, **metadata},
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": "none",
                    "resources": {"requests": resources, "limits": dict(resources)},
                }
            ]
        },
    }


def counted(api: Api, raw: Object) -> None:
    """Create a quota, and write like the controller that the quota has no charges yet."""
    made = api.create(QUOTAS, raw)
    api.replace(
        QUOTAS,
        made | {"status": {"observedGeneration": made["metadata"]["generation"]}},
        subresource="status",
    )


def status(api: Api, namespace: str, name: str) -> Object:
    found: Object = api.get(QUOTAS, name, namespace=namespace).get("status", {})
    return found


def reserved(api: Api, namespace: str, name: str) -> set[str]:
    return {each.uid for each in reservations(api, namespace, name)}


def reservations(api: Api, namespace: str, name: str) -> tuple[Reservation, ...]:
    read, unreadable = parse_all(status(api, namespace, name).get("reservations"))
    assert unreadable == ()
    return read


def test_a_reservation_has_the_uid_of_the_pod(api: Api, tenant: tuple[str, str]) -> None:
    top, below = tenant
    created = [
        api.create("v1/pods", pod(below, "named", "32Mi")),
        api.create("v1/pods", pod(below, "", "32Mi", generateName="generated-")),
    ]
    uids = {each["metadata"]["uid"] for each in created}
    assert reserved(api, below, "leaf") == reserved(api, top, "root") == uids
    leaf = status(api, below, "leaf")
    assert leaf["used"] == {"hugepages-2Mi": "64Mi"}
    assert leaf["summary"] == "2Mi: 64Mi/128Mi"
    names = {f"{below}/{each['metadata']['name']}" for each in created}
    assert {each.pod for each in reservations(api, below, "leaf")} == names


def test_a_limit_alone_is_a_request(api: Api, tenant: tuple[str, str]) -> None:
    _, below = tenant
    raw = pod(below, "limit-only")
    del raw["spec"]["containers"][0]["resources"]["requests"]["hugepages-2Mi"]
    api.create("v1/pods", raw)
    assert status(api, below, "leaf")["used"] == {"hugepages-2Mi": "64Mi"}


def test_a_pod_over_its_own_quota_is_refused(api: Api, tenant: tuple[str, str]) -> None:
    _, below = tenant
    api.create("v1/pods", pod(below, "first", "96Mi"))
    with pytest.raises(ApiError) as refused:
        api.create("v1/pods", pod(below, "second"))
    assert refused.value.code == 403
    assert (
        f"pod {below}/second asks for 64Mi of hugepages-2Mi, but HugeTLBQuota {below}/leaf has room"
        " for 32Mi: 96Mi of 128Mi is used (96Mi reserved for pods being created); 32Mi is missing."
    ) in refused.value.message
    assert len(reserved(api, below, "leaf")) == 1


def test_the_refusal_of_a_pod_over_the_tenants_quota_names_the_tenant(
    api: Api, tenant: tuple[str, str]
) -> None:
    top, below = tenant
    counted(api, quota(top, "own", "256Mi", parent=(top, "root")))
    api.create("v1/pods", pod(top, "large", "224Mi"))
    with pytest.raises(ApiError) as refused:
        api.create("v1/pods", pod(below, "small"))
    assert f"HugeTLBQuota {top}/root has room for 32Mi: 224Mi of 256Mi" in refused.value.message
    assert f"{below}/leaf" not in refused.value.message
    assert reserved(api, below, "leaf") == set()


def test_a_dry_run_writes_nothing(api: Api, tenant: tuple[str, str]) -> None:
    _, below = tenant
    before = api.get(QUOTAS, "leaf", namespace=below)
    api.create("v1/pods", pod(below, "dry"), dry_run=True)
    with pytest.raises(ApiError, match="64Mi is missing"):
        api.create("v1/pods", pod(below, "dry", "192Mi"), dry_run=True)
    assert api.get(QUOTAS, "leaf", namespace=below) == before


def test_a_quota_without_its_parent_refuses_pods(api: Api, tenant: tuple[str, str]) -> None:
    top, _ = tenant
    raw = quota(top, "waiting", "64Mi", parent=(top, "later"))
    raw["spec"]["podSelector"] = {"matchLabels": {"app": "waits"}}
    counted(api, raw)
    waits = pod(top, "waits", labels={"app": "waits"})
    with pytest.raises(ApiError, match=f"names the parent {top}/later, which does not exist"):
        api.create("v1/pods", waits)
    counted(api, quota(top, "later", "64Mi"))
    api.create("v1/pods", waits)
    assert len(reserved(api, top, "later")) == 1


def test_an_uncounted_quota_admits_no_pod(api: Api, tenant: tuple[str, str]) -> None:
    _, below = tenant
    api.create(QUOTAS, quota(below, "new", "64Mi"))
    with pytest.raises(ApiError, match=f"not yet counted the pods under HugeTLBQuota {below}/new"):
        api.create("v1/pods", pod(below, "early"))
    assert reserved(api, below, "leaf") == set()


def test_a_relabelled_pod_is_reserved_in_its_new_quota(api: Api, tenant: tuple[str, str]) -> None:
    _, below = tenant
    gold = {"matchLabels": {"class": "gold"}}
    counted(api, quota(below, "gold", "32Mi", selector=gold))
    api.create("v1/pods", pod(below, "small", "32Mi"))
    api.create("v1/pods", pod(below, "large", "64Mi"))
    label = {"metadata": {"labels": {"class": "gold"}}}
    moved = api.patch("v1/pods", "small", label, namespace=below)
    assert reserved(api, below, "gold") == {moved["metadata"]["uid"]}
    with pytest.raises(ApiError, match=f"HugeTLBQuota {below}/gold has no room"):
        api.patch("v1/pods", "large", label, namespace=below)
    with pytest.raises(ApiError, match=f"HugeTLBQuota {below}/gold has no room"):
        api.patch("v1/pods", "large", label, namespace=below, subresource="status")
    # A change of annotations needs no decision.
    api.patch("v1/pods", "large", {"metadata": {"annotations": {"a": "b"}}}, namespace=below)


def test_a_pod_that_a_later_check_refuses_leaves_only_its_reservation(
    api: Api, tenant: tuple[str, str]
) -> None:
    _, below = tenant
    api.create("v1/pods", pod(below, "twice", "32Mi"))
    with pytest.raises(ApiError) as refused:
        api.create("v1/pods", pod(below, "twice", "32Mi"))
    assert refused.value.reason == "AlreadyExists"
    # The create failed after admission; the reservation stays until it expires.
    assert len(reserved(api, below, "leaf")) == 2


def test_pods_of_a_replica_set_show_the_reason(api: Api, tenant: tuple[str, str]) -> None:
    _, below = tenant
    template = pod(below, "any", "96Mi", labels={"app": "pg"})
    replica_set = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"namespace": below, "name": "pg"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "pg"}},
            "template": {"metadata": {"labels": {"app": "pg"}}, "spec": template["spec"]},
        },
    }
    api.create("apps/v1/replicasets", replica_set)

    def failed(seen: Object | None) -> bool:
        conditions = (seen or {}).get("status", {}).get("conditions", [])
        return any(f"HugeTLBQuota {below}/leaf" in each["message"] for each in conditions)

    api.wait_for("apps/v1/replicasets", "pg", failed, namespace=below, what="the refusal's message")
    assert len(api.list("v1/pods", namespace=below, labels="app=pg")) == 1


def test_applying_a_quota_neither_removes_nor_owns_reservations(
    api: Api, tenant: tuple[str, str]
) -> None:
    _, below = tenant
    mine = quota(below, "mine", "128Mi", selector={"matchLabels": {"class": "mine"}})
    applied = api.apply(mine, manager="user")
    observed = {"status": {"observedGeneration": applied["metadata"]["generation"] + 1}}
    api.patch(QUOTAS, "mine", observed, namespace=below, subresource="status")
    made = api.create("v1/pods", pod(below, "a", "32Mi", labels={"class": "mine"}))
    mine["spec"]["hard"] = {"hugepages-2Mi": "96Mi"}
    # Also apply an object that was read with its status.
    applied = api.apply(mine | {"status": {"reservations": []}}, manager="user")
    assert reserved(api, below, "mine") == {made["metadata"]["uid"]}
    for entry in applied["metadata"]["managedFields"]:
        assert entry["manager"] != "user" or "f:status" not in entry["fieldsV1"]


def test_a_quota_made_just_before_the_pod_limits_the_pod(
    api: Api, tenant: tuple[str, str], control_plane: ControlPlane
) -> None:
    top, below = tenant
    other = control_plane.api  # a new client, so that each thread has its own connection
    answers: list[str] = []
    expected: list[str] = []

    def attempt(number: int) -> None:
        mine = {"try": str(number)}
        where = (top, below)[number % 2]
        # Another quota may govern the pod or not: the new quota has no room in any case.
        counted(other, quota(where, f"try-{number}", "0", selector={"matchLabels": mine}))
        try:
            api.create("v1/pods", pod(where, f"try-{number}", "2Mi", labels=mine))
            answers.append("admitted")
        except ApiError as error:
            answers.append(error.message)
            expected.append(f"HugeTLBQuota {where}/try-{number} has no room")

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(attempt, range(300)))
    assert "admitted" not in answers
    assert all(any(sentence in answer for answer in answers) for sentence in expected)
    assert reserved(api, below, "leaf") == set()


def test_many_creates_through_two_replicas_never_exceed_a_limit(
    api: Api,
    replicas: tuple[Program, Program],
    tenant: tuple[str, str],
    control_plane: ControlPlane,
) -> None:
    top, below = tenant
    counted(api, quota(top, "own", "256Mi", parent=(top, "root")))
    amounts = ["8Mi", "16Mi", "24Mi", "32Mi"]

    def create(index: int) -> tuple[str, int] | None:
        where = (below, top)[index % 2]
        amount = amounts[index % len(amounts)]
        try:
            made = api.create("v1/pods", pod(where, f"many-{index}", amount))
        except ApiError as error:
            if "is missing" not in error.message:
                raise
            return None
        return made["metadata"]["uid"], int(amount.removesuffix("Mi"))

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(create, range(60)))
    admitted = dict(each for each in results if each is not None)
    assert reserved(api, top, "root") == set(admitted)
    assert sum(admitted.values()) <= 256
    # No pod of the smallest size still fits.
    assert sum(admitted.values()) > 256 - 32
    assert status(api, top, "root")["used"] == {"hugepages-2Mi": f"{sum(admitted.values())}Mi"}
    # Both replicas were called.
    assert all(re.search(r"asks for .* is missing", replica.log()) for replica in replicas)


def test_bad_requests_get_an_error_in_words(
    replicas: tuple[Program, Program], control_plane: ControlPlane, helm: Path
) -> None:
    """Send bad requests, and check the text of the answers that the API server would show."""
    path = chart.serving(control_plane, chart.render(helm)).path
    url = f"{replicas[0].address}/{path}/validate-pods?timeout=10s"
    trust = False  # the certificate is for the name of the Service
    bad = requests.post(url, data=b"{", verify=trust, timeout=10)
    assert (bad.status_code, "Invalid JSON" in bad.text) == (400, True)
    large = requests.post(url, data=b" " * (3 * MIB + 1), verify=trust, timeout=10)
    assert (large.status_code, "larger than 3145728 bytes" in large.text) == (413, True)
    # A client with a wrong path gets no decision and no information.
    for guess in ("", "/guessed"):
        guessed = f"{replicas[0].address}{guess}/validate-pods?timeout=10s"
        answer = requests.post(guessed, data=b"{", verify=trust, timeout=10)
        assert (answer.status_code, answer.text) == (404, "404: Not Found")
    assert path not in replicas[0].log()
    empty: Object = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
    wrong = requests.post(url, data=json.dumps(empty), verify=trust, timeout=10)
    assert (wrong.status_code, "request.uid is missing" in wrong.text) == (400, True)
