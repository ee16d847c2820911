"""How kubelet and the container runtimes name cgroups: from a path to pod and container.

Kubelet: pkg/kubelet/cm/cgroup_manager_linux.go (``ToSystemd``, ``ToCgroupfs``), and
``GetPodCgroupNameSuffix``. Below ``--cgroup-root``, as kind sets it, everything has a
prefix: ``/kubelet/kubepods``, ``/kubelet.slice/kubelet-kubepods.slice``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

_KUBEPODS: Final = re.compile(r"kubepods|(?P<stem>(?:[^/]+-)?kubepods)\.slice")
_CGROUPFS_POD: Final = re.compile(r"pod(?P<uid>[0-9A-Za-z][0-9A-Za-z_.-]*)")
#: containerd, CRI-O and cri-dockerd under systemd; with cgroupfs the bare ID, or CRI-O's
#: prefix without ``.scope``. CRI-O's monitor, ``crio-conmon-ID``, is no container.
_CONTAINER: Final = re.compile(
    r"(?P<cgroupfs>[0-9a-f]{8,64})|(?:cri-containerd|crio|docker)-(?P<id>[0-9a-f]{8,64})(?:\.scope)?"
)
#: What crun puts below the scope, with the processes in it.
_CRUN_INNER: Final = "container"

#: Where kubelet's tree is looked for below the cgroup2 mount: its own place, and kind's.
_PARENTS: Final = (".", "kubelet", "kubelet.slice")
#: And below slices, so many levels deep.
_DEEPEST_SLICE: Final = 4


class Qos(StrEnum):
    """The quality-of-service level that a cgroup is below."""

    GUARANTEED = "guaranteed"
    BURSTABLE = "burstable"
    BEST_EFFORT = "besteffort"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in kubelet's tree a cgroup is.

    ``pod`` is the UID in the cgroup's name, None above the pods; ``container`` the ID
    that the runtime gave, None above the containers.
    """

    qos: Qos
    pod: str | None = None
    container: str | None = None


@dataclass(frozen=True, slots=True)
class PodCgroup:
    """A pod's cgroup; ``uid`` is the one in its name."""

    uid: str
    qos: Qos
    path: Path


@dataclass(frozen=True, slots=True)
class ContainerCgroup:
    """A container's cgroup; crun's inner one has the same ``id``."""

    id: str
    path: Path


def place(path: str) -> Place | None:
    """What the cgroup at ``path`` is, or None when it is nothing that kubelet names.

    >>> place("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podaa_bb.slice")
    Place(qos=<Qos.BURSTABLE: 'burstable'>, pod='aa-bb', container=None)

    ``path`` is below the cgroup2 mount, as /proc/PID/cgroup prints it.
    """
    names = [name for name in path.split("/") if name not in ("", ".")]
    for depth, name in enumerate(names):
        if (match := _KUBEPODS.fullmatch(name)) is not None:
            return _below_kubepods(match["stem"], names[depth + 1 :])
    return None


def _below_kubepods(stem: str | None, names: list[str]) -> Place | None:
    """``stem`` is kubepods' own name without ``.slice``, None with the cgroupfs driver."""
    qos = Qos.GUARANTEED
    for level in (Qos.BURSTABLE, Qos.BEST_EFFORT):
        # A slice's name repeats the names of those above it (systemd.slice(5)).
        slice_name = f"{stem}-{level}"
        if names and names[0] == (level.value if stem is None else f"{slice_name}.slice"):
            qos, names, stem = level, names[1:], stem and slice_name
            break
    if not names:
        return Place(qos)
    uid = _pod_uid(names[0], stem)
    if uid is None:
        return None
    if len(names) == 1:
        return Place(qos, uid)
    match = _CONTAINER.fullmatch(names[1])
    if match is None or names[2:] not in ([], [_CRUN_INNER]):
        return None
    return Place(qos, uid, match["cgroupfs"] or match["id"])


def _pod_uid(name: str, stem: str | None) -> str | None:
    if stem is None:
        match = _CGROUPFS_POD.fullmatch(name)
        return match["uid"] if match else None
    if not name.startswith(f"{stem}-pod") or not name.endswith(".slice"):
        return None
    # A hyphen would start another level of slices, so kubelet writes an underscore.
    return name.removeprefix(f"{stem}-pod").removesuffix(".slice").replace("_", "-") or None


def pod_of(names: Sequence[str]) -> str | None:
    """The UID of the pod whose cgroup is ``names``, or one of those above; None: of no pod.

    ``names`` lead from the directory that kubepods is in down to the cgroup, however deep in
    the pod that is.

    >>> pod_of(["kubepods", "burstable", "podaa-bb", "1f", "init.scope"])
    'aa-bb'
    """
    if not names or not is_kubepods(names[0]):
        return None
    # A pod is right in kubepods, or in a QoS level.
    for depth in (2, 3):
        found = place("/".join(names[:depth]))
        if found is not None and found.pod is not None:
            return found.pod
    return None


def parents(cgroup2: Path, cgroup_root: str | None) -> tuple[Path, ...]:
    """The directories in which kubepods may be.

    ``cgroup_root`` is what kubelet's ``--cgroup-root`` leads to, below the mount; None
    looks in the usual places, and in every slice that there is now. Only root makes slices
    there. What a service, a scope or a pod has in its own cgroup is theirs, and may have any
    name.
    """
    if cgroup_root is not None:
        return (cgroup2 / cgroup_root.strip("/"),)
    usual = [cgroup2 / parent for parent in _PARENTS]
    slices = (path for path in _slices(cgroup2, _DEEPEST_SLICE) if path not in usual)
    return (*usual, *sorted(slices))


class Parents:
    """The directories in which kubepods may be; :meth:`search` looks for more.

    :param find: gives them as they are now, as :func:`parents` does.
    """

    def __init__(self, find: Callable[[], tuple[Path, ...]]) -> None:
        self._find = find
        self._found = find()

    def __iter__(self) -> Iterator[Path]:
        return iter(self._found)

    def search(self) -> tuple[Path, ...]:
        """Look again; those that are new.

        :raises OSError: when a directory is there and can't be read.
        """
        before, self._found = frozenset(self._found), self._find()
        return tuple(path for path in self._found if path not in before)


def is_slice(name: str) -> bool:
    """Whether kubepods may be in a directory of this name: a slice that is no kubepods."""
    return name.endswith(".slice") and not is_kubepods(name)


def _slices(directory: Path, levels: int) -> Iterator[Path]:
    for path in subdirectories(directory) if levels else ():
        if is_slice(path.name):
            yield path
            yield from _slices(path, levels - 1)


def is_kubepods(name: str) -> bool:
    """Whether a directory of this name is the root of kubelet's pods."""
    return _KUBEPODS.fullmatch(name) is not None


def roots(parents: Iterable[Path]) -> Iterator[Path]:
    """Every kubepods there is below ``parents``: all of kubelet's pods are in them."""
    for parent in parents:
        for path in subdirectories(parent):
            if is_kubepods(path.name):
                yield path


def pods(parents: Iterable[Path]) -> Iterator[PodCgroup]:
    """Every pod's cgroup below ``parents`` as it is at this moment."""
    for root in roots(parents):
        for level in (root, *subdirectories(root)):
            yield from _pods_of_level(root.parent, level)


def _pods_of_level(parent: Path, level: Path) -> Iterator[PodCgroup]:
    if (qos := place(str(level.relative_to(parent)))) is None or qos.pod is not None:
        return
    for path in subdirectories(level):
        found = place(str(path.relative_to(parent)))
        if found is not None and found.pod is not None:
            yield PodCgroup(found.pod, found.qos, path)


def containers(pod: PodCgroup) -> Iterator[ContainerCgroup]:
    """The container cgroups of ``pod``, crun's inner ones included; none if it is gone."""
    if _is_leaf(pod.path):
        return
    for path in subdirectories(pod.path):
        match = _CONTAINER.fullmatch(path.name)
        if match is None:
            continue
        container = match["cgroupfs"] or match["id"]
        yield ContainerCgroup(container, path)
        if (inner := path / _CRUN_INNER).is_dir():
            yield ContainerCgroup(container, inner)


def _is_leaf(path: Path) -> bool:
    """Whether a cgroup has none below it, or is gone.

    Its directory has a link from each (fs/kernfs/inode.c), and listing its dozens of files takes
    ten times longer. Where a file system counts no links there is one.
    """
    try:
        return path.stat().st_nlink == 2
    except OSError:
        return True


def subdirectories(path: Path) -> list[Path]:
    """The cgroups right below ``path``, in no order; none if it is gone.

    :raises OSError: when it is there and can't be read.
    """
    try:
        with os.scandir(path) as entries:
            # The kind comes with the listing: a cgroup's dozens of files cost no stat.
            return [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
