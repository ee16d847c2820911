"""The volume of a pod through which the pod reaches a hugetlbfs file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

#: The path where kubelet mounts a volume (GetPath of pkg/volume/emptydir and local). The last
#: part is the name of the volume or, for a local PersistentVolume, of the PersistentVolume.
_KUBELETS: Final = re.compile(
    r"/pods/[^/]+/volumes/kubernetes\.io~(empty-dir|local-volume)/([^/]+)$"
)


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of a pod that can be on a hugetlbfs of the host.

    ``host_path``: the directory or file of a hostPath volume; None for a claim.
    """

    name: str
    host_path: str | None = None


def volume_of(mount: str, path: str, volumes: Iterable[Volume]) -> str:
    """The name of the volume; empty if it is unknown.

    If the pod has several claims, the claim of a local PersistentVolume is unknown: the result
    is the name of the PersistentVolume if kubelet's mount path shows it.

    :param mount: the mount point of the file's hugetlbfs on the host; empty if not mounted.
    :param path: the path of the file below ``mount``.
    :param volumes: the volumes of the pod that is charged for the file.
    """
    if not mount:
        return ""
    kubelets = _KUBELETS.search(mount)
    if kubelets and kubelets[1] == "empty-dir":
        return kubelets[2]
    file, claims = PurePosixPath(mount) / path, []
    holding: dict[str, int] = {}
    for volume in volumes:
        if volume.host_path is None:
            claims.append(volume.name)
            continue
        directory = PurePosixPath("/", volume.host_path.lstrip("/"))
        if file.is_relative_to(directory):
            holding[volume.name] = len(directory.parts)
    if holding:
        return max(holding, key=holding.__getitem__)
    if len(claims) == 1:
        return claims[0]
    return kubelets[2] if kubelets else ""
