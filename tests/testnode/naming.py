"""The names of pod cgroups and hugetlb files with kubelet's two cgroup drivers. No I/O."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

Driver = Literal["systemd", "cgroupfs"]
DRIVERS: tuple[Driver, ...] = ("systemd", "cgroupfs")

_UNITS = (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))


def kubepods(driver: Driver) -> PurePosixPath:
    """The cgroup of all pods, relative to the node's cgroup parent."""
    return PurePosixPath("kubepods.slice" if driver == "systemd" else "kubepods")


def qos_level(driver: Driver, qos_class: str) -> PurePosixPath:
    """The parent cgroup of the pods of a QoS class; for Guaranteed it is kubepods."""
    if qos_class == "Guaranteed":
        return kubepods(driver)
    if qos_class not in ("Burstable", "BestEffort"):
        raise ValueError(f"QoS class {qos_class!r} is not Guaranteed, Burstable or BestEffort")
    qos = qos_class.lower()
    return kubepods(driver) / (f"kubepods-{qos}.slice" if driver == "systemd" else qos)


def pod_level(driver: Driver, qos_class: str, uid: str) -> PurePosixPath:
    """The pod's cgroup. A systemd slice has ``_`` in the UID: ``-`` separates slice levels."""
    above = qos_level(driver, qos_class)
    if driver == "cgroupfs":
        return above / f"pod{uid}"
    return above / f"{above.name.removesuffix('.slice')}-pod{uid.replace('-', '_')}.slice"


def container_name(driver: Driver, container_id: str) -> str:
    """The name of a container's cgroup, as in containerd's CRI plugin."""
    return f"cri-containerd-{container_id}.scope" if driver == "systemd" else container_id


def kernel_size(page_bytes: int) -> str:
    """``2097152`` -> ``2MB``, as in the names of hugetlb's cgroup files."""
    for unit, factor in _UNITS:
        if page_bytes >= factor:
            return f"{page_bytes // factor}{unit[0]}B"
    raise ValueError(f"a page of {page_bytes} bytes is not a huge page")


def resource_name(page_bytes: int) -> str:
    """``2097152`` -> ``hugepages-2Mi``."""
    for unit, factor in _UNITS:
        if page_bytes >= factor:
            return f"hugepages-{page_bytes // factor}{unit}"
    raise ValueError(f"a page of {page_bytes} bytes is not a huge page")
