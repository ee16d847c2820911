"""A pod, with only the fields that accounting and enforcement need."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.demand import MalformedDemand, demand
from hugetlb_quota.accounting.volume import Volume
from hugetlb_quota.page_size import PageSize

#: The annotation of a mirror pod, by which kubelet shows a static pod in the API
#: (pkg/kubelet/pod/mirror_client.go). Its value is the hash that is the UID in the cgroup's
#: name. Nobody can add or change the annotation later, and kubelet runs no API pod that has the
#: annotation. Mirror pods also have config.source and config.hash, but anyone may write these
#: on any pod.
CONFIG_MIRROR: Final = "kubernetes.io/config.mirror"

_NO_SIZES: Final[frozenset[PageSize]] = frozenset()
#: The phases in which no container of a pod runs or will run again.
FINISHED_PHASES: Final = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Container:
    """A container of any kind, also an init or an ephemeral container.

    ``container_id``: the runtime's ID without ``containerd://``; None before the container is
    created.
    """

    name: str
    container_id: str | None
    request: Charge


@dataclass(frozen=True, slots=True)
class Pod:
    """The fields of a pod that the programs keep.

    ``finished``: whether the phase is Succeeded or Failed. ``deletion``: whether the pod has a
    deletionTimestamp. ``demand``: the effective request, empty if malformed. ``malformed``: why
    the request is malformed. ``static_hash``: the hash that a static pod's cgroup has in its name
    instead of the pod's UID. ``pod_level``: the sizes in ``spec.resources.requests``.
    ``volumes``: the volumes that can be on a hugetlbfs of the host; empty for a pod without
    demand.
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
        """The UID in the cgroup's name: the pod's UID, or a static pod's hash."""
        return self.static_hash or self.uid

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def project_pod(raw: Mapping[str, Any]) -> Pod:
    """Project any pod; a malformed request is in ``malformed``, and raises nothing."""
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
        labels=share_labels(metadata.get("labels") or {}),
        node=sys.intern(spec["nodeName"]) if spec.get("nodeName") else None,
        finished=status.get("phase") in FINISHED_PHASES,
        deletion="deletionTimestamp" in metadata,
        demand=wanted,
        malformed=malformed,
        static_hash=(metadata.get("annotations") or {}).get(CONFIG_MIRROR),
        containers=tuple(_containers(spec, status)) if malformed is None else (),
        pod_level=frozenset(pod_level) if pod_level.keys() else _NO_SIZES,
        volumes=tuple(_volumes(spec)) if wanted else (),
    )


def project_demanding_pod(raw: Mapping[str, Any]) -> Pod | None:
    """Project a pod that requests huge pages or has a malformed request; None for other pods."""
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


def share_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    """The same labels: pods of one workload have one object for them."""
    return _shared(tuple(labels.items()))


@lru_cache(maxsize=4096)
def _shared(labels: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return {sys.intern(key): sys.intern(value) for key, value in labels}
