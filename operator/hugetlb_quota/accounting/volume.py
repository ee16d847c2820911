"""Through which volume of its pod a hugetlbfs file is reached."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

#: Where kubelet mounts a pod's volume (pkg/volume/emptydir and local: GetPath); the last part
#: is the volume's name, or of a local PersistentVolume the PersistentVolume's.
_KUBELETS: Final = re.compile(
    r"/pods/[^/]+/volumes/kubernetes\.io~(empty-dir|local-volume)/([^/]+)$"
)


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of a pod that can be on a hugetlbfs of the host.

    ``host_path``: the directory or file it names; None: a claim, which names none.
    """

    name: str
    host_path: str | None = None


def volume_of(mount: str, path: str, volumes: Iterable[Volume]) -> str:
    """The name of the volume, empty when it can't be told.

    Of several claims it can't be told which one stands for a local PersistentVolume: then it
    is the PersistentVolume's name where kubelet's mount shows that.

    :param mount: where the file's hugetlbfs is mounted on the host; empty: nowhere.
    :param path: of the file, below ``mount``.
    :param volumes: those of the pod that is charged for it.
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
