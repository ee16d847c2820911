"""A pod, as slim as accounting and enforcement can do with."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.demand import MalformedDemand, demand
from hugetlb_quota.accounting.volume import Volume
from hugetlb_quota.page_size import PageSize

#: The annotation of the pods by which kubelet shows what it runs from elsewhere than the
#: API (pkg/kubelet/pod/mirror_client.go): the hash that is the UID in the cgroup's name. It
#: can't be added or changed later, and kubelet runs no pod of the API that has it.
#: config.source and config.hash, which mirrors have too, anyone may write on any pod.
CONFIG_MIRROR: Final = "kubernetes.io/config.mirror"

#: Phases in which no container of a pod runs, or ever will again.
FINISHED_PHASES: Final = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Container:
    """A container of any sort, init and ephemeral ones too.

    ``container_id``: the runtime's, without ``containerd://``; None until it is made.
    """

    name: str
    container_id: str | None
    request: Charge


@dataclass(frozen=True, slots=True)
class Pod:
    """What is kept of a pod.

    ``finished``: Succeeded or Failed. ``deletion``: it is to go. ``demand``: the
    effective request; nothing when it is ``malformed``, which then says why.
    ``static_hash``: what names a static pod's cgroup in the place of its UID.
    ``pod_level``: sizes that spec.resources.requests names for the pod as a whole.
    ``volumes``: those that can be on a hugetlbfs of the host, if it asks for huge pages.
    """

    uid: str
    namespace: str
    name: str
    resource_version: int
    labels: Mapping[str, str]
    node: str | None = None
    finished: bool = False
    deletion: bool = False
    demand: Charge = NOTHING
    malformed: str | None = None
    static_hash: str | None = None
    containers: tuple[Container, ...] = ()
    pod_level: frozenset[PageSize] = frozenset()
    volumes: tuple[Volume, ...] = ()

    @property
    def cgroup_uid(self) -> str:
        """The UID in the name of its cgroup: of a static pod the hash of its manifest."""
        return self.static_hash or self.uid

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def project_pod(raw: Mapping[str, Any]) -> Pod:
    """Every pod, with or without huge pages; what is malformed is told, not raised."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    wanted, malformed, pod_level = NOTHING, None, NOTHING
    try:
        wanted = demand(spec)
        pod_level = Charge.from_resources((spec.get("resources") or {}).get("requests"))
    except MalformedDemand as error:
        malformed = str(error)
    return Pod(
        uid=metadata.get("uid", ""),
        namespace=sys.intern(metadata.get("namespace", "")),
        name=metadata.get("name", ""),
        resource_version=int(metadata.get("resourceVersion") or 0),
        labels=_interned(metadata.get("labels") or {}),
        node=sys.intern(spec["nodeName"]) if spec.get("nodeName") else None,
        finished=status.get("phase") in FINISHED_PHASES,
        deletion="deletionTimestamp" in metadata,
        demand=wanted,
        malformed=malformed,
        static_hash=(metadata.get("annotations") or {}).get(CONFIG_MIRROR),
        containers=tuple(_containers(spec, status)) if malformed is None else (),
        pod_level=frozenset(pod_level),
        volumes=tuple(_volumes(spec)) if wanted else (),
    )


def project_demanding_pod(raw: Mapping[str, Any]) -> Pod | None:
    """Only a pod that asks for huge pages, or may (its request is malformed)."""
    pod = project_pod(raw)
    return pod if pod.demand or pod.malformed else None


def _containers(spec: Mapping[str, Any], status: Mapping[str, Any]) -> list[Container]:
    containers = []
    for field, statuses in (
        ("initContainers", "initContainerStatuses"),
        ("containers", "containerStatuses"),
        ("ephemeralContainers", "ephemeralContainerStatuses"),
    ):
        ids = {each["name"]: each.get("containerID") for each in status.get(statuses) or ()}
        for container in spec.get(field) or ():
            requests = (container.get("resources") or {}).get("requests")
            _, _, container_id = (ids.get(container["name"]) or "").rpartition("://")
            containers.append(
                Container(
                    sys.intern(container["name"]),
                    container_id or None,
                    Charge.from_resources(requests) if requests else NOTHING,
                )
            )
    return containers


def _volumes(spec: Mapping[str, Any]) -> Iterator[Volume]:
    for volume in spec.get("volumes") or ():
        if "hostPath" in volume:
            yield Volume(sys.intern(volume["name"]), sys.intern(volume["hostPath"]["path"]))
        elif "persistentVolumeClaim" in volume or "ephemeral" in volume:
            yield Volume(sys.intern(volume["name"]))


def _interned(labels: Mapping[str, str]) -> dict[str, str]:
    """Pods of one workload share their labels, so they share the strings too."""
    return {sys.intern(key): sys.intern(value) for key, value in labels.items()}
