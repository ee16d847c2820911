"""The API server calls admission for some requests, and for others it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kube import chart
from tests.kube.api import Object, Objects
from tests.kube.control_plane import ControlPlane
from tests.kube.quotas import quota_object
from tests.kube.recorder import Recorder

PODS = "/validate-pods"
QUOTAS = "/validate-quotas"

PLAIN: dict[str, Any] = {"cpu": "1", "memory": "1Mi"}
HUGE: dict[str, Any] = PLAIN | {"hugepages-2Mi": "2Mi"}
WITH_HUGE = {"requests": HUGE, "limits": HUGE}


@pytest.fixture(scope="module")
def recorder(
    control_plane: ControlPlane, helm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorder]:
    """A server that records requests instead of admission."""
    rendered = chart.render(helm)
    chart.install(control_plane, rendered)
    pair = chart.serving(control_plane, rendered).pair
    assert pair is not None
    cert, key = (tmp_path_factory.mktemp("recorder") / name for name in ("tls.crt", "tls.key"))
    cert.write_text(pair.certificate)
    key.write_text(pair.key)
    with Recorder(cert, key) as server:
        chart.register_webhooks(control_plane, rendered, server.address)
        yield server
        chart.unregister_webhooks(control_plane, rendered)


@pytest.fixture
def received(recorder: Recorder) -> Callable[[str], Objects]:
    """A function that returns the requests for a path since the test began."""
    recorder.forget()
    return recorder.take


Received = Callable[[str], Objects]


def pod(name: str = "pod", **spec: object) -> Object:
    """Make a pod with one container without huge pages, and with more fields in its spec."""
    container = {"name": "main", "image": "none", "resources": {"requests": PLAIN}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [container], **spec},
    }


def container(name: str, resources: object = None) -> Object:
    return {"name": name, "image": "none"} | ({"resources": resources} if resources else {})


SPARED = {
    "no resources": pod(containers=[container("main")]),
    "cpu and memory": pod(),
    "many containers": pod(
        containers=[container(f"c{i}", {"requests": PLAIN, "limits": PLAIN}) for i in range(100)]
    ),
    "hugepages in a name elsewhere": pod(
        containers=[container("hugepages-2mi")], nodeSelector={"hugepages-2Mi": "yes"}
    ),
    "an emptyDir of huge pages": pod(
        volumes=[{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "2Mi"}}]
    ),
}

COUNTED = {
    "container": pod(containers=[container("main", WITH_HUGE)]),
    "container, limit alone": pod(containers=[container("main", {"limits": HUGE})]),
    "second container": pod(containers=[container("a"), container("b", WITH_HUGE)]),
    "last of many containers": pod(
        containers=[
            *(container(f"c{i}", {"requests": PLAIN, "limits": PLAIN}) for i in range(100)),
            container("last", WITH_HUGE),
        ]
    ),
    "init container": pod(initContainers=[container("init", WITH_HUGE)]),
    "sidecar": pod(initContainers=[container("side", WITH_HUGE) | {"restartPolicy": "Always"}]),
    "pod level": pod(resources=WITH_HUGE),
    "pod level, limit alone": pod(resources={"limits": HUGE}),
    "another size": pod(
        containers=[container("main", {"limits": PLAIN | {"hugepages-1Gi": "1Gi"}})]
    ),
}


@pytest.mark.parametrize("case", SPARED)
def test_a_pod_without_huge_pages_never_waits_for_admission(
    case: str, control_plane: ControlPlane, namespace: str, received: Received
) -> None:
    control_plane.api.create("v1/pods", copy.deepcopy(SPARED[case]), namespace=namespace)
    assert received(PODS) == []


@pytest.mark.parametrize("case", COUNTED)
def test_admission_is_called_for_a_pod_with_huge_pages(
    case: str, control_plane: ControlPlane, namespace: str, received: Received
) -> None:
    control_plane.api.create("v1/pods", copy.deepcopy(COUNTED[case]), namespace=namespace)
    (request,) = received(PODS)
    assert (request["operation"], request["namespace"]) == ("CREATE", namespace)


def test_admission_is_called_for_the_overhead_of_a_runtime_class(
    control_plane: ControlPlane, namespace: str, received: Received, unique: Callable[[str], str]
) -> None:
    runtime = unique("runtime")
    runtime_class = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": runtime},
        "handler": "none",
        "overhead": {"podFixed": HUGE},
    }
    control_plane.api.create("node.k8s.io/v1/runtimeclasses", runtime_class)
    control_plane.api.wait_for(
        "node.k8s.io/v1/runtimeclasses", runtime, lambda seen: seen is not None
    )
    control_plane.api.create("v1/pods", pod(runtimeClassName=runtime), namespace=namespace)
    (request,) = received(PODS)
    assert request["object"]["spec"]["overhead"]["hugepages-2Mi"] == "2Mi"
    control_plane.api.delete("node.k8s.io/v1/runtimeclasses", runtime)


@pytest.mark.parametrize("metadata", [{"name": "given"}, {"generateName": "made-"}])
def test_a_create_request_has_uid_and_name(
    metadata: dict[str, str], control_plane: ControlPlane, namespace: str, received: Received
) -> None:
    body = pod(containers=[container("main", WITH_HUGE)]) | {"metadata": metadata}
    created = control_plane.api.create("v1/pods", body, namespace=namespace)
    (request,) = received(PODS)
    stored = created["metadata"]
    assert request["object"]["metadata"]["uid"] == stored["uid"] != ""
    assert request["object"]["metadata"]["name"] == stored["name"]
    assert stored["name"].startswith("".join(metadata.values()))


def test_kube_system_and_the_operators_own_namespace_are_spared(
    control_plane: ControlPlane, received: Received, unique: Callable[[str], str]
) -> None:
    for spared in ("kube-system", chart.NAMESPACE):
        body = pod(containers=[container("main", WITH_HUGE)]) | {"metadata": {"name": unique("p")}}
        control_plane.api.create("v1/pods", body, namespace=spared)
        assert received(PODS) == []


def test_no_namespace_can_become_spared(
    control_plane: ControlPlane, namespace: str, received: Received
) -> None:
    """The API server sets the selector's label to the namespace's name, for every user."""
    label = {"metadata": {"labels": {"kubernetes.io/metadata.name": "kube-system"}}}
    control_plane.api.patch("v1/namespaces", namespace, label)
    body = pod(containers=[container("main", WITH_HUGE)])
    control_plane.api.create("v1/pods", body, namespace=namespace)
    assert len(received(PODS)) == 1


def test_admission_is_called_for_a_dry_run_as_a_dry_run(
    control_plane: ControlPlane, namespace: str, received: Received
) -> None:
    body = pod(containers=[container("main", WITH_HUGE)])
    control_plane.api.create("v1/pods", body, namespace=namespace, dry_run=True)
    (request,) = received(PODS)
    assert request["dryRun"] is True


def test_admission_is_called_for_an_update_of_labels(
    control_plane: ControlPlane, namespace: str, received: Received
) -> None:
    api = control_plane.api
    api.create("v1/pods", pod(containers=[container("main", WITH_HUGE)]), namespace=namespace)
    received(PODS)
    for metadata, is_called in (
        ({"annotations": {"a": "1"}}, False),
        ({"labels": {"team": "a"}}, True),
        ({"labels": {"team": "a"}, "annotations": {"a": "2"}}, False),
        ({"labels": {"team": "b"}}, True),
        ({"labels": None}, True),
    ):
        api.patch("v1/pods", "pod", {"metadata": metadata}, namespace=namespace)
        # The API server calls again if the scheduler writes to the pod at the same time.
        operations = {each["operation"] for each in received(PODS)}
        assert operations == ({"UPDATE"} if is_called else set()), metadata
    by_status = {"metadata": {"labels": {"team": "c"}}}
    api.patch("v1/pods", "pod", by_status, namespace=namespace, subresource="status")
    assert {each["subResource"] for each in received(PODS)} == {"status"}
    running = {"status": {"phase": "Running"}}
    api.patch("v1/pods", "pod", running, namespace=namespace, subresource="status")
    api.delete("v1/pods", "pod", namespace=namespace, grace_seconds=0)
    assert received(PODS) == []


def test_labels_of_a_pod_without_huge_pages_change_freely(
    control_plane: ControlPlane, namespace: str, received: Received
) -> None:
    control_plane.api.create("v1/pods", pod(), namespace=namespace)
    labels = {"metadata": {"labels": {"team": "a"}}}
    control_plane.api.patch("v1/pods", "pod", labels, namespace=namespace)
    assert received(PODS) == []


def test_admission_is_called_for_a_mirror_pod_unless_a_kubelet_makes_it(
    control_plane: ControlPlane, namespace: str, received: Received, node: str
) -> None:
    raw = pod(nodeName=node)
    raw["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "hash"}
    control_plane.api.create("v1/pods", copy.deepcopy(raw), namespace=namespace)
    assert [each["operation"] for each in received(PODS)] == ["CREATE"]
    kubelet = control_plane.api_for(
        control_plane.user_kubeconfig(f"system:node:{node}", "system:nodes")
    )
    owner = control_plane.api.get("v1/nodes", node)["metadata"]
    raw["metadata"] |= {
        "name": "mirror",
        "ownerReferences": [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "name": node,
                "uid": owner["uid"],
                "controller": True,
            }
        ],
    }
    kubelet.create("v1/pods", raw, namespace=namespace)
    assert received(PODS) == []


def test_admission_is_called_for_a_quota_if_the_spec_changes(
    control_plane: ControlPlane, namespace: str, received: Received
) -> None:
    api, quotas = control_plane.api, "hugetlb.dev/v1alpha1/hugetlbquotas"
    quota = quota_object(namespace, "quota", {"hard": {"hugepages-2Mi": "4Mi"}})
    api.create(quotas, quota)
    api.patch(quotas, "quota", {"metadata": {"labels": {"a": "b"}}}, namespace=namespace)
    status = {"status": {"observedGeneration": 1}}
    api.patch(quotas, "quota", status, namespace=namespace, subresource="status")
    spec = {"spec": {"hard": {"hugepages-2Mi": "8Mi"}}}
    api.patch(quotas, "quota", spec, namespace=namespace)
    api.delete(quotas, "quota", namespace=namespace)
    # The API server calls again if its cache was late.
    operations = list(dict.fromkeys(each["operation"] for each in received(QUOTAS)))
    assert operations == ["CREATE", "UPDATE", "DELETE"]
