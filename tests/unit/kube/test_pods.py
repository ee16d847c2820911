"""The projection of a pod to the fields that the programs keep."""

from __future__ import annotations

from typing import Any

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.volume import Volume
from hugetlb_quota.kube.pods import Container, project_demanding_pod, project_pod
from hugetlb_quota.page_size import PageSize

HUGE = {"requests": {"cpu": "1", "hugepages-2Mi": "4Mi"}}
FOUR_MIB = Charge({PageSize(2 * 1024**2): 4 * 1024**2})


def pod(spec: dict[str, Any], status: dict[str, Any] | None = None, **metadata: Any) -> Any:
    base = {"uid": "u", "namespace": "ns", "name": "p", "resourceVersion": "12"}
    return {"metadata": base | metadata, "spec": spec, "status": status or {}}


def test_the_fields_of_a_projected_pod() -> None:
    raw = pod(
        {
            "nodeName": "node-a",
            "initContainers": [{"name": "init"}],
            "containers": [{"name": "main", "resources": HUGE}],
            "ephemeralContainers": [{"name": "debug"}],
        },
        {
            "phase": "Running",
            "containerStatuses": [{"name": "main", "containerID": "containerd://abc"}],
            "initContainerStatuses": [{"name": "init", "containerID": "cri-o://def"}],
        },
        labels={"app": "pg"},
    )
    kept = project_pod(raw)
    assert (kept.uid, str(kept), kept.resource_version, kept.node) == ("u", "ns/p", 12, "node-a")
    assert (kept.labels, kept.demand, kept.finished, kept.deletion) == (
        {"app": "pg"},
        FOUR_MIB,
        False,
        False,
    )
    assert kept.containers == (
        Container("init", "def", NOTHING),
        Container("main", "abc", FOUR_MIB),
        Container("debug", None, NOTHING),
    )


def test_pods_of_one_workload_share_labels_and_demand() -> None:
    """The programs keep tens of thousands of pods."""
    one, other = (
        project_pod(
            pod(
                {"containers": [{"name": "main", "resources": HUGE}]},
                uid=uid,
                labels={"app": "pg"},
            )
        )
        for uid in ("a", "b")
    )
    assert one.labels is other.labels
    assert one.demand is other.demand
    assert one.pod_level is other.pod_level


def test_a_finished_pod_and_a_pod_to_be_deleted() -> None:
    assert project_pod(pod({}, {"phase": "Failed"})).finished
    assert project_pod(pod({}, {"phase": "Succeeded"})).finished
    assert not project_pod(pod({}, {"phase": "Unknown"})).finished
    assert project_pod(pod({}, deletionTimestamp="2026-11-22T12:00:00Z")).deletion


def test_a_static_pods_cgroup_is_named_by_its_hash() -> None:
    annotations = {
        "kubernetes.io/config.source": "file",
        "kubernetes.io/config.hash": "cafe",
        "kubernetes.io/config.mirror": "cafe",
    }
    assert project_pod(pod({}, annotations=annotations)).static_hash == "cafe"
    assert project_pod(pod({})).static_hash is None


def test_other_annotations_make_no_pod_static() -> None:
    """Only kubelet's mirror pod has config.mirror; kubelet never runs another pod that has it.

    Anyone can write the other two annotations on a running pod. If these annotations counted, the
    agent would not find the pod's cgroup: the pod would have no limit, and the controller would
    release the pod while it runs.
    """
    forged = {"kubernetes.io/config.source": "file", "kubernetes.io/config.hash": "cafe"}
    assert project_pod(pod({}, annotations=forged)).static_hash is None


def test_a_request_at_pod_level_names_its_size() -> None:
    kept = project_pod(pod({"resources": HUGE, "containers": [{"name": "main"}]}))
    assert kept.pod_level == {PageSize(2 * 1024**2)}
    assert kept.demand == FOUR_MIB


def test_a_malformed_request_is_stored_not_raised() -> None:
    bad = {"requests": {"hugepages-2Mi": "-4Mi"}}
    kept = project_pod(pod({"containers": [{"name": "main", "resources": bad}]}))
    assert kept.demand == NOTHING
    assert kept.malformed is not None
    assert "negative" in kept.malformed
    assert kept.containers == ()
    assert project_demanding_pod(pod({"containers": [{"name": "main", "resources": bad}]}))


def test_pods_without_huge_pages_can_be_left_out() -> None:
    assert project_demanding_pod(pod({"containers": [{"name": "main"}]})) is None
    assert project_demanding_pod(pod({"containers": [{"name": "main", "resources": HUGE}]}))


def test_only_pods_with_huge_pages_keep_their_volumes() -> None:
    volumes = [
        {"name": "host", "hostPath": {"path": "/mnt/huge"}},
        {"name": "scratch", "emptyDir": {"medium": "HugePages"}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
        {"name": "ephemeral", "ephemeral": {"volumeClaimTemplate": {}}},
        {"name": "settings", "configMap": {"name": "m"}},
    ]
    kept = project_pod(pod({"containers": [{"name": "c", "resources": HUGE}], "volumes": volumes}))
    assert kept.volumes == (Volume("host", "/mnt/huge"), Volume("claim"), Volume("ephemeral"))
    assert project_pod(pod({"containers": [{"name": "c"}], "volumes": volumes})).volumes == ()
