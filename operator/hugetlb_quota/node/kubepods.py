"""Finds pods and containers by the names that kubelet and the container runtimes give to cgroups.

Kubelet makes the names in pkg/kubelet/cm/cgroup_manager_linux.go (``ToSystemd``, ``ToCgroupfs``)
and ``GetPodCgroupNameSuffix``. With ``--cgroup-root``, which kind sets, all names have a prefix:
``/kubelet/kubepods``, ``/kubelet.slice/kubelet-kubepods.slice``.
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
#: With systemd: the names of containerd, CRI-O and cri-dockerd. With cgroupfs: the ID alone, or
#: CRI-O's prefix without ``.scope``. CRI-O's monitor, ``crio-conmon-ID``, is not a container.
_CONTAINER: Final = re.compile(
    r"(?P<cgroupfs>[0-9a-f]{8,64})|(?:cri-containerd|crio|docker)-(?P<id>[0-9a-f]{8,64})(?:\.scope)?"
)
#: The cgroup that crun creates below the scope for the container's processes.
_CRUN_INNER: Final = "container"

#: Directories below the cgroup2 mount that may hold kubepods: kubelet's default, and kind's two.
_PARENTS: Final = (".", "kubelet", "kubelet.slice")
#: Levels of slices below the cgroup2 mount that may hold kubepods too.
_DEEPEST_SLICE: Final = 4


class Qos(StrEnum):
    """The quality-of-service level of a cgroup."""

    GUARANTEED = "guaranteed"
    BURSTABLE = "burstable"
    BEST_EFFORT = "besteffort"


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a cgroup in kubelet's tree.

    ``pod`` is the UID in the name of the pod's cgroup; None for a cgroup above the pods.
    ``container`` is the runtime's ID of the container; None for a cgroup above the containers.
    """

    qos: Qos
    pod: str | None = None
    container: str | None = None


@dataclass(frozen=True, slots=True)
class PodCgroup:
    """A pod's cgroup; ``uid`` is the UID in its name."""

    uid: str
    qos: Qos
    path: Path


@dataclass(frozen=True, slots=True)
class ContainerCgroup:
    """A container's cgroup; crun's inner one has the same ``id``."""

    id: str
    path: Path


def place(path: str) -> Place | None:
    """Return the place of the cgroup at ``path``, or None if kubelet does not use such a name.

    >>> place("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podaa_bb.slice")
    Place(qos=<Qos.BURSTABLE: 'burstable'>, pod='aa-bb', container=None)

    ``path`` starts at the cgroup2 mount, as in /proc/PID/cgroup.
    """
    names = [name for name in path.split("/") if name not in ("", ".")]
    for depth, name in enumerate(names):
        if (match := _KUBEPODS.fullmatch(name)) is not None:
            return _below_kubepods(match["stem"], names[depth + 1 :])
    return None


def _below_kubepods(stem: str | None, names: list[str]) -> Place | None:
    """Return the place of the cgroup ``names`` below kubepods.

    ``stem`` is the name of kubepods without ``.slice``; None with the cgroupfs driver.
    """
    qos = Qos.GUARANTEED
    for level in (Qos.BURSTABLE, Qos.BEST_EFFORT):
        # The name of a slice repeats the names of the slices above (systemd.slice(5)).
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
    # In a slice's name a hyphen starts another level, so kubelet writes an underscore.
    return name.removeprefix(f"{stem}-pod").removesuffix(".slice").replace("_", "-") or None


def pod_of(names: Sequence[str]) -> str | None:
    """Return the UID of the pod that the cgroup ``names`` belongs to, or None.

    ``names`` lead from the directory that holds kubepods down to the cgroup. The cgroup may be
    the pod's own or any cgroup below.

    >>> pod_of(["kubepods", "burstable", "podaa-bb", "1f", "init.scope"])
    'aa-bb'
    """
    if not names or not is_kubepods(names[0]):
        return None
    # A pod's cgroup is directly in kubepods, or in a QoS level.
    for depth in (2, 3):
        found = place("/".join(names[:depth]))
        if found is not None and found.pod is not None:
            return found.pod
    return None


def parents(cgroup2: Path, cgroup_root: str | None) -> tuple[Path, ...]:
    """Return the directories that may hold kubepods.

    ``cgroup_root`` is kubelet's ``--cgroup-root``, a path below the mount. With None the result is
    the usual directories and every slice that exists now. Only root can create slices there. The
    search does not enter a service, a scope or a pod, because other users choose the names there.
    """
    if cgroup_root is not None:
        return (cgroup2 / cgroup_root.strip("/"),)
    usual = [cgroup2 / parent for parent in _PARENTS]
    slices = (path for path in _slices(cgroup2, _DEEPEST_SLICE) if path not in usual)
    return (*usual, *sorted(slices))


class Parents:
    """The directories that may hold kubepods; :meth:`search` updates them.

    :param find: returns the directories as they are now; see :func:`parents`.
    """

    def __init__(self, find: Callable[[], tuple[Path, ...]]) -> None:
        self._find = find
        self._found = find()

    def __iter__(self) -> Iterator[Path]:
        return iter(self._found)

    def search(self) -> tuple[Path, ...]:
        """Find the directories again; return the new directories.

        :raises OSError: a directory exists but can't be read.
        """
        before, self._found = frozenset(self._found), self._find()
        return tuple(path for path in self._found if path not in before)


def is_slice(name: str) -> bool:
    """Return True for a slice that may hold kubepods: any slice that is not kubepods itself."""
    return name.endswith(".slice") and not is_kubepods(name)


def _slices(directory: Path, levels: int) -> Iterator[Path]:
    for path in subdirectories(directory) if levels else ():
        if is_slice(path.name):
            yield path
            yield from _slices(path, levels - 1)


def is_kubepods(name: str) -> bool:
    """Return True if ``name`` is a name of the root of kubelet's pods."""
    return _KUBEPODS.fullmatch(name) is not None


def roots(parents: Iterable[Path]) -> Iterator[Path]:
    """Yield every kubepods directory that exists in ``parents``; all pods are below them."""
    for parent in parents:
        for path in subdirectories(parent):
            if is_kubepods(path.name):
                yield path


def pods(parents: Iterable[Path]) -> Iterator[PodCgroup]:
    """Yield every pod's cgroup that exists now below ``parents``."""
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
    """Yield the cgroups of the pod's containers, with the inner cgroups of crun.

    Yields nothing if the pod's cgroup is gone.
    """
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
    """Return True if there is no cgroup below ``path``, or if ``path`` is gone.

    Each subdirectory adds a link to its parent (fs/kernfs/inode.c). To read this number is ten
    times faster than to list the dozens of files. A file system that counts no links shows 1.
    """
    try:
        return path.stat().st_nlink == 2
    except OSError:
        return True


def subdirectories(path: Path) -> list[Path]:
    """Return the directories in ``path``, in no order; none if ``path`` is gone.

    :raises OSError: the directory exists but can't be read.
    """
    try:
        with os.scandir(path) as entries:
            # The listing has the type of each entry, so the dozens of files need no stat(2).
            return [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
